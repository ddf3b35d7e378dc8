"""Maps on a grid of voxels, resampled to another grid over the same field of view."""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from math import log, pi

import torch
import torch.nn.functional as F
from torch import Tensor

_MAX_DISTORTION = 1.3
"""Largest ratio between the zooms of two axes at which a guessed grid is believed."""


@lru_cache
def resampling(old: int, new: int) -> Tensor:
    """Matrix R (new, old) that resamples `old` voxels along an axis to `new` voxels over the same length.

        R = C_new^T diag(sqrt(new / old)) C_old

    C_n holds the first min(old, new) orthonormal cosines cos(pi k (j + 1/2) / n) of DCT-II, sampled at the centres of n
    voxels. The cosines are the eigenfunctions of a mirrored axis, so that the ends need no padding, and their samples
    are orthogonal on every grid. Therefore

    * a map of cosines below both limits is resampled exactly; a constant stays itself;
    * down from up is the identity, R(new -> old) R(old -> new) = I for new >= old;
    * up keeps products per voxel, R^T R = (new / old) I: means, variances and the scores of attention stay;
    * down removes what the coarser grid cannot represent before it samples.

    In float64.
    """
    cosines = min(old, new)
    return (new / old) ** 0.5 * _cosines(new, cosines).T @ _cosines(old, cosines)


@lru_cache
def aligned(old: int, new: int) -> Tensor:
    """Matrix (new, old) of linear interpolation whose first and last points coincide, in float64.

    It is what `torch.nn.functional.interpolate` does with ``align_corners=True``.
    """
    identity = torch.eye(old, dtype=torch.float64)
    return F.interpolate(identity[None], new, mode="linear", align_corners=True)[0].T.contiguous()


def along(matrix: Tensor, x: Tensor, axis: int) -> Tensor:
    """`matrix` (m, n) applied to an axis of length n, computed in the matrix's type and returned in that of x."""
    return torch.tensordot(x.to(matrix.dtype), matrix, dims=([axis], [1])).movedim(-1, axis).to(x.dtype)


def resample(x: Tensor, old: Sequence[int], new: Sequence[int], axis: int = 0) -> Tensor:
    """Values per voxel, (..., prod(old), ...) along `axis` -> (..., prod(new), ...), by `resampling`."""
    return _by_axis(x, old, axis, [resampling(n, m) for n, m in zip(old, new, strict=True)])


def resample_input(weight: Tensor, old: Sequence[int], new: Sequence[int]) -> Tensor:
    """Weights (..., prod(old)) of a linear map that reads voxels -> (..., prod(new)).

    W' = W R(new -> old): the new map is resampled to the old grid, where W is applied. For a map x that the coarser of
    both grids represents, W' R(old -> new) x = W x.
    """
    matrices = [resampling(m, n).T for n, m in zip(old, new, strict=True)]
    return _by_axis(weight, old, weight.ndim - 1, matrices)


def grid_like(number: int, like: Sequence[int]) -> tuple[int, ...] | None:
    """The grid of `number` voxels whose proportions are nearest to those of another one; None if none is near."""

    def distortion(grid: Sequence[int]) -> float:
        zooms = [log(a / b) for a, b in zip(grid, like, strict=True)]
        return max(zooms) - min(zooms)

    best = min(_grids(number, len(like)), key=distortion)
    return best if distortion(best) <= log(_MAX_DISTORTION) else None


def _cosines(length: int, number: int) -> Tensor:
    """The first `number` rows of the orthonormal DCT-II of `length` voxels."""
    centres = (torch.arange(length, dtype=torch.float64) + 0.5) / length
    waves = torch.cos(pi * torch.arange(number, dtype=torch.float64)[:, None] * centres) * (2 / length) ** 0.5
    waves[0] /= 2**0.5
    return waves


def _by_axis(x: Tensor, old: Sequence[int], axis: int, matrices: Sequence[Tensor]) -> Tensor:
    grid = x.unflatten(axis, tuple(old))
    for offset, matrix in enumerate(matrices):
        grid = along(matrix, grid, axis + offset)
    return grid.flatten(axis, axis + len(matrices) - 1)


def _grids(number: int, axes: int) -> Iterator[tuple[int, ...]]:
    if axes == 1:
        yield (number,)
        return
    for first in range(1, number + 1):
        if number % first == 0:
            yield from ((first, *rest) for rest in _grids(number // first, axes - 1))
