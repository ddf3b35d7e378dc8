"""From paired differences to an estimate, its tests and the verdict."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from nnunet_ext.compare.mixed_model import MixedModel, TrainingNoise, fit
from nnunet_ext.compare.permutation import FEWEST_UNITS, sign_permutation_p
from nnunet_ext.compare.resampling import bootstrap_interval, group_means
from nnunet_ext.compare.statistics import LEVEL, RESAMPLES, Verdict, signed_rank_p


@dataclass(frozen=True)
class Estimate:
    """The difference between a challenger and the baseline over paired cases.

    Attributes:
        cases: Number of pairs, n.
        mean: Mean difference, challenger minus baseline.
        low: Lower end of the 95% interval of the mixed model; NaN with too few cases.
        high: Upper end.
        equivalence_low: Lower end of the 90% interval, which belongs to the two one-sided tests.
        equivalence_high: Upper end.
        direction: Sign of the sum of signed ranks of the groups' means: 1, -1 or 0.
        p: The largest p of the tests of no difference.
        p_model: Student's test of the mixed model.
        p_signed_rank: Wilcoxon's signed-rank test of the groups' means.
        p_permutation: Permutation of the folds' signs; NaN with fewer than six folds.
        p_equivalent: The largest p of the one-sided tests against -margin and +margin.
        conditional_low: Lower end of the bootstrap 95% interval under these trainings; NaN if it was not computed.
        conditional_high: Upper end.
        new_trainings: Whether the interval holds for new trainings of the methods, not only for those at hand.
        model: The mixed model; None without pairs.
        groups: Number of groups of the pairs, and so of values in the signed-rank test.
    """

    cases: int
    mean: float
    low: float
    high: float
    equivalence_low: float
    equivalence_high: float
    direction: int
    p: float
    p_model: float
    p_signed_rank: float
    p_permutation: float
    p_equivalent: float
    conditional_low: float
    conditional_high: float
    new_trainings: bool
    model: MixedModel | None
    groups: int = 0


def estimate(
    differences: ArrayLike,
    folds: Sequence[str],
    margin: float,
    *,
    seed: int = 0,
    groups: Sequence[str] | None = None,
    noise: TrainingNoise | None = None,
    resamples: int = RESAMPLES,
) -> Estimate:
    """Intervals and tests for paired differences.

    Args:
        differences: Difference of each case, NaN where a pair does not exist.
        folds: Fold of each case.
        margin: Largest difference that does not matter, above 0.
        seed: Seed of the bootstrap.
        groups: Group of each case; None: every case is its own group.
        noise: Variance of the trainings measured on repeats.
        resamples: Number of resamples of the bootstrap; 0 leaves it out.
    """
    values = np.asarray(differences, dtype=float)
    there, nan = np.isfinite(values), float("nan")
    members = np.asarray(groups if groups is not None else np.arange(len(values)), dtype=str)[there]
    values, kept = values[there], np.asarray(folds, dtype=str)[there]
    several = len(set(kept.tolist())) > 1 or bool(noise and noise.complete)
    if not len(values):
        return Estimate(0, nan, nan, nan, nan, nan, 0, 1.0, 1.0, 1.0, nan, 1.0, nan, nan, several, None)
    model = fit(values, kept, members, noise)
    permuted = len(set(kept.tolist())) >= FEWEST_UNITS

    def tests(alternative: str, against: float) -> list[float]:
        moved = values - against
        found = [model.p_value(alternative, against), signed_rank_p(group_means(moved, members), alternative)]
        return [*found, sign_permutation_p(moved, kept, alternative)] if permuted else found

    low, high = model.interval(LEVEL)
    p = tests("two-sided", 0)
    p_equivalent = max(*tests("greater", -margin), *tests("less", margin))
    ranked = group_means(values, members)
    direction = int(np.sign(stats.rankdata(np.abs(ranked)) @ np.sign(ranked)))
    conditional = (nan, nan)
    if resamples:
        conditional = bootstrap_interval(values, kept, members, np.random.default_rng(seed), resamples)
    equivalence_low, equivalence_high = model.interval(2 * LEVEL)
    return Estimate(
        cases=len(values),
        mean=float(values.mean()),
        low=low,
        high=high,
        equivalence_low=equivalence_low,
        equivalence_high=equivalence_high,
        direction=direction,
        p=max(p),
        p_model=p[0],
        p_signed_rank=p[1],
        p_permutation=p[2] if permuted else nan,
        p_equivalent=p_equivalent,
        conditional_low=conditional[0],
        conditional_high=conditional[1],
        new_trainings=several,
        model=model,
        groups=len(ranked),
    )


def verdict(
    difference: Estimate, p: float, p_equivalent: float, margin: float, higher_is_better: bool = True
) -> Verdict:
    """The verdict that a difference's intervals and Holm's adjusted p-values give.

    equivalent: the 90% interval lies within -margin and +margin, and the one-sided tests against them reject.
    better or worse: otherwise, the 95% interval excludes zero and the tests of no difference reject to the same side.
    inconclusive: otherwise.

    So a proven difference that is smaller than the margin is called equivalent.

    Args:
        difference: The estimate.
        p: Adjusted p of no difference.
        p_equivalent: Adjusted p of equivalence.
        margin: As in `estimate`.
        higher_is_better: Whether a positive difference is good.
    """
    within = -margin < difference.equivalence_low and difference.equivalence_high < margin
    if within and p_equivalent < LEVEL:
        return "equivalent"
    side = 1 if difference.low > 0 else -1 if difference.high < 0 else 0
    if p < LEVEL and side == difference.direction != 0:
        return "better" if (side > 0) == higher_is_better else "worse"
    return "inconclusive"
