"""Mean of paired differences with random effects of trainings, groups and cases.

    d_i = mu + t(fold of i) + g(group of i) + e_i

t is the effect of a fold's trainings, g that of a group of cases (a patient, a site) nested in its fold, e that of a
case. The variance components are the ANOVA estimates of a nested, unbalanced design (Henderson's method 1), negative
ones set to zero; the degrees of freedom of the mean's variance are Satterthwaite's. Where the folds happen to differ
less than their cases would make them, t is set to zero, which would trust five folds too much: there the interval is
the wider one of the two with and without the negative component, and the p-value the larger one.

Source:
    Searle, Casella and McCulloch, "Variance Components", 1992, sections 3.6 and 5.2.
    Satterthwaite, "An approximate distribution of estimates of variance components", 1946.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats


@dataclass(frozen=True)
class TrainingNoise:
    """Variance that the random seed gives to the mean difference of one fold, measured on repeats.

    Attributes:
        variance: Variance of the fold effect t due to seeds alone.
        freedom: Degrees of freedom of the estimate.
        complete: Whether both methods were repeated, so that nothing of the seeds' variance is missing.
    """

    variance: float
    freedom: float
    complete: bool


@dataclass(frozen=True)
class MixedModel:
    """The fitted model.

    Attributes:
        mean: Mean difference over cases.
        variance: Variance of the mean.
        freedom: Satterthwaite's degrees of freedom of `variance`; 0 if there are too few cases.
        unbounded: Variance of the mean and its degrees of freedom where the variance of t may be negative; None if it
            is not, or if the result is not above zero.
        components: Variance of t, g and e.
        shares: Contributions of t, g and e to `variance`.
        counts: Number of folds, groups and cases.
        grouped: Whether groups have several cases, so that g can be told from e.
    """

    mean: float
    variance: float
    freedom: float
    unbounded: tuple[float, float] | None
    components: tuple[float, float, float]
    shares: tuple[float, float, float]
    counts: tuple[int, int, int]
    grouped: bool

    def interval(self, level: float) -> tuple[float, float]:
        """Student's interval of the mean that covers it with probability 1 - level; NaN without degrees of freedom."""
        if not self.freedom:
            return float("nan"), float("nan")
        half = max(float(stats.t.ppf(1 - level / 2, freedom) * np.sqrt(v)) for v, freedom in self._variances())
        return self.mean - half, self.mean + half

    def p_value(self, alternative: str = "two-sided", against: float = 0.0) -> float:
        """Student's test of the mean.

        Args:
            alternative: two-sided, greater or less than `against`.
            against: The mean that is tested.
        """
        if not self.freedom:
            return 1.0
        distance = self.mean - against
        if not self.variance > 0:
            shown = {"two-sided": distance != 0, "greater": distance > 0, "less": distance < 0}[alternative]
            return 0.0 if shown else 1.0
        found = []
        for variance, freedom in self._variances():
            value = distance / np.sqrt(variance)
            tails = {"greater": float(stats.t.sf(value, freedom)), "less": float(stats.t.cdf(value, freedom))}
            found.append(min(1.0, 2 * min(tails.values())) if alternative == "two-sided" else tails[alternative])
        return max(found)

    def _variances(self) -> list[tuple[float, float]]:
        return [(self.variance, self.freedom), *([self.unbounded] if self.unbounded else [])]


def fit(
    values: NDArray[np.float64], folds: ArrayLike, groups: ArrayLike, noise: TrainingNoise | None = None
) -> MixedModel:
    """Fits the model.

    Groups that have cases in several folds are taken once as nested in folds and once as independent of them; the
    larger variance of the mean is kept.

    Args:
        values: Difference of each case.
        folds: Fold of each case.
        groups: Group of each case.
        noise: Variance of the trainings measured on repeats, a lower bound of the variance of t.

    Shape:
        values (n,), n at least 1.
    """
    fold, group = (np.unique(np.asarray(each), return_inverse=True)[1] for each in (folds, groups))
    nested = np.unique(fold * (group.max() + 1) + group, return_inverse=True)[1]
    fitted = _fit(values, fold, nested, noise)
    if nested.max() > group.max():
        crossed = _fit(values, np.zeros_like(fold), group, None)
        if crossed.variance > fitted.variance:
            return crossed
    return fitted


