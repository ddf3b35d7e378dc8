"""Distances between the surfaces of two masks, with surface elements weighted by their area.

The definition is DeepMind's (github.com/google-deepmind/surface-distance; Nikolov et al., "Clinically applicable
segmentation of head and neck anatomy for radiotherapy", 2021). Its package on PyPI uses names that NumPy 2 and SciPy
have dropped; here the areas come from scikit-image's marching cubes, and the tests compare with that package and with
MONAI.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.measure import marching_cubes, mesh_surface_area

from nnunet_ext.compare.nearest import Points, nearest_distances

Mask = NDArray[np.bool_]
_SPARSE = 30  # voxels of the box per voxel of the mask above which only the mask's voxels are visited


@dataclass(frozen=True)
class Surface:
    """The surface elements of one mask.

    Attributes:
        distances: Distance of each element to the nearest one of the other mask, in mm, ascending; infinite if the
            other mask has none.
        areas: Area of each element, in mm^2; in 2D the length of contour, in mm.
    """

    distances: NDArray[np.float64]
    areas: NDArray[np.float64]

    def area_within(self, tolerance: float) -> float:
        """Area of the elements at most `tolerance` mm away."""
        return float(self.areas[self.distances <= tolerance].sum())

    def percentile(self, percent: float) -> float:
        """The smallest distance within which `percent` % of the area lies."""
        share = np.cumsum(self.areas) / self.areas.sum()
        return float(self.distances[min(int(np.searchsorted(share, percent / 100)), len(share) - 1)])


def surfaces(truth: Mask, prediction: Mask, spacing: Sequence[float]) -> tuple[Surface, Surface]:
    """The surface elements of both masks.

    An element stands between 2 x 2 x 2 (2D: 2 x 2) neighbouring voxels that are neither all inside nor all outside; its
    area is that of the surface that marching cubes lays through them. Nothing outside the image belongs to a mask.

    Args:
        truth: Mask.
        prediction: Mask.
        spacing: Size of a voxel along each axis, in mm.

    Shape:
        masks (D, H, W) or (H, W).

    Raises:
        ValueError: if shapes and spacing differ in their number of axes, or it is neither two nor three.
    """
    if truth.shape != prediction.shape or truth.ndim != len(spacing) or truth.ndim not in (2, 3):
        raise ValueError(
            f"shapes {truth.shape} and {prediction.shape} and `spacing`={tuple(spacing)} must agree, in 2 or 3 axes"
        )
    table = element_areas(tuple(float(size) for size in spacing))
    (own, own_codes), (other, other_codes) = (_elements(mask) for mask in (truth, prediction))
    return (
        _sorted(nearest_distances(own, other, spacing), table[own_codes]),
        _sorted(nearest_distances(other, own, spacing), table[other_codes]),
    )


def normalised_surface_dice(truth: Surface, prediction: Surface, tolerance: float) -> float:
    """NSD = (area of truth within t of the prediction + area of prediction within t of the truth) / both areas.

    Args:
        truth: Surface of the true mask.
        prediction: Surface of the predicted mask.
        tolerance: t, in mm.

    Returns:
        From 0 to 1; NaN if both masks are empty.
    """
    total = truth.areas.sum() + prediction.areas.sum()
    if total == 0:
        return float("nan")
    return float((truth.area_within(tolerance) + prediction.area_within(tolerance)) / total)


def mean_surface_distance(truth: Surface, prediction: Surface) -> float:
    """ASSD = sum of area times distance over both surfaces / sum of both areas.

    Returns:
        In mm; NaN if one of the masks is empty.
    """
    if not len(truth.areas) or not len(prediction.areas):
        return float("nan")
    weighted = sum(float(each.areas @ each.distances) for each in (truth, prediction))
    return weighted / float(truth.areas.sum() + prediction.areas.sum())


def robust_hausdorff(truth: Surface, prediction: Surface, percent: float = 95) -> float:
    """max over both directions of the distance within which `percent` % of the surface's area lies.

    Returns:
        In mm; NaN if one of the masks is empty.
    """
    if not len(truth.areas) or not len(prediction.areas):
        return float("nan")
    return max(truth.percentile(percent), prediction.percentile(percent))


@lru_cache(maxsize=64)
def element_areas(spacing: tuple[float, ...]) -> NDArray[np.float64]:
    """Area of the surface element of each code: bit i is set if corner i of the cell is inside.

    Complementary codes have the same surface (Lorensen and Cline, 1987): where more than half of the corners are
    inside, it is that of the corners outside.
    """
    corners = 2 ** len(spacing)
    areas = np.zeros(2**corners)
    for code in range(1, 2**corners - 1):
        inside = np.array([code >> bit & 1 for bit in range(corners)], dtype=bool).reshape([2] * len(spacing))
        if inside.sum() > corners // 2:
            inside = ~inside
        areas[code] = _cell_length(inside, spacing) if len(spacing) == 2 else _cell_area(inside, spacing)
    return areas


def _cell_area(inside: Mask, spacing: tuple[float, ...]) -> float:
    vertices, faces, *_ = marching_cubes(inside.astype(np.float32), 0.5, spacing=spacing, method="lorensen")
    return float(mesh_surface_area(vertices.astype(np.float64), faces))


def _cell_length(inside: Mask, spacing: tuple[float, ...]) -> float:
    """A line through two edges' middles: across the cell between two neighbours, or round each single corner."""
    if inside.sum() == 2 and (inside[0].all() or inside[1].all()):
        return spacing[1]
    if inside.sum() == 2 and (inside[:, 0].all() or inside[:, 1].all()):
        return spacing[0]
    return float(inside.sum() * np.hypot(spacing[0], spacing[1]) / 2)


