"""Ranks over cases, and how firm the order is."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from nnunet_ext.compare.statistics import RESAMPLES, strata


@dataclass(frozen=True)
class Ranking:
    """The order of entrants.

    Attributes:
        mean_ranks: Mean over cases of the rank by Dice, 1 the best, by name; equal scores share their ranks' mean.
        places: Share of resamples in which the entrant takes place 1, 2, ..., by name; equals share the better place.
        cases: Number of cases ranked.
    """

    mean_ranks: dict[str, float]
    places: dict[str, list[float]]
    cases: int

    @property
    def order(self) -> list[str]:
        return sorted(self.mean_ranks, key=lambda name: self.mean_ranks[name])


def rank(
    names: Sequence[str], scores: NDArray[np.float64], folds: Sequence[str], seed: int, resamples: int = RESAMPLES
) -> Ranking:
    """Ranks entrants case by case and resamples the cases within folds.

    Args:
        names: Of the entrants.
        scores: Higher is better; cases without a score of everyone are left out.
        folds: Fold of each case.
        seed: Of the bootstrap.
        resamples: Of the bootstrap.

    Shape:
        scores (entrants, cases).
    """
    there = np.isfinite(scores).all(axis=0)
    if not there.any():
        nan = float("nan")
        return Ranking(dict.fromkeys(names, nan), {name: [nan] * len(names) for name in names}, 0)
    ranks = stats.rankdata(-scores[:, there], axis=0)
    generator = np.random.default_rng(seed)
    sums = np.zeros((len(names), resamples))
    for members in strata(np.asarray(folds)[there]):
        # How often each case is drawn, rather than which: the sums are then one product of matrices.
        drawn = generator.multinomial(len(members), np.full(len(members), 1 / len(members)), size=resamples)
        sums += ranks[:, members] @ drawn.T
    placed = stats.rankdata(sums.round(9), axis=0, method="min")
    places = {
        name: [float((row == place).mean()) for place in range(1, len(names) + 1)]
        for name, row in zip(names, placed, strict=True)
    }
    means = ranks.mean(axis=1)
    return Ranking(dict(zip(names, means.tolist(), strict=True)), places, int(there.sum()))
