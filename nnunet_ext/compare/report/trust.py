"""Warnings about trainings and folds on which no conclusion should rest."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from nnunet_ext.compare.metrics import METRICS, PRIMARY
from nnunet_ext.compare.result import Outcome
from nnunet_ext.nnunet.training_log import TrainingLog

FEWEST_EPOCHS = 50
CONVERGED_RISE = 0.01
"""Rise of the pseudo Dice over the last tenth of the epochs above which a training has not converged."""
_PART = 0.1
_FEWEST_IN_PART = 2
_FEWEST_FOLDS = 3
_DICE = METRICS[PRIMARY]


def warnings(outcome: Outcome) -> list[str]:
    """Sentences about absurd budgets, trainings that were still improving, and folds that contradict each other."""
    short = [f"{name} ({cost.epochs})" for name, cost in outcome.costs.items() if 0 < cost.epochs < FEWEST_EPOCHS]
    found = []
    if short:
        found.append(
            f"Trained for fewer than {FEWEST_EPOCHS} epochs: {', '.join(short)}; nnU-Net's default is 1000. The result "
            "shows how trainings start, not which trainer is better."
        )
    rises = {name: [rise(log) for log in logs.values()] for name, logs in outcome.logs.items()}
    steep = {name: [value for value in values if value > CONVERGED_RISE] for name, values in rises.items()}
    unfinished = {name: max(values) for name, values in steep.items() if values}
    if unfinished:
        texts = [f"{name} by up to {_DICE.shown(value)} points" for name, value in unfinished.items()]
        found.append(
            f"Not converged: over the last tenth of the epochs the pseudo Dice still rose, {', '.join(texts)}. Longer "
            "trainings could reverse the order."
        )
    return found + [text for name in outcome.study.challengers if (text := _contradiction(outcome, name))]


def rise(log: TrainingLog) -> float:
    """Mean pseudo Dice of the last tenth of a training's epochs minus that of the tenth before; NaN if too few."""
    values = log.curve("pseudo_dice")[1]
    part = int(_PART * len(values))
    if part < _FEWEST_IN_PART:
        return float("nan")
    return float(np.mean(values[-part:]) - np.mean(values[-2 * part : -part]))


def _contradiction(outcome: Outcome, name: str) -> str:
    """A sentence if a verdict rests on a mean that some fold contradicts; else nothing."""
    found = outcome.analysis.primary(name)
    if found.verdict not in ("better", "worse"):
        return ""
    means = _fold_means(outcome, outcome.analysis.case_differences[name])
    sign = 1 if found.estimate.mean > 0 else -1
    against = [fold for fold, mean in means.items() if sign * mean < 0]
    if len(means) < _FEWEST_FOLDS or not against:
        return ""
    spread = f"{_DICE.shown(min(means.values()), signed=True)} to {_DICE.shown(max(means.values()), signed=True)}"
    return (
        f"{name} is {found.verdict} on average, but fold{'s' if len(against) > 1 else ''} {', '.join(against)} "
        f"point{'' if len(against) > 1 else 's'} the other way: the folds' mean differences run from {spread} points."
    )


def _fold_means(outcome: Outcome, differences: NDArray[np.float64]) -> dict[str, float]:
    folds: Sequence[str] = [case.fold for case in outcome.study.cases.values()]
    values = {
        fold: [d for d, own in zip(differences, folds, strict=True) if own == fold and np.isfinite(d)]
        for fold in dict.fromkeys(folds)
    }
    return {fold: float(np.mean(each)) for fold, each in values.items() if each}