def _elements(mask: Mask) -> tuple[Points, NDArray[np.uint8]]:
    """Index and code of every cell that is neither wholly inside nor wholly outside.

    The cell at index i lies between the voxels i - 1 and i of every axis.
    """
    found = ndimage.find_objects(mask.view(np.uint8))
    if not found:
        return np.empty((0, mask.ndim), dtype=np.int64), np.empty(0, dtype=np.uint8)
    start = np.array([part.start for part in found[0]])
    inner = mask[found[0]]
    if inner.size > _SPARSE * np.count_nonzero(inner):
        cells, codes = _sparse_codes(inner)
    else:
        dense = _corner_codes(np.pad(inner, 1))
        flat = dense.ravel()
        places = np.flatnonzero((flat != 0) & (flat != 2 ** (2**mask.ndim) - 1))
        cells, codes = np.stack(np.unravel_index(places, dense.shape), axis=1), flat[places]
    return cells + start, codes


def _corner_codes(mask: Mask) -> NDArray[np.uint8]:
    """Code of the cell between each voxel and its next neighbours."""
    code = np.zeros([size - 1 for size in mask.shape], dtype=np.uint8)
    for bit, corner in enumerate(np.ndindex(*[2] * mask.ndim)):
        part = mask[tuple(slice(start, start + size) for start, size in zip(corner, code.shape, strict=True))]
        code |= part.view(np.uint8) << np.uint8(bit)
    return code


def _sparse_codes(mask: Mask) -> tuple[Points, NDArray[np.uint8]]:
    """The same cells, from the inside voxels alone: each is a corner of 2^axes cells."""
    voxels = np.stack(np.nonzero(mask), axis=1)
    shape = np.array(mask.shape) + 1
    corners = list(np.ndindex(*[2] * mask.ndim))
    cells = [np.ravel_multi_index(tuple((voxels + 1 - corner).T), tuple(shape)) for corner in np.array(corners)]
    places, index = np.unique(np.concatenate(cells), return_inverse=True)
    bits = np.repeat(2 ** np.arange(len(corners)), len(voxels))
    codes = np.bincount(index.ravel(), weights=bits).astype(np.uint8)
    border = codes != 2 ** len(corners) - 1
    return np.stack(np.unravel_index(places[border], tuple(shape)), axis=1), codes[border]


def _sorted(distances: NDArray[np.float64], areas: NDArray[np.float64]) -> Surface:
    order = np.lexsort((areas, distances))
    return Surface(distances[order], areas[order])
