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

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Surface:
    """The surface elements of one mask.

    Attributes:
        distances: Of each element to the nearest one of the other mask, in mm, ascending; infinite if that has none.
        areas: Of each element, in mm^2; in 2D lengths of contour, in mm.
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
    area is that of the surface which marching cubes lays through them. Outside of the image nothing belongs to a mask.

    Args:
        truth: Mask.
        prediction: Mask.
        spacing: Size of a voxel along each axis, in mm.

    Shape:
        masks (D, H, W) or (H, W).

    Raises:
        ValueError: if shapes or spacing differ in axes, or have other than two or three.
    """
    if truth.shape != prediction.shape or truth.ndim != len(spacing) or truth.ndim not in (2, 3):
        raise ValueError(
            f"shapes {truth.shape} and {prediction.shape} and `spacing`={tuple(spacing)} must agree, in 2 or 3 axes"
        )
    window = _window(truth | prediction)
    codes = [_corner_codes(np.pad(mask[window], 1)) for mask in (truth, prediction)]
    table = element_areas(tuple(float(size) for size in spacing))
    borders = [table[code] > 0 for code in codes]
    to_prediction, to_truth = (_distance_to(border, spacing) for border in reversed(borders))
    return (
        _sorted(to_prediction[borders[0]], table[codes[0][borders[0]]]),
        _sorted(to_truth[borders[1]], table[codes[1][borders[1]]]),
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


def _corner_codes(mask: Mask) -> NDArray[np.uint8]:
    """Code of the cell between each voxel and its next neighbours."""
    code = np.zeros([size - 1 for size in mask.shape], dtype=np.uint8)
    for bit, corner in enumerate(np.ndindex(*[2] * mask.ndim)):
        part = mask[tuple(slice(start, start + size) for start, size in zip(corner, code.shape, strict=True))]
        code |= part.astype(np.uint8) << np.uint8(bit)
    return code


def _window(mask: Mask) -> tuple[slice, ...]:
    """The box round a mask; the whole image if it is empty."""
    found = ndimage.find_objects(mask.astype(np.uint8))
    return found[0] if found else tuple(slice(None) for _ in mask.shape)


def _distance_to(border: Mask, spacing: Sequence[float]) -> NDArray[np.float64]:
    if not border.any():
        return np.full(border.shape, np.inf)
    return ndimage.distance_transform_edt(~border, sampling=spacing)


def _sorted(distances: NDArray[np.float64], areas: NDArray[np.float64]) -> Surface:
    order = np.lexsort((areas, distances))
    return Surface(distances[order], areas[order])
