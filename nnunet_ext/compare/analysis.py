"""From the scores of all cases to the comparison of each challenger with the baseline."""

import warnings
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from nnunet_ext.compare.empty_labels import apply_rule, nnunet_mean
from nnunet_ext.compare.inference import Estimate, estimate, verdict
from nnunet_ext.compare.lesion_metrics import LESION_METRICS
from nnunet_ext.compare.lesions import BANDS
from nnunet_ext.compare.metrics import METRICS, PRIMARY
from nnunet_ext.compare.mixed_model import training_noise
from nnunet_ext.compare.ranking import Ranking, rank
from nnunet_ext.compare.settings import Settings
from nnunet_ext.compare.statistics import RESAMPLES, Verdict, holm
from nnunet_ext.compare.study import Study

MEAN = ""
"""Key of the mean of a case's labels, in place of a label's name; no label has this name."""


@dataclass(frozen=True)
class Comparison:
    """A challenger against the baseline in one metric and label.

    Attributes:
        method: The challenger.
        metric: Key of the metric.
        label: A label's name, or `MEAN`.
        own: Mean of the challenger over the pairs.
        baseline: Mean of the baseline over the pairs.
        estimate: Estimate of the difference.
        p_holm: p of no difference, adjusted over challengers.
        p_equivalent_holm: p of equivalence, likewise; NaN for metrics without a margin.
        dropped: Cases without a pair.
        verdict: None for metrics without a margin.
    """

    method: str
    metric: str
    label: str
    own: float
    baseline: float
    estimate: Estimate
    p_holm: float
    p_equivalent_holm: float
    dropped: int
    verdict: Verdict | None


@dataclass(frozen=True)
class Emptiness:
    """Numbers of cases in which a label was absent, over all repeats.

    Attributes:
        missed: Cases that have the label and in which it is not predicted.
        false_positives: Cases without the label in which it is predicted.
        absent: Cases in which neither truth nor prediction has it.
    """

    missed: int
    false_positives: int
    absent: int


@dataclass(frozen=True)
class LesionTotals:
    """Lesions of all cases and repeats.

    Attributes:
        true: Number of true lesions.
        found: Number of true lesions that were found.
        predicted: Number of predicted lesions.
    """

    true: int
    found: int
    predicted: int


@dataclass(frozen=True)
class Analysis:
    """Complete statistical results.

    Attributes:
        comparisons: Comparisons by method, metric and label.
        means: Means over the cases of the comparisons, by method, metric and label (or `MEAN`).
        nnunet_means: nnU-Net's own `foreground_mean` by method.
        emptiness: Counts of absent labels by method and label.
        false_positive_rates: Comparisons of the false-positive rates of each label that some cases do not have, by
            challenger and label.
        ranking: Ranks by Dice.
        case_scores: Mean of the labels of each case, by method and metric, in the study's order.
        case_differences: Difference in Dice of each case, by challenger.
        lesions: Comparisons of the detection of lesions, by challenger, metric and label.
        lesion_totals: Numbers of lesions by method and label.
    """

    comparisons: dict[tuple[str, str, str], Comparison]
    means: dict[tuple[str, str, str], float]
    nnunet_means: dict[str, float]
    emptiness: dict[tuple[str, str], Emptiness]
    false_positive_rates: dict[tuple[str, str], Comparison]
    ranking: Ranking
    case_scores: dict[tuple[str, str], NDArray[np.float64]]
    case_differences: dict[str, NDArray[np.float64]]
    lesions: dict[tuple[str, str, str], Comparison]
    lesion_totals: dict[tuple[str, str], LesionTotals]

    def primary(self, method: str) -> Comparison:
        """The comparison that gives the verdict: Dice, mean of labels."""
        return self.comparisons[method, PRIMARY, MEAN]


def analyse(study: Study, scores: pd.DataFrame, settings: Settings) -> Analysis:
    """Compares every challenger with the baseline.

    Args:
        study: The study.
        scores: As `measure` returns them.
        settings: The user's settings.
    """
    names, labels, challengers = [method.name for method in study.methods], list(study.labels.labels), study.challengers
    scored = apply_rule(scores, settings.empty_labels)
    values = {(m.name, metric): score_table(scored, study, m.name, metric) for m in study.methods for metric in METRICS}
    comparisons: dict[tuple[str, str, str], Comparison] = {}
    means: dict[tuple[str, str, str], float] = {}
    for metric in METRICS:
        for label in [MEAN, *labels]:
            column = None if label == MEAN else labels.index(label)
            chosen = {name: of_label(values[name, metric], column) for name in names}
            means |= {(name, metric, label): _mean(table) for name, table in chosen.items()}
            for each in _compare(study, chosen, metric, label, settings):
                comparisons[each.method, metric, label] = each
    per_case = {key: of_label(table, None).mean(axis=0) for key, table in values.items()}
    ranked = np.array([per_case[name, PRIMARY] for name in names])
    return Analysis(
        comparisons=comparisons,
        means=means,
        nnunet_means={name: nnunet_mean(scores, name) for name in names},
        emptiness={(name, label): _emptiness(scores, name, label) for name in names for label in labels},
        false_positive_rates=_false_positives(study, scores, settings),
        ranking=rank(names, ranked, _folds(study), settings.seed, groups=_groups(study)),
        case_scores=per_case,
        case_differences={name: per_case[name, PRIMARY] - per_case[study.baseline, PRIMARY] for name in challengers},
        lesions=_lesions(study, scored, settings),
        lesion_totals={
            (name, label): _lesion_totals(scores, name, label) for name in names for label in settings.lesions
        },
    )


