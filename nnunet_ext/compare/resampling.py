"""Bootstrap that draws whole groups of cases within folds."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nnunet_ext.compare.statistics import RESAMPLES, interval, strata


@dataclass(frozen=True)
class Units:
    """The groups of cases that are drawn as a whole.

    Attributes:
        of_case: Unit of each case.
        folds: Fold of each unit.
        sizes: Number of cases of each unit.
    """

    of_case: NDArray[np.intp]
    folds: NDArray[np.str_]
    sizes: NDArray[np.intp]


def units(folds: ArrayLike, groups: ArrayLike) -> Units:
    """Groups within folds; where a group has cases in several folds, whole groups without folds."""
    names, members = np.asarray(folds, dtype=str), np.asarray(groups, dtype=str)
    of_case = np.unique(members, return_inverse=True)[1]
    fold_of_unit = np.empty(of_case.max() + 1, dtype=names.dtype)
    fold_of_unit[of_case] = names
    if (fold_of_unit[of_case] != names).any():
        fold_of_unit[:] = names[0]
    return Units(of_case, fold_of_unit, np.bincount(of_case))


def bootstrap_means(
    values: NDArray[np.float64],
    folds: ArrayLike,
    groups: ArrayLike,
    generator: np.random.Generator,
    resamples: int = RESAMPLES,
) -> NDArray[np.float64]:
    """Means of resamples that keep the number of groups of every fold.

    The deviation of a fold's resampled mean from its mean is stretched by sqrt(n_k / (n_k - 1)) for n_k groups, without
    which the interval of folds with few groups is too narrow. Folds of a single group are taken as one.

    Args:
        values: Value of each case.
        folds: Fold of each case.
        groups: Group of each case.
        generator: Source of random numbers.
        resamples: Number of resamples.

    Shape:
        values (n,); result (resamples,), NaN where there is a single group.

    Source:
        Rao and Wu, "Resampling inference with complex survey data", 1988.
    """
    drawn_from = units(folds, groups)
    sums = np.bincount(drawn_from.of_case, values)
    result = np.full(resamples, values.mean())
    for members in strata(drawn_from.folds):
        count, sizes = len(members), drawn_from.sizes[members]
        if count == 1:
            return np.full(resamples, np.nan)
        # How often each group is drawn, rather than which: the sums are then one product of matrices.
        drawn = generator.multinomial(count, np.full(count, 1 / count), size=resamples)
        centre = sums[members].sum() / sizes.sum()
        deviation = (drawn @ sums[members]) / (drawn @ sizes) - centre
        result += np.sqrt(count / (count - 1)) * sizes.sum() / len(values) * deviation
    return result


def bootstrap_interval(
    values: NDArray[np.float64],
    folds: ArrayLike,
    groups: ArrayLike,
    generator: np.random.Generator,
    resamples: int = RESAMPLES,
) -> tuple[float, float]:
    """The 95% interval of the mean by `bootstrap_means` and `interval`; NaN where there are too few groups."""
    means = bootstrap_means(values, folds, groups, generator, resamples)
    drawn = units(folds, groups)
    return interval(means, float(values.mean()), len(drawn.sizes) - len(strata(drawn.folds)))


def group_means(values: NDArray[np.float64], groups: ArrayLike) -> NDArray[np.float64]:
    """Mean of each group's cases."""
    index = np.unique(np.asarray(groups, dtype=str), return_inverse=True)[1]
    return np.bincount(index, values) / np.bincount(index)
