"""Distances from points on a grid to the nearest of other points on the same grid.

Where two surfaces are close, most points find their nearest neighbour within a few voxels: a table of offsets, sorted
by distance, is looked up for all points at once. The other points are left to a distance transform of the box around
all points where that box is small, else by a k-d tree, whose cost does not grow with the box.
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
_CELLS_PER_QUERY = 25  # that a distance transform fills in the time of one query of the tree
_MOST_CELLS = 2**28  # of the lookup table, one byte each


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
        _, nearest = cKDTree(targets * np.array(sizes)).query(points[left] * np.array(sizes))
        # From whole voxels, so that equal distances are equal numbers whatever their position.
        distances[left] = np.sqrt((((targets[nearest] - points[left]) * np.array(sizes)) ** 2).sum(axis=1))
    return distances


def _look_around(
    distances: NDArray[np.float64], points: Points, targets: Points, sizes: tuple[float, ...]
) -> NDArray[np.intp]:
    """Fills in the distances that the table of offsets finds, and returns the indices of the other points."""
    left = np.arange(len(points))
    steps, lengths = _offsets(sizes)
    reach = np.abs(steps).max(axis=0)
    low = np.minimum(points.min(axis=0), targets.min(axis=0)) - reach
    shape = np.maximum(points.max(axis=0), targets.max(axis=0)) - low + reach + 1
    if shape.astype(float).prod() > _MOST_CELLS:
        return left
    strides = np.append(np.cumprod(shape[:0:-1])[::-1], 1)
    occupied = np.zeros(int(shape.prod()), dtype=bool)
    occupied[(targets - low) @ strides] = True
    places = (points - low) @ strides
    for step, length in zip(steps @ strides, lengths, strict=True):
        hit = occupied[places + step]
        if hit.any():
            distances[left[hit]] = length
            left, places = left[~hit], places[~hit]
            if not len(left):
                break
    if len(left) and len(occupied) < _CELLS_PER_QUERY * len(left):
        transformed = ndimage.distance_transform_edt(~occupied.reshape(shape), sampling=sizes)
        distances[left], left = transformed.ravel()[places], left[:0]
    return left


@lru_cache(maxsize=64)
def _offsets(sizes: tuple[float, ...]) -> tuple[Points, NDArray[np.float64]]:
    """All steps to voxels within a radius, the nearest first, and their lengths in mm."""
    radius = _REACH * max(sizes)
    ranges = [np.arange(-int(radius / size), int(radius / size) + 1) for size in sizes]
    # A radius that holds at most so many: of very flat voxels that of the smaller sides.
    while np.prod([len(each) for each in ranges]) > 8 * _MOST_OFFSETS:
        radius *= 0.8
        ranges = [np.arange(-int(radius / size), int(radius / size) + 1) for size in sizes]
    steps = np.stack(np.meshgrid(*ranges, indexing="ij"), axis=-1).reshape(-1, len(sizes))
    lengths = np.sqrt(((steps * np.array(sizes)) ** 2).sum(axis=1))
    order = np.argsort(lengths, kind="stable")
    order = order[lengths[order] <= radius][:_MOST_OFFSETS]
    return steps[order].astype(np.int64), lengths[order]
