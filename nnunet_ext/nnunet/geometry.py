"""Where voxels lie: grids of images and masks, compared relative to the size of a voxel."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, permutations, product
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROUNDING = 0.01
"""Distance in voxels up to which two positions differ by the rounding of headers only."""
LIMIT = 0.5
"""Distance in voxels up to which two voxels count as the same."""
_SAME = 1e-4
"""Difference of two deviations below which the simpler order of storage is taken."""


@dataclass(frozen=True)
class Grid:
    """Positions of the voxels of an array.

    Attributes:
        shape: (D, H, W).
        affine: (4, 4), maps indices in the order of the array's axes to mm.
    """

    shape: tuple[int, ...]
    affine: NDArray[np.float64]

    def corners(self) -> NDArray[np.float64]:
        """Homogeneous indices (8, 4) of the corner voxels."""
        return np.array([(*corner, 1) for corner in product(*((0, size - 1) for size in self.shape))], float)


@dataclass(frozen=True)
class Placement:
    """How an array is stored relative to a grid in the same space.

    Attributes:
        axes: Axes of the array in the order of the grid's axes.
        flips: Axes of the grid along which the array, transposed by `axes`, is reversed.
        deviation: Largest distance between corresponding voxels, in voxels of the grid.
    """

    axes: tuple[int, ...]
    flips: tuple[int, ...]
    deviation: float

    @property
    def same_order(self) -> bool:
        """Whether the voxels are stored in the order of the grid."""
        return self.axes == (0, 1, 2) and not self.flips

    def apply(self, array: NDArray[Any]) -> NDArray[Any]:
        """The array's voxels in the order of the grid: (D, H, W) -> (D', H', W')."""
        return np.flip(array.transpose(self.axes), self.flips)


def grid_of(properties: Mapping[str, Any], shape: Sequence[int]) -> Grid:
    """The grid of an array (D, H, W) from the properties that nnU-Net's readers return.

    Formats without a position in space (PNG, TIFF) start at the origin, with the axes of the array.
    """
    affine = np.eye(4)
    if "sitk_stuff" in properties:
        stored = properties["sitk_stuff"]
        dimensions = len(stored["spacing"])
        used = min(dimensions, 3)  # the fourth dimension of NIfTI files is time or channels
        matrix = np.reshape(stored["direction"], (dimensions, dimensions)) * np.asarray(stored["spacing"])
        affine[:used, :used] = matrix[:used, :used]
        affine[:used, 3] = stored["origin"][:used]
        affine[:, :3] = affine[:, 2::-1]  # SimpleITK's indices are (x, y, z), the array's (z, y, x)
    elif "nibabel_stuff" in properties:
        stored = properties["nibabel_stuff"]
        affine = np.array(stored.get("reoriented_affine", stored["original_affine"]), float)
        affine[:, :3] = affine[:, 2::-1]
    else:
        affine[:3, :3] = np.diag(np.asarray(properties["spacing"], float))
    return Grid(tuple(int(size) for size in shape), affine)


def has_position(properties: Mapping[str, Any]) -> bool:
    """Whether the properties that nnU-Net's readers return place the image in space; PNG and TIFF do not."""
    return "sitk_stuff" in properties or "nibabel_stuff" in properties


def placement(moving: Grid, fixed: Grid) -> Placement | None:
    """How `moving` is stored relative to `fixed`, the closest of all orders of axes and directions.

    Returns:
        None if no order of the axes gives the shape of `fixed`.

    Raises:
        ValueError: if the affine of `fixed` cannot be inverted.
    """
    try:
        inverse = np.linalg.inv(fixed.affine)
    except np.linalg.LinAlgError as error:
        raise ValueError("the header's affine cannot be inverted: two axes are parallel, or a spacing is 0") from error
    corners, best = fixed.corners(), None
    for axes in permutations(range(3)):
        if tuple(moving.shape[axis] for axis in axes) != fixed.shape:
            continue
        for flips in (axes for number in range(4) for axes in combinations(range(3), number)):
            indices = corners.copy()
            for axis in flips:
                indices[:, axis] = fixed.shape[axis] - 1 - indices[:, axis]
            stored = np.ones_like(indices)
            stored[:, list(axes)] = indices[:, :3]
            deviation = float(np.abs(stored @ (inverse @ moving.affine).T - corners).max())
            if best is None or deviation < best.deviation - _SAME:
                best = Placement(axes, flips, deviation)
    return best


def geometry_differences(first: Mapping[str, Any], second: Mapping[str, Any], voxel: float | None = None) -> list[str]:
    """Differences between the properties that nnU-Net's readers return, beyond the rounding of headers.

    Args:
        first: Properties of an image.
        second: Properties of another image.
        voxel: Size to which distances are relative, in mm; None: the smallest spacing of `first`.
    """
    voxel = float(np.min(first["spacing"])) if voxel is None else voxel
    found = []
    for key in sorted(first.keys() & second.keys() - {"original_orientation"}):
        a, b = first[key], second[key]
        if isinstance(a, Mapping):
            found += geometry_differences(a, b, voxel)
        elif np.shape(a) != np.shape(b) or not np.allclose(a, b, rtol=1e-4, atol=1e-3 * voxel):
            found.append(f"{key} {np.round(a, 4).tolist()} and {np.round(b, 4).tolist()}")
    return found
