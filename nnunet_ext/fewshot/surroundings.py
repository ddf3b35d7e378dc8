"""What surrounds a label in a support slice, as classes of the background: beyond the paper, which has none.

A threshold alone decides in FAF-Net whether a position is like the label; tissue at its edge often is. A position that
is even more like what is beside the label in the support is not taken for it.
"""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

WIDTH = 8
"""In pixels: two positions of the features."""


def surroundings(mask: NDArray[np.bool_], other: NDArray[np.bool_], sectors: int) -> NDArray[np.bool_]:
    """Pixels at most `WIDTH` away from a mask, by their direction from its centre.

    Args:
        mask: Foreground of a slice; an empty one has no surroundings.
        other: Pixels that are none of them, of other labels that are looked for.
        sectors: S, directions, clockwise from the left on.

    Shape:
        (H, W), (H, W) -> (S, H, W)
    """
    if not mask.any() or sectors == 0:
        return np.zeros((sectors, *mask.shape), bool)
    near = (ndimage.distance_transform_edt(~mask) <= WIDTH) & ~mask & ~other
    rows, columns = (
        axis - centre for axis, centre in zip(np.indices(mask.shape), np.argwhere(mask).mean(0), strict=True)
    )
    turns = np.arctan2(rows, columns) / (2 * np.pi) + 0.5
    of_sector = (turns * sectors).astype(int) % sectors
    return near & (of_sector == np.arange(sectors)[:, None, None])