def _folds(study: Study) -> list[str]:
    return [case.fold for case in study.cases.values()]


def _groups(study: Study) -> list[str]:
    return [study.groups[name] for name in study.cases] if study.groups else list(study.cases)


def score_table(scores: pd.DataFrame, study: Study, name: str, metric: str) -> NDArray[np.float64]:
    """Values of repeats by cases by labels."""
    own = scores[scores["entrant"] == name]
    tables = []
    for _, rows in own.groupby("repeat", sort=True):
        wide = rows.pivot(index="case", columns="label", values=metric)
        tables.append(wide.loc[list(study.cases), list(study.labels.labels)].to_numpy(dtype=float))
    return np.array(tables)


def of_label(table: NDArray[np.float64], column: int | None) -> NDArray[np.float64]:
    """Values of repeats by cases: of one label, or the mean of labels."""
    if column is not None:
        return table[:, :, column]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Mean of empty slice", RuntimeWarning)
        return np.nanmean(table, axis=2)


def _compare(
    study: Study, values: dict[str, NDArray[np.float64]], metric: str, label: str, settings: Settings
) -> list[Comparison]:
    """Comparisons of all challengers in one metric and label: the family of Holm's correction."""
    folds, groups, margin = _folds(study), _groups(study), settings.margin
    base = values[study.baseline]
    there = np.asarray(np.isfinite(base).all(axis=0))  # by the truth alone, so the same for every method
    kept = [fold for fold, kept in zip(folds, there, strict=True) if kept]
    estimates = {}
    for name in study.challengers:
        runs = [values[name][:, there], base[:, there]]
        noise = training_noise([runs[0] - runs[1]] if study.supports else runs, kept) if there.any() else None
        if noise is not None and study.supports:
            noise = replace(noise, complete=False)  # other supports, but the same trainings
        estimates[name] = estimate(
            values[name].mean(axis=0) - base.mean(axis=0),
            folds,
            margin,
            seed=settings.seed,
            groups=groups,
            noise=noise,
            resamples=RESAMPLES if label == MEAN else 0,
        )
    adjusted = holm([each.p for each in estimates.values()])
    equivalent = holm([each.p_equivalent for each in estimates.values()])
    judged = metric == PRIMARY
    return [
        Comparison(
            *(name, metric, label, _mean(values[name]), _mean(base), each, p),
            p_equivalent if judged else float("nan"),
            len(folds) - each.cases,
            verdict(each, p, p_equivalent, margin) if judged else None,
        )
        for (name, each), p, p_equivalent in zip(estimates.items(), adjusted, equivalent, strict=True)
    ]


def _mean(values: NDArray[np.float64]) -> float:
    there = values[np.isfinite(values)]
    return float(there.mean()) if len(there) else float("nan")


def _emptiness(scores: pd.DataFrame, name: str, label: str) -> Emptiness:
    rows = scores[(scores["entrant"] == name) & (scores["label"] == label)]
    truth, predicted = rows["truth_voxels"] > 0, rows["predicted_voxels"] > 0
    return Emptiness(int((truth & ~predicted).sum()), int((~truth & predicted).sum()), int((~truth & ~predicted).sum()))


def _false_positives(study: Study, scores: pd.DataFrame, settings: Settings) -> dict[tuple[str, str], Comparison]:
    """Compares the shares of cases without a label in which a method predicts it."""
    wrong = scores.assign(rate=np.where(scores["truth_voxels"] > 0, np.nan, scores["predicted_voxels"] > 0))
    tables = {method.name: score_table(wrong, study, method.name, "rate") for method in study.methods}
    found = {}
    for column, label in enumerate(study.labels.labels):
        chosen = {name: table[:, :, column] for name, table in tables.items()}
        if np.isfinite(chosen[study.baseline]).any():
            for each in _compare(study, chosen, "false_positive_rate", label, settings):
                found[each.method, label] = each
    return found


def _lesions(study: Study, scored: pd.DataFrame, settings: Settings) -> dict[tuple[str, str, str], Comparison]:
    found = {}
    for metric in LESION_METRICS if settings.lesions else ():
        tables = {method.name: score_table(scored, study, method.name, metric) for method in study.methods}
        for label in settings.lesions:
            column = list(study.labels.labels).index(label)
            chosen = {name: table[:, :, column] for name, table in tables.items()}
            if np.isfinite(chosen[study.baseline]).any():
                for each in _compare(study, chosen, metric, label, settings):
                    found[each.method, metric, label] = each
    return found


def _lesion_totals(scores: pd.DataFrame, name: str, label: str) -> LesionTotals:
    rows = scores[(scores["entrant"] == name) & (scores["label"] == label)]
    true, found = (sum(int(rows[f"lesions_{what}_{band}"].sum()) for band in BANDS) for what in ("true", "found"))
    return LesionTotals(true, found, int(rows["lesions_predicted"].sum()))
