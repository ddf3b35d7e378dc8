"""Baselines without a network: the support's mask itself as the prediction, copied or resized."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from nnunet_ext.fewshot.protocol import DEFAULT_PARTS, query_parts, support_slices
from nnunet_ext.fewshot.slices import window


def laid_over(mask: NDArray[np.bool_], shape: Sequence[int]) -> NDArray[np.bool_]:
    """A mask cropped or padded to a size, aligned at the first voxel.

    Args:
        mask: Foreground of the support.
        shape: Size of the query.

    Shape:
        (D, H, W) -> `shape`
    """
    result = np.zeros(shape, bool)
    for k in range(min(len(mask), shape[0])):
        result[k] = window(mask[k][None], (0, 0), shape[1:])[0]
    return result


def slices_laid_over(
    mask: NDArray[np.bool_], shape: Sequence[int], parts: int = DEFAULT_PARTS["extent"]
) -> NDArray[np.bool_]:
    """Copies the support slice of each part to every slice of the part; see `laid_over`.

    The slices and parts are those of the paper's protocol, `support_slices` and `query_parts`.

    Raises:
        ValueError: as `support_slices`.
    """
    result = np.zeros(shape, bool)
    for part, shown in zip(query_parts(shape[0], parts), support_slices(mask, parts), strict=True):
        result[part.start : part.stop] = window(mask[shown][None], (0, 0), shape[1:])
    return result


def stretched(mask: NDArray[np.bool_], shape: Sequence[int]) -> NDArray[np.bool_]:
    """A whole mask stretched to a size by linear interpolation along each axis; see `laid_over`."""
    factors = [to / of for to, of in zip(shape, mask.shape, strict=True)]
    return ndimage.zoom(mask.astype(np.float32), factors, order=1, grid_mode=True, mode="nearest") > 0.5
