"""Names of slices: modality, plane and number."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from nnunet_ext.nnunet.geometry import Grid, has_position

_PLANES = ("sagittal", "coronal", "axial")
"""Planes across the axes of space: right to left, front to back, foot to head."""
_STRAIGHT = 0.9
"""Smallest cosine between an axis of the array and one of space at which a plane has the latter's name."""


def slice_text(channel: str, properties: Mapping[str, Any], grid: Grid, axis: int, index: int) -> str:
    """A slice in words, for instance "MRI, axial slice 12 of 40".

    Args:
        channel: Name of the image's channel; empty: not known.
        properties: Properties that nnU-Net's reader returned; formats without a position in space have no planes.
        grid: Grid of the volume.
        axis: Axis across which the slice lies.
        index: Number of the slice, from 0.
    """
    if not has_position(properties) and grid.shape[axis] == 1:
        return channel or "image"
    direction = np.abs(grid.affine[:3, axis]) / np.linalg.norm(grid.affine[:3, axis])
    plane = _PLANES[int(direction.argmax())] if direction.max() >= _STRAIGHT else "oblique"
    number = f"slice {index + 1} of {grid.shape[axis]}"
    named = f"{plane} {number}" if has_position(properties) else f"{number} along axis {axis + 1}"
    return f"{channel}, {named}" if channel else named
