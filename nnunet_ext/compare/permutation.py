"""Permutation of signs: the test of a difference whose units are whole trainings or groups."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

FEWEST_UNITS = 6
"""Fewer units have fewer than 64 patterns of signs, none of which is rarer than 3% to both sides."""
_EXACT_UNITS = 14
_PATTERNS = 20_000


def sign_permutation_p(
    values: NDArray[np.float64], units: ArrayLike, alternative: str = "two-sided", seed: int = 0
) -> float:
    """p of the test that the units' sums are symmetric about zero.

    Up to 14 units all 2^units patterns of signs are tried; beyond, the observed pattern and 19,999 random ones.

    Args:
        values: Difference of each case.
        units: Unit of each case, for example its fold; the signs of its cases change together.
        alternative: two-sided, greater or less than zero.
        seed: Seed of the drawn patterns.
    """
    index = np.unique(np.asarray(units), return_inverse=True)[1]
    sums = np.bincount(index, np.asarray(values, dtype=float))
    seen, slack = float(sums.sum()), 1e-12 * float(np.abs(sums).sum())
    if len(sums) <= _EXACT_UNITS:
        patterns = (np.arange(2 ** len(sums))[:, None] >> np.arange(len(sums)) & 1) * 2.0 - 1
    else:
        patterns = np.random.default_rng(seed).integers(2, size=(_PATTERNS, len(sums))) * 2.0 - 1
        patterns[0] = 1
    totals = patterns @ sums
    tails = {"greater": float((totals >= seen - slack).mean()), "less": float((totals <= seen + slack).mean())}
    return min(1.0, 2 * min(tails.values())) if alternative == "two-sided" else tails[alternative]
