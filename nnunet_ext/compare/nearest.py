"""Distances from points on a grid to the nearest of other points on the same grid.

Where two surfaces are close, most points find their nearest neighbour within a few voxels: a table of offsets, sorted
by distance, is looked up for all points at once. As soon as that has cost an eighth of what it would take to find all
remaining neighbours in one go, they are left to a feature transform of the box around all points or, where that box is
large, to a k-d tree, whose cost does not grow with the box.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import cKDTree

Points = NDArray[np.int64]
_REACH = 4.5  # voxels of the largest size, the radius of the table of offsets
_MOST_OFFSETS = 400
_MOST_CELLS = 2**28  # of the lookup table, one byte each
_MOST_TRANSFORMED = 2**25  # cells of a feature transform, 12 bytes each
# Nanoseconds, by which one of several ways to the same result is chosen.
_CELL, _QUERY, _TARGET = 80, 1600, 250
_LOOK_UP, _STEP, _LOOK_UP_SHARE = 2, 5000, 1 / 8


def nearest_distances(points: Points, targets: Points, spacing: Sequence[float]) -> NDArray[np.float64]:
    """Distance of each point to the nearest target.

    Args:
        points: Indices of voxels.
        targets: Indices of voxels.
        spacing: Size of a voxel along each axis, in mm.

    Shape:
        points (n, axes), targets (m, axes); result (n,), in mm, infinite where there is no target.
    """
    distances = np.full(len(points), np.inf)
    if not len(points) or not len(targets):
        return distances
    sizes = tuple(float(size) for size in spacing)
    left = _look_around(distances, points, targets, sizes)
    if len(left):
        asked = points[left]
        by_tree = len(left) * _QUERY + len(targets) * _TARGET
        find = _by_transform if _transform_cost(_box(asked, targets)[1]) < by_tree else _by_tree
        # From whole voxels, so that equal distances are equal numbers whatever their position.
        steps = (find(asked, targets, sizes) - asked) * np.array(sizes)
        distances[left] = np.sqrt((steps**2).sum(axis=1))
    return distances


def _box(points: Points, targets: Points) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First corner and shape of the box around all points and targets."""
    columns = [(*own, *other) for own, other in zip(_ends(points), _ends(targets), strict=True)]
    low = np.array([min(column) for column in columns])
    return low, np.array([max(column) for column in columns]) - low + 1


def _ends(points: Points) -> list[tuple[int, int]]:
    """Lowest and highest index along each axis; reducing columns one by one is many times faster than `axis=0`."""
    return [(int(column.min()), int(column.max())) for column in points.T]


def _transform_cost(shape: NDArray[np.int64]) -> float:
    """Nanoseconds of a feature transform; infinite if it would take too much memory."""
    cells = float(np.prod(shape, dtype=float))
    return cells * _CELL if cells <= _MOST_TRANSFORMED else float("inf")


def _by_transform(points: Points, targets: Points, sizes: tuple[float, ...]) -> Points:
    """The nearest target of each point, by a feature transform of the box around them."""
    low, shape = _box(points, targets)
    empty = np.ones(shape, dtype=bool)
    empty[tuple((targets - low).T)] = False
    nearest = ndimage.distance_transform_edt(empty, sampling=sizes, return_distances=False, return_indices=True)
    places = tuple((points - low).T)
    return np.stack([axis[places] for axis in nearest], axis=1) + low


def _by_tree(points: Points, targets: Points, sizes: tuple[float, ...]) -> Points:
    """The nearest target of each point, by a k-d tree."""
    _, nearest = cKDTree(targets * np.array(sizes)).query(points * np.array(sizes))
    return targets[nearest]


def _look_around(
    distances: NDArray[np.float64], points: Points, targets: Points, sizes: tuple[float, ...]
) -> NDArray[np.intp]:
    """Fills in the distances that the table of offsets finds, and returns the indices of the other points."""
    left = np.arange(len(points))
    steps, lengths = _offsets(sizes)
    reach = np.abs(steps).max(axis=0)
    low, shape = _box(points, targets)
    transform, build = _transform_cost(shape), len(targets) * _TARGET
    low, shape = low - reach, shape + 2 * reach
    if np.prod(shape, dtype=float) > _MOST_CELLS:
        return left
    strides = np.append(np.cumprod(shape[:0:-1])[::-1], 1)
    occupied = np.zeros(int(shape.prod()), dtype=bool)
    occupied[(targets - low) @ strides] = True
    places = (points - low) @ strides
    spent = 0.0
    for step, length in zip(steps @ strides, lengths, strict=True):
        if spent > _LOOK_UP_SHARE * min(transform, len(left) * _QUERY + build):
            break
        spent += len(left) * _LOOK_UP + _STEP
        hit = occupied[places + step]
        if hit.any():
            distances[left[hit]] = length
            left, places = left[~hit], places[~hit]
            if not len(left):
                break
    return left


@lru_cache(maxsize=64)
def _offsets(sizes: tuple[float, ...]) -> tuple[Points, NDArray[np.float64]]:
    """All steps to voxels within a radius, the nearest first, and their lengths in mm."""
    radius = _REACH * max(sizes)
    ranges = [np.arange(-int(radius / size), int(radius / size) + 1) for size in sizes]
    # The radius shrinks until the table is small enough; very flat voxels need that.
    while np.prod([len(each) for each in ranges]) > 8 * _MOST_OFFSETS:
        radius *= 0.8
        ranges = [np.arange(-int(radius / size), int(radius / size) + 1) for size in sizes]
    steps = np.stack(np.meshgrid(*ranges, indexing="ij"), axis=-1).reshape(-1, len(sizes))
    lengths = np.sqrt(((steps * np.array(sizes)) ** 2).sum(axis=1))
    order = np.argsort(lengths, kind="stable")
    order = order[lengths[order] <= radius][:_MOST_OFFSETS]
    return steps[order].astype(np.int64), lengths[order]
