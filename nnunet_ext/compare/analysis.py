"""From the scores of all cases to what is said about each challenger."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from nnunet_ext.compare.metrics import METRICS, PRIMARY
from nnunet_ext.compare.ranking import Ranking, rank
from nnunet_ext.compare.statistics import Estimate, Verdict, estimate, holm, verdict
from nnunet_ext.compare.study import Study

MEAN = "mean"
"""Stands where a label's name stands: the mean of a case's labels."""


@dataclass(frozen=True)
class Comparison:
    """A challenger against the baseline in one metric and label.

    Attributes:
        entrant: The challenger.
        metric: Key of the metric.
        label: A label's name, or `MEAN`.
        own: Mean of the challenger over the pairs.
        baseline: Mean of the baseline over the pairs.
        estimate: Of the difference.
        p_holm: Of the test of no difference, adjusted over challengers.
        p_equivalent_holm: Of the equivalence test, likewise; NaN for metrics without a margin.
        dropped: Cases without a pair.
        verdict: None for metrics without a margin.
    """

    entrant: str
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
    """How often a label was absent.

    Attributes:
        missed: Cases with the label of which the prediction has nothing.
        invented: Cases without it of which the prediction has some.
        absent: Cases where neither has it.
    """

    missed: int
    invented: int
    absent: int


@dataclass(frozen=True)
class Analysis:
    """All that is said.

    Attributes:
        comparisons: By entrant, metric and label.
        means: Mean over cases by entrant, metric and label (or `MEAN`).
        emptiness: By entrant and label.
        ranking: By Dice.
        case_scores: Of each case, by entrant and metric, the mean of its labels; in the study's order.
        case_differences: Of each case in Dice, by challenger, the mean of the labels that both have.
    """

    comparisons: dict[tuple[str, str, str], Comparison]
    means: dict[tuple[str, str, str], float]
    emptiness: dict[tuple[str, str], Emptiness]
    ranking: Ranking
    case_scores: dict[tuple[str, str], NDArray[np.float64]]
    case_differences: dict[str, NDArray[np.float64]]

    def primary(self, entrant: str) -> Comparison:
        """The comparison that gives the verdict: Dice, mean of labels."""
        return self.comparisons[entrant, PRIMARY, MEAN]


def analyse(study: Study, scores: pd.DataFrame, margin: float, seed: int) -> Analysis:
    """Compares every challenger with the baseline.

    Args:
        study: What is compared.
        scores: As `measure` returns them.
        margin: Difference in Dice that does not matter, from 0 to 1.
        seed: Of the bootstrap.
    """
    names, labels = [entrant.name for entrant in study.entrants], list(study.labels.labels)
    folds = [case.fold for case in study.cases.values()]
    values = {(name, metric): _table(scores, study, name, metric) for name in names for metric in METRICS}
    comparisons = {}
    for metric in METRICS:
        for label in [MEAN, *labels]:
            column = None if label == MEAN else labels.index(label)
            for each in _compare(study, values, metric, label, column, folds, margin, seed):
                comparisons[each.entrant, metric, label] = each
    means = {}
    for (name, metric), table in values.items():
        means[name, metric, MEAN] = _mean(_case_means(table))
        means |= {(name, metric, label): _mean(table[:, i]) for i, label in enumerate(labels)}
    everywhere = np.all([np.isfinite(values[name, PRIMARY]) for name in names], axis=0)
    ranked = np.array([_case_means(np.where(everywhere, values[name, PRIMARY], np.nan)) for name in names])
    return Analysis(
        comparisons,
        means,
        {(name, label): _emptiness(scores, name, label) for name in names for label in labels},
        rank(names, ranked, folds, seed),
        {key: _case_means(table) for key, table in values.items()},
        {name: _case_means(values[name, PRIMARY] - values[study.baseline, PRIMARY]) for name in study.challengers},
    )


def _table(scores: pd.DataFrame, study: Study, name: str, metric: str) -> NDArray[np.float64]:
    """Values of cases by labels."""
    rows = scores[scores["entrant"] == name].pivot(index="case", columns="label", values=metric)
    return rows.loc[list(study.cases), list(study.labels.labels)].to_numpy(dtype=float)


def _compare(
    study: Study,
    values: dict[tuple[str, str], NDArray[np.float64]],
    metric: str,
    label: str,
    column: int | None,
    folds: Sequence[str],
    margin: float,
    seed: int,
) -> list[Comparison]:
    """All challengers in one metric and label: the family of Holm's correction."""
    base = values[study.baseline, metric]
    pairs = {}
    for name in study.challengers:
        own = values[name, metric]
        there = np.isfinite(own) & np.isfinite(base)
        both = [np.where(there, table, np.nan) for table in (own, base)]
        pairs[name] = [_case_means(table) if column is None else table[:, column] for table in both]
    estimates = {name: estimate(own - other, folds, margin, seed) for name, (own, other) in pairs.items()}
    adjusted = holm([each.p for each in estimates.values()])
    equivalent = holm([each.p_equivalent for each in estimates.values()])
    result = []
    for (name, each), p, p_equivalent in zip(estimates.items(), adjusted, equivalent, strict=True):
        own, other = pairs[name]
        judged = metric == PRIMARY
        result.append(
            Comparison(
                *(name, metric, label, _mean(own), _mean(other), each, p),
                p_equivalent if judged else float("nan"),
                len(folds) - each.cases,
                verdict(each, p, p_equivalent, margin, METRICS[metric].higher_is_better) if judged else None,
            )
        )
    return result


def _case_means(table: NDArray[np.float64]) -> NDArray[np.float64]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Mean of empty slice", RuntimeWarning)
        return np.nanmean(table, axis=1)


def _mean(values: NDArray[np.float64]) -> float:
    there = values[np.isfinite(values)]
    return float(there.mean()) if len(there) else float("nan")


def _emptiness(scores: pd.DataFrame, name: str, label: str) -> Emptiness:
    rows = scores[(scores["entrant"] == name) & (scores["label"] == label)]
    truth, predicted = rows["truth_voxels"] > 0, rows["predicted_voxels"] > 0
    return Emptiness(int((truth & ~predicted).sum()), int((~truth & predicted).sum()), int((~truth & ~predicted).sum()))
