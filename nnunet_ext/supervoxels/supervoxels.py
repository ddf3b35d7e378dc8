"""Supervoxels: the segments of an unlabelled image from which few-shot training draws its episodes.

Source: Hansen et al., "Anomaly detection-inspired few-shot medical image segmentation through self-supervision with
supervoxels", MedIA 2022 (ADNet), whose settings Cheng et al.'s FAF-Net uses; the segmentation is Felzenszwalb and
Huttenlocher's, "Efficient Graph-Based Image Segmentation", IJCV 2004.
Deviations: the background is removed before the segmentation rather than after it, so that no segment falls below the
minimum size; one rule for the minimum size replaces a number per dataset; 6 neighbours rather than 26, because segments
then leak less; edges of equal weight have a fixed order.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from nnunet_ext.supervoxels.graph_segmentation import grid_offsets, segment_grid

VOXELS_PER_MIN_SIZE = 786
"""Voxels of a volume per voxel of the minimum size, which is then the authors': 5000 for 256 x 256 x 60 voxels
(abdominal) and 1000 for 256 x 256 x 12 (cardiac)."""

SMALLEST_MIN_SIZE = 50
"""Lower bound of the default minimum size, in voxels."""


@dataclass(frozen=True)
class SupervoxelParameters:
    """Settings of `supervoxels`.

    Attributes:
        min_size: Minimum number of voxels of a segment; None: `default_min_size` of the volume.
        scale: Felzenszwalb and Huttenlocher's k, for intensities 0..255; a larger k gives larger segments. The authors'
            value is so small that it joins only equal neighbours; the minimum size does the rest.
        threshold: Intensity (0..255) up to which voxels are background; below 0 there is no background.
        connectivity: Number of neighbours, 6, 18 or 26.
    """

    min_size: int | None = None
    scale: float = 1 / 255
    threshold: float = 10.0
    connectivity: int = 6

    def __post_init__(self) -> None:
        if self.min_size is not None and self.min_size < 1:
            raise ValueError(f"`min_size`={self.min_size} must be at least 1 (voxels)")
        if not 0 <= self.scale < math.inf:
            raise ValueError(f"`scale`={self.scale} must be a finite number, at least 0")
        if math.isnan(self.threshold):
            raise ValueError(f"`threshold`={self.threshold} must be a number")
        grid_offsets(self.connectivity)


def default_min_size(shape: Sequence[int]) -> int:
    """The volume's voxels / `VOXELS_PER_MIN_SIZE`, at least `SMALLEST_MIN_SIZE`."""
    return max(SMALLEST_MIN_SIZE, round(math.prod(shape) / VOXELS_PER_MIN_SIZE))


def supervoxels(
    image: ArrayLike,
    spacing: Sequence[float],
    min_size: int | None = None,
    scale: float = SupervoxelParameters.scale,
    threshold: float = SupervoxelParameters.threshold,
    connectivity: int = SupervoxelParameters.connectivity,
    backend: str | None = None,
) -> NDArray[np.int32]:
    """Labels the foreground's segments 1, 2, ..; 0 is background.

    Each modality is scaled to 0..255; `foreground` is segmented by `segment_grid`, which gives the formulas.
    The result is deterministic, and the same for every backend.

    Args:
        image: Intensities; with several modalities the difference of two voxels is the Euclidean norm.
        spacing: Spacing of the axes D, H and W, in mm.
        min_size: Minimum size in voxels; None: `default_min_size`. Isolated foreground may be smaller.
        scale: See `SupervoxelParameters`, also for threshold and connectivity.
        threshold: Intensity from 0 to 255.
        connectivity: Number of neighbours, 6, 18 or 26.
        backend: "extension" (C), "numpy", or None for the fastest available one.

    Shape:
        image (D, H, W) or (M, D, H, W), the slices along D; result (D, H, W).

    Raises:
        ValueError: for an image or a spacing of another shape, values that are not finite, a spacing that is not
            positive, or a setting out of its range.
    """
    parameters = SupervoxelParameters(min_size, scale, threshold, connectivity)
    values = check_image(image, spacing)
    scaled = _scale(values)
    mask = foreground(scaled, parameters.threshold, parameters.connectivity)
    size = default_min_size(mask.shape) if parameters.min_size is None else parameters.min_size
    return segment_grid(
        scaled,
        mask,
        spacing,
        scale=parameters.scale,
        min_size=size,
        connectivity=parameters.connectivity,
        backend=backend,
    )


def check_image(image: ArrayLike, spacing: Sequence[float]) -> NDArray[np.generic]:
    """The image as an array (M, D, H, W).

    Raises:
        ValueError: as in `supervoxels`.
    """
    values = np.asarray(image)
    if values.ndim not in (3, 4) or values.size == 0:
        raise ValueError(f"`image` must have the shape (D, H, W) or (M, D, H, W), none of them 0, got {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError(f"`image` must be finite; {np.count_nonzero(~np.isfinite(values))} values are not")
    if len(spacing) != 3:
        raise ValueError(f"`spacing` must have 3 values, of the axes D, H, W, got {len(spacing)}: {tuple(spacing)}")
    if not all(0 < s < math.inf for s in spacing):
        raise ValueError(f"`spacing`={tuple(spacing)} must be positive and finite (mm)")
    return values if values.ndim == 4 else values[None]


def foreground(image: NDArray[np.float32], threshold: float, connectivity: int = 6) -> NDArray[np.bool_]:
    """In each slice the largest component above the threshold in any modality, its holes filled.

    An image without contrast has no background.

    Args:
        image: Intensities, 0..255.
        threshold: Intensity from 0 to 255.
        connectivity: Connectivity of the segmentation; with 6, pixels that touch at a corner are not connected.

    Shape:
        image (M, D, H, W); result (D, H, W).
    """
    brightest = image.max(0)
    if not brightest.any():
        return np.ones(brightest.shape, bool)
    return np.stack([_fill_largest(part, connectivity) for part in brightest > threshold])


def _scale(image: NDArray[np.generic]) -> NDArray[np.float32]:
    """Scales each modality to 0..255; 0 where it is constant."""
    scaled = np.zeros(image.shape, np.float32)
    for to, values in zip(scaled, image, strict=True):
        wide = values.astype(np.float64)
        low, high = wide.min(), wide.max()
        if high > low:
            to[...] = 255 * ((wide - low) / (high - low))
    return scaled


def _fill_largest(part: NDArray[np.bool_], connectivity: int) -> NDArray[np.bool_]:
    labels, count = ndimage.label(part, ndimage.generate_binary_structure(2, 1 if connectivity == 6 else 2))
    if count == 0:
        return part
    largest = labels == 1 + np.bincount(labels.ravel())[1:].argmax()
    # Pixels outside of it that cannot be reached from the border are holes.
    rest, _ = ndimage.label(~largest)
    border = np.concatenate((rest[0], rest[-1], rest[:, 0], rest[:, -1]))
    return ~np.isin(rest, border[border > 0])
