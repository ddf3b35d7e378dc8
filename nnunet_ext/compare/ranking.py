"""Ranks over cases, and how stable the order is."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from nnunet_ext.compare.resampling import units
from nnunet_ext.compare.statistics import RESAMPLES, strata


@dataclass(frozen=True)
class Ranking:
    """The order of the methods.

    Attributes:
        mean_ranks: Mean over cases of the rank by Dice, 1 the best, by name; equal scores share their mean
            rank.
        places: Share of resamples in which the method takes place 1, 2, ..., by name; equals share the better place.
        cases: Number of cases ranked.
    """

    mean_ranks: dict[str, float]
    places: dict[str, list[float]]
    cases: int

    @property
    def order(self) -> list[str]:
        return sorted(self.mean_ranks, key=lambda name: self.mean_ranks[name])


def rank(
    names: Sequence[str],
    scores: NDArray[np.float64],
    folds: Sequence[str],
    seed: int,
    *,
    groups: Sequence[str] | None = None,
    resamples: int = RESAMPLES,
) -> Ranking:
    """Ranks the methods case by case and resamples whole groups of cases within folds.

    Args:
        names: Names of the methods.
        scores: Higher is better; cases without a score are left out.
        folds: Fold of each case.
        seed: Seed of the bootstrap.
        groups: Group of each case; None: every case is its own group.
        resamples: Number of resamples.

    Shape:
        scores (methods, cases).
    """
    there = np.asarray(np.isfinite(scores).all(axis=0))
    if not there.any():
        nan = float("nan")
        return Ranking(dict.fromkeys(names, nan), {name: [nan] * len(names) for name in names}, 0)
    ranks = stats.rankdata(-scores[:, there], axis=0)
    members_of = np.asarray(groups if groups is not None else np.arange(scores.shape[1]))
    drawn_from = units(np.asarray(folds)[there], members_of[there])
    by_unit = np.array([np.bincount(drawn_from.of_case, row) for row in ranks])
    generator = np.random.default_rng(seed)
    sums = np.zeros((len(names), resamples))
    for members in strata(drawn_from.folds):
        # How often each group is drawn, rather than which: the sums are then one product of matrices.
        drawn = generator.multinomial(len(members), np.full(len(members), 1 / len(members)), size=resamples)
        sums += by_unit[:, members] @ drawn.T
    placed = stats.rankdata(sums.round(9), axis=0, method="min")
    places = {
        name: [float((row == place).mean()) for place in range(1, len(names) + 1)]
        for name, row in zip(names, placed, strict=True)
    }
    means = ranks.mean(axis=1)
    return Ranking(dict(zip(names, means.tolist(), strict=True)), places, int(there.sum()))
