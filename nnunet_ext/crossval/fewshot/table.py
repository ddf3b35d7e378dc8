"""The table of a protocol: Dice of every class, method and fold, with intervals over patients and over supports."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from nnunet_ext.compare.analysis import MEAN, of_label, score_table
from nnunet_ext.compare.metrics import METRICS, PRIMARY
from nnunet_ext.compare.mixed_model import fit, training_noise
from nnunet_ext.compare.report.table import DASH, Table
from nnunet_ext.compare.resampling import bootstrap_interval
from nnunet_ext.compare.result import Outcome
from nnunet_ext.compare.statistics import LEVEL

_DICE = METRICS[PRIMARY]
MEAN_OF_CLASSES = "mean of classes"


@dataclass(frozen=True)
class Line:
    """Dice of a method in one class, or in the mean of classes.

    Attributes:
        label: The class.
        method: The method.
        folds: Mean of each fold, over its cases and supports.
        mean: Mean over cases and supports.
        over_patients: 95% interval that resamples the patients within folds, the supports as they are.
        over_supports: 95% interval that resamples the supports within folds, the patients as they are; NaN with a
            single support per fold.
        overall: 95% interval of a mixed model of trainings and supports (folds), patients and cases.
        cases: Number of cases that have the class.
    """

    label: str
    method: str
    folds: tuple[float, ...]
    mean: float
    over_patients: tuple[float, float]
    over_supports: tuple[float, float]
    overall: tuple[float, float]
    cases: int


def lines(outcome: Outcome) -> list[Line]:
    """All lines of the table, class by class; the mean of classes comes last."""
    study = outcome.study
    names = list(study.labels.labels)
    result = []
    for column, label in [*enumerate(names), *([(None, MEAN)] if len(names) > 1 else [])]:
        for method in (each.name for each in study.methods):
            values = of_label(score_table(outcome.scores, study, method, PRIMARY), column)
            result.append(_line(outcome, label or MEAN_OF_CLASSES, method, values))
    return result


def _line(outcome: Outcome, label: str, method: str, values: NDArray[np.float64]) -> Line:
    """Shape: values (supports, cases), NaN where the truth lacks the class."""
    study, seed = outcome.study, outcome.settings.seed
    there = np.asarray(np.isfinite(values).all(axis=0))
    values = values[:, there]
    folds = np.array([case.fold for case in study.cases.values()])[there]
    patients = np.array([study.groups[name] if study.groups else name for name in study.cases])[there]
    nan = float("nan")
    if not values.size:
        return Line(label, method, (nan,) * len(study.folds), nan, (nan, nan), (nan, nan), (nan, nan), 0)
    of_case, supports = values.mean(axis=0), np.arange(len(values))
    per_support = np.array([[f"{fold} {support}" for fold in folds] for support in supports])
    means = tuple(float(of_case[folds == fold].mean()) if (folds == fold).any() else nan for fold in study.folds)
    return Line(
        label,
        method,
        means,
        float(of_case.mean()),
        bootstrap_interval(of_case, folds, patients, np.random.default_rng(seed)),
        bootstrap_interval(
            values.ravel(), np.tile(folds, len(values)), per_support.ravel(), np.random.default_rng(seed)
        )
        if len(values) > 1
        else (nan, nan),
        fit(of_case, folds, patients, training_noise([values], folds)).interval(LEVEL),
        int(there.sum()),
    )


def as_table(found: Sequence[Line], folds: Sequence[str]) -> Table:
    """The lines as a table in Dice points."""
    rows = [
        [
            *(line.label, line.method, _DICE.shown(line.mean)),
            *(_interval(each) for each in (line.over_patients, line.over_supports, line.overall)),
            *(_DICE.shown(each) for each in line.folds),
            str(line.cases),
        ]
        for line in found
    ]
    intervals = [f"95% over {what}" for what in ("patients", "supports", "patients, supports and trainings")]
    heads = ["class", "method", "Dice", *intervals, *(f"fold {fold}" for fold in folds), "cases"]
    return Table("Dice by class and fold", heads, rows, text_columns=(0, 1))


def _interval(ends: tuple[float, float]) -> str:
    return f"{_DICE.shown(ends[0])} to {_DICE.shown(ends[1])}" if np.isfinite(ends).all() else DASH


def as_rows(found: Sequence[Line], folds: Sequence[str]) -> pd.DataFrame:
    """The lines as numbers from 0 to 1, for a file."""
    rows = []
    for line in found:
        row = {"class": line.label, "method": line.method, "dice": line.mean, "cases": line.cases}
        for name in ("over_patients", "over_supports", "overall"):
            row |= dict(zip((f"{name}_low", f"{name}_high"), getattr(line, name), strict=True))
        rows.append(row | {f"fold_{fold}": mean for fold, mean in zip(folds, line.folds, strict=True)})
    return pd.DataFrame(rows)


def dice_rows(outcome: Outcome, supports: pd.DataFrame) -> pd.DataFrame:
    """One row per fold, class, support, case and method; cases whose truth lacks the class have no Dice.

    Args:
        outcome: The comparison.
        supports: Support scans by fold, repeat and label; see `draws_as_rows`.
    """
    joined = outcome.scores.merge(supports, on=["fold", "repeat", "label"], validate="many_to_one")
    renamed = joined.rename(columns={"label": "class", "entrant": "method"})
    return renamed[["fold", "class", "repeat", "support", "case", "method", "dice"]].sort_values(
        ["fold", "class", "repeat", "case", "method"], kind="stable"
    )