def _fit(
    values: NDArray[np.float64], fold: NDArray[np.intp], group: NDArray[np.intp], noise: TrainingNoise | None
) -> MixedModel:
    n, mean = len(values), float(values.mean())
    fold_sizes, group_sizes = np.bincount(fold), np.bincount(group)
    fold_means = np.bincount(fold, values) / fold_sizes
    group_means = np.bincount(group, values) / group_sizes
    fold_of_group = np.zeros(len(group_sizes), dtype=np.intp)
    fold_of_group[group] = fold
    freedoms = np.array([len(fold_sizes) - 1, len(group_sizes) - len(fold_sizes), n - len(group_sizes)], dtype=float)
    sums = np.array(
        [
            (fold_sizes * (fold_means - mean) ** 2).sum(),
            (group_sizes * (group_means - fold_means[fold_of_group]) ** 2).sum(),
            ((values - group_means[group]) ** 2).sum(),
        ]
    )
    squares = np.divide(sums, freedoms, out=np.zeros(3), where=freedoms > 0)
    # Each component as weights of the three mean squares, and of the repeats' estimate in the last place.
    estimates = np.append(squares, noise.variance if noise else 0.0)
    freedoms = np.append(freedoms, noise.freedom if noise else 0.0)
    of_fold, of_group, of_case = (np.zeros(4) for _ in range(3))
    within = float((group_sizes**2 / fold_sizes[fold_of_group]).sum())
    if freedoms[2]:
        of_case[2] = 1
        if freedoms[1]:
            of_group[1], of_group[2] = 1, -1
            of_group = of_group * max(0.0, freedoms[1] / (n - within)) if of_group @ estimates > 0 else np.zeros(4)
    elif freedoms[1]:
        of_case[1] = 1
    if freedoms[0]:
        spread = (within - float((group_sizes**2).sum()) / n) / freedoms[0]
        size = (n - float((fold_sizes**2).sum()) / n) / freedoms[0]
        of_fold[0] = 1
        of_fold = (of_fold - of_case - spread * of_group) / size
    scales = (float((fold_sizes**2).sum()) / n**2, float((group_sizes**2).sum()) / n**2, 1 / n)
    unbounded = None
    if not of_fold @ estimates > 0:
        with_negative = scales[0] * of_fold + scales[1] * of_group + scales[2] * of_case
        if freedoms[0] and with_negative @ estimates > 0:
            unbounded = (float(with_negative @ estimates), _satterthwaite(with_negative * estimates, freedoms))
        of_fold = np.zeros(4)
    if noise and noise.variance > of_fold @ estimates:
        of_fold = np.array([0.0, 0, 0, 1])
    parts = [scale * weights for scale, weights in zip(scales, (of_fold, of_group, of_case), strict=True)]
    total = np.sum(parts, axis=0)
    variance = float(total @ estimates)
    freedom = _satterthwaite(total * estimates, freedoms) if variance > 0 else float(freedoms[:3].max())
    return MixedModel(
        mean,
        max(0.0, variance),
        freedom,
        unbounded,
        (float(of_fold @ estimates), float(of_group @ estimates), float(of_case @ estimates)),
        (float(parts[0] @ estimates), float(parts[1] @ estimates), float(parts[2] @ estimates)),
        (len(fold_sizes), len(group_sizes), n),
        len(group_sizes) < n,
    )


def _satterthwaite(terms: NDArray[np.float64], freedoms: NDArray[np.float64]) -> float:
    """Degrees of freedom of a sum of multiples of mean squares."""
    used = freedoms > 0
    return float(terms.sum() ** 2 / (terms[used] ** 2 / freedoms[used]).sum())


def training_noise(runs: Sequence[NDArray[np.float64]], folds: ArrayLike) -> TrainingNoise | None:
    """Variance that random seeds give to the mean difference of a fold, from the repeats of the two methods.

    Within a fold, cases by repeats is a two-way table. The variance of a training's effect is (mean square of repeats
    - mean square of the interaction) / cases, pooled over folds; a method's mean over R repeats has a R-th of it.

    Args:
        runs: Scores of each method.
        folds: Fold of each case.

    Shape:
        each of runs (repeats, n).

    Returns:
        None if no method was repeated.
    """
    names = np.asarray(folds)
    parts, freedoms = [], []
    for table in runs:
        repeats = len(table)
        if repeats < 2:
            continue
        effects, weights = [], []
        for name in np.unique(names):
            part = table[:, names == name]
            means, cases = part.mean(axis=1), part.shape[1]
            between = float(means.var(ddof=1))
            rest = part - means[:, None] - part.mean(axis=0) + part.mean()
            spread = float((rest**2).sum()) / ((cases - 1) * (repeats - 1)) / cases if cases > 1 else 0.0
            effects.append(between - spread)
            weights.append(cases)
        parts.append(max(0.0, float(np.average(effects, weights=weights))) / repeats)
        freedoms.append(len(effects) * (repeats - 1))
    if not parts:
        return None
    total = sum(parts)
    weighted = sum(part**2 / freedom for part, freedom in zip(parts, freedoms, strict=True))
    return TrainingNoise(total, total**2 / weighted if weighted else float(sum(freedoms)), len(parts) == len(runs))
