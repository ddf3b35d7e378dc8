"""How many folds, cases or repeats would decide a comparison, if its mean and variances stay as they are."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy import stats

from nnunet_ext.compare.inference import Estimate
from nnunet_ext.compare.mixed_model import MixedModel
from nnunet_ext.compare.statistics import LEVEL

_MOST_FOLDS, _MOST_REPEATS, _MOST_TIMES = 20, 20, 50


@dataclass(frozen=True)
class Needed:
    """Sizes of a study that would decide, each with the other sizes unchanged.

    Attributes:
        cases: Number of cases; None: up to 50 times as many would not do.
        folds: Number of folds; None: up to 20 would not do.
        repeats: Number of trainings of each fold; None: up to 20 would not do.
    """

    cases: int | None
    folds: int | None
    repeats: int | None


def needed(found: Estimate, margin: float, repeats: int, challengers: int = 1) -> Needed | None:
    """The sizes that would decide; None without a model.

    Args:
        found: The estimate of an inconclusive comparison.
        margin: As in `estimate`.
        repeats: Trainings of each fold so far. All of the trainings' variance is taken for that of random seeds.
        challengers: Number of comparisons, over which the level is divided.
    """
    model = found.model
    if model is None or not model.freedom:
        return None
    folds, _, cases = model.counts
    level = LEVEL / challengers
    # Signed ranks of n groups cannot go below 2 / 2^n.
    fewest = int(np.ceil(np.log2(2 / level))) + 1
    scarce = found.groups < fewest
    if scarce or _first([(cases, _half(model, level))], found.mean, margin) is not None:
        # The signed ranks, not the interval, leave it open.
        return Needed(_cases_for_ranks(found, level, fewest), None, None)
    times = [float(t) for t in np.geomspace(1, _MOST_TIMES, 400) if round(cases * t) > cases]
    more_cases = ((round(cases * t), _half(model, level, case_times=t)) for t in times)
    more_folds = ((k, _half(model, level, folds=k)) for k in range(folds + 1, min(_MOST_FOLDS, cases) + 1) if folds > 1)
    numbers = range(repeats + 1, _MOST_REPEATS + 1) if model.shares[0] else ()
    more_repeats = ((r, _half(model, level, training_times=r / repeats)) for r in numbers)
    return Needed(*(_first(sizes, found.mean, margin) for sizes in (more_cases, more_folds, more_repeats)))


def _cases_for_ranks(found: Estimate, level: float, fewest: int) -> int | None:
    """Cases with which the signed-rank test would reject, as its statistic grows with the root of their number."""
    times = max(1 + 1 / found.cases, fewest / found.groups)
    if 0 < found.p_signed_rank < 1 and found.groups >= fewest:
        times = max(times, float((stats.norm.isf(level / 2) / stats.norm.isf(found.p_signed_rank / 2)) ** 2))
    return int(np.ceil(found.cases * times)) if times <= _MOST_TIMES else None


def _half(
    model: MixedModel, level: float, *, case_times: float = 1.0, folds: int | None = None, training_times: float = 1.0
) -> tuple[float, float]:
    """Half the length of the two-sided interval and of that of two one-sided tests, for a study of another size."""
    old_folds, groups, _ = model.counts
    new_folds = folds or old_folds
    training = model.shares[0] * old_folds / new_folds / training_times
    rest = (model.shares[1] + model.shares[2]) / case_times
    freedoms = (max(1.0, new_folds - 1.0), max(1.0, groups * case_times - new_folds))
    total = training + rest
    if not total > 0:
        return 0.0, 0.0
    freedom = total**2 / (training**2 / freedoms[0] + rest**2 / freedoms[1])
    wide, narrow = (float(stats.t.ppf(1 - each / 2, freedom) * np.sqrt(total)) for each in (level, 2 * level))
    return wide, narrow


def _first(sizes: Iterable[tuple[int, tuple[float, float]]], mean: float, margin: float) -> int | None:
    for size, (wide, narrow) in sizes:
        if wide < abs(mean) or abs(mean) + narrow < margin:
            return size
    return None
