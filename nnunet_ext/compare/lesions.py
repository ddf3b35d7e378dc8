"""Counts of lesions: connected components of a label, and which of them a prediction finds.

A true and a predicted component match if the voxels that they share are at least half of those that either has. No
component can then match two others. This is the detection of panoptic quality (Kirillov et al., "Panoptic
segmentation", 2019) as the package panoptica computes it, with which the tests compare; panoptica itself is not used
because its releases exclude current versions of NumPy and pandas.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Mask = NDArray[np.bool_]
MATCHING_IOU = 0.5
"""Intersection over union from which on two components match."""
BAND_EDGES = (0.1, 1.0, 10.0)
"""Volumes in ml (natural images: 1000 pixels) that separate the bands; an edge belongs to the band above it."""
BANDS = tuple(range(1, len(BAND_EDGES) + 2))


@dataclass(frozen=True)
class LesionCounts:
    """Lesions of one case and label.

    Attributes:
        true: Number of true lesions in each volume band.
        found: Number of these that a predicted lesion matches.
        predicted: Number of predicted lesions.
    """

    true: tuple[int, ...]
    found: tuple[int, ...]
    predicted: int

    def columns(self) -> dict[str, int]:
        """Columns of cases.csv."""
        counts = {f"lesions_true_{band}": count for band, count in zip(BANDS, self.true, strict=True)}
        counts |= {f"lesions_found_{band}": count for band, count in zip(BANDS, self.found, strict=True)}
        return counts | {"lesions_predicted": self.predicted}


def count_lesions(truth: Mask, prediction: Mask, voxel: float) -> LesionCounts:
    """Lesions of two masks.

    Components are connected across faces, edges and corners of voxels in 3D, across edges of pixels in 2D (as in
    panoptica).

    Args:
        truth: Mask.
        prediction: Mask.
        voxel: Volume of a voxel in ml.

    Shape:
        masks (D, H, W) or (H, W)
    """
    (own, count), (other, predicted) = (_components(mask) for mask in (truth, prediction))
    sizes, other_sizes = (np.bincount(each.ravel(), minlength=1)[1:] for each in (own, other))
    both = (own > 0) & (other > 0)
    pairs, shared = np.unique((own[both].astype(np.int64) - 1) * predicted + other[both] - 1, return_counts=True)
    one, two = np.divmod(pairs, max(predicted, 1))
    matched = one[shared / (sizes[one] + other_sizes[two] - shared) >= MATCHING_IOU]
    band = np.digitize(sizes * voxel, BAND_EDGES)
    found = np.zeros(count, dtype=bool)
    found[matched] = True
    return LesionCounts(_per_band(band), _per_band(band[found]), predicted)


def _components(mask: Mask) -> tuple[NDArray[np.int32], int]:
    structure = np.ones((3, 3, 3)) if mask.ndim == 3 else None
    numbered = np.zeros(mask.shape, dtype=np.int32)
    return numbered, int(ndimage.label(mask, structure, output=numbered))


def _per_band(band: NDArray[np.intp]) -> tuple[int, ...]:
    return tuple(np.bincount(band, minlength=len(BANDS)).tolist())


def column_names() -> Sequence[str]:
    """Names of the columns of cases.csv."""
    return tuple(LesionCounts((0,) * len(BANDS), (0,) * len(BANDS), 0).columns())
