"""Paired statistics: bootstrap interval, signed-rank tests, Holm's correction, and the verdict that they give."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Verdict = Literal["better", "worse", "equivalent", "undecided"]
LEVEL = 0.05
RESAMPLES = 10_000
_EXACT = 50  # values, as scipy
_CHUNK = 2_000_000  # drawn numbers at once


@dataclass(frozen=True)
class Estimate:
    """The difference between a challenger and the baseline over paired cases.

    Attributes:
        cases: n, pairs.
        mean: Mean difference, challenger minus baseline.
        low: Lower end of the 95% interval; NaN where fewer than two cases vary.
        high: Upper end.
        direction: 1, -1 or 0, of the sum of signed ranks: what the signed-rank test speaks for.
        p: Two-sided Wilcoxon signed-rank test of no difference.
        p_equivalent: The larger of the two one-sided signed-rank tests against -margin and +margin.
    """

    cases: int
    mean: float
    low: float
    high: float
    direction: int
    p: float
    p_equivalent: float


def estimate(
    differences: ArrayLike, folds: Sequence[str], margin: float, seed: int, resamples: int = RESAMPLES
) -> Estimate:
    """Interval and tests for paired differences.

    Args:
        differences: One a case, NaN where a pair is not there.
        folds: Fold of each case.
        margin: Largest difference that does not matter, above 0.
        seed: Of the bootstrap.
        resamples: Of the bootstrap.
    """
    values = np.asarray(differences, dtype=float)
    there = np.isfinite(values)
    values, kept = values[there], np.asarray(folds)[there]
    if not len(values):
        nan = float("nan")
        return Estimate(0, nan, nan, nan, 0, 1.0, 1.0)
    means = bootstrap_means(values, kept, np.random.default_rng(seed), resamples)
    low, high = interval(means, float(values.mean()), len(values) - len(strata(kept)))
    beyond = max(signed_rank_p(values + margin, "greater"), signed_rank_p(values - margin, "less"))
    direction = int(np.sign(stats.rankdata(np.abs(values)) @ np.sign(values)))
    return Estimate(len(values), float(values.mean()), low, high, direction, signed_rank_p(values), beyond)


def bootstrap_means(
    values: NDArray[np.float64], folds: ArrayLike, generator: np.random.Generator, resamples: int = RESAMPLES
) -> NDArray[np.float64]:
    """Means of resamples that keep the number of cases of every fold.

    The deviation of a fold's resampled mean from its mean is stretched by sqrt(n_k / (n_k - 1)), without which the
    interval of folds with few cases is too narrow. Folds of a single case are taken as one.

    Args:
        values: One a case.
        folds: Fold of each.
        generator: Source of random numbers.
        resamples: How many.

    Shape:
        values (n,); result (resamples,), NaN where there is a single case.

    Source:
        Rao and Wu, "Resampling inference with complex survey data", 1988.
    """
    result = np.full(resamples, values.mean())
    for members in strata(folds):
        part = values[members]
        if len(part) == 1:
            return np.full(resamples, np.nan)
        stretch = np.sqrt(len(part) / (len(part) - 1)) * len(part) / len(values)
        result += stretch * (_resampled_means(part, generator, resamples) - part.mean())
    return result


def interval(means: NDArray[np.float64], centre: float, freedom: int) -> tuple[float, float]:
    """The 2.5% and 97.5% quantiles of resampled means, expanded about the mean by t / z of the degrees of freedom.

    Without that, the interval of few cases is as much too narrow as a normal interval is beside Student's.

    Source:
        Hesterberg, "What teachers should know about the bootstrap", 2015, expanded percentile interval.
    """
    if freedom < 1:
        return float("nan"), float("nan")
    wider = stats.t.ppf(1 - LEVEL / 2, freedom) / stats.norm.ppf(1 - LEVEL / 2)
    low, high = centre + wider * (np.quantile(means, [LEVEL / 2, 1 - LEVEL / 2]) - centre)
    return float(low), float(high)


def strata(folds: ArrayLike) -> list[NDArray[np.intp]]:
    """Indices of the cases of each fold; the folds of a single case, or one such and the smallest other, together."""
    names = np.asarray(folds)
    groups = [np.flatnonzero(names == name) for name in sorted(set(names.tolist()))]
    single = [group for group in groups if len(group) == 1]
    larger = sorted((group for group in groups if len(group) > 1), key=len)
    if len(single) == 1 and larger:
        single.append(larger.pop(0))
    return [*larger, *([np.concatenate(single)] if single else [])]


def _resampled_means(
    values: NDArray[np.float64], generator: np.random.Generator, resamples: int
) -> NDArray[np.float64]:
    step = max(1, _CHUNK // len(values))
    parts = []
    for start in range(0, resamples, step):
        drawn = generator.integers(len(values), size=(min(step, resamples - start), len(values)))
        parts.append(values[drawn].mean(axis=1))
    return np.concatenate(parts)


def signed_rank_p(values: NDArray[np.float64], alternative: str = "two-sided") -> float:
    """p of the Wilcoxon signed-rank test that the values are symmetric about zero.

    Zeros are ranked but not counted (Pratt). Up to 50 values that are not zero exact, given the ties and zeros that
    there are; beyond, by scipy's normal approximation. (scipy is exact without ties alone, or tries every pattern of
    signs one by one.)

    Args:
        values: Differences.
        alternative: two-sided, greater or less than zero.
    """
    if not values.any():
        return 1.0
    if np.count_nonzero(values) > _EXACT:
        return float(stats.wilcoxon(values, zero_method="pratt", alternative=alternative, method="asymptotic").pvalue)
    doubled = (2 * stats.rankdata(np.abs(values))).astype(int)  # ranks of ties end in a half
    # Share of the sign patterns by their sum of positive ranks, one rank after the other.
    shares = np.ones(1)
    for rank in doubled[values != 0]:
        shares = (np.pad(shares, (0, rank)) + np.pad(shares, (rank, 0))) / 2
    seen = int(doubled[values > 0].sum())
    tails = {"greater": float(shares[seen:].sum()), "less": float(shares[: seen + 1].sum())}
    return min(1.0, 2 * min(tails.values())) if alternative == "two-sided" else tails[alternative]


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values: compared with the level, they keep the chance of any false one below it.

    Sorted ascending, p_(i) is multiplied by m - i + 1, made monotone and at most 1.

    Source:
        Holm, "A simple sequentially rejective multiple test procedure", 1979.
    """
    order = np.argsort(p_values, kind="stable")
    stepped = np.asarray(p_values, dtype=float)[order] * np.arange(len(order), 0, -1)
    adjusted = np.empty(len(order))
    adjusted[order] = np.minimum(np.maximum.accumulate(stepped), 1)
    return adjusted.tolist()


def verdict(
    difference: Estimate, p: float, p_equivalent: float, margin: float, higher_is_better: bool = True
) -> Verdict:
    """What a difference says, from its 95% interval and Holm's adjusted p-values.

    equivalent: the interval lies within -margin and +margin, and both one-sided tests against them reject.
    better or worse: otherwise, the interval leaves out zero and the test of no difference rejects to the same side.
    undecided: otherwise.

    So a proven difference that is smaller than the margin is called equivalent.

    Args:
        difference: The estimate.
        p: Adjusted.
        p_equivalent: Adjusted.
        margin: As in `estimate`.
        higher_is_better: Whether a positive difference is good.
    """
    if -margin < difference.low and difference.high < margin and p_equivalent < LEVEL:
        return "equivalent"
    side = 1 if difference.low > 0 else -1 if difference.high < 0 else 0
    if p < LEVEL and side == difference.direction != 0:
        return "better" if (side > 0) == higher_is_better else "worse"
    return "undecided"
