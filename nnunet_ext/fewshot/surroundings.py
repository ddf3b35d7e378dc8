"""Surroundings of a label in a support slice, as background classes. This is an addition to the paper.

In FAF-Net a threshold alone decides whether a position resembles the label, and tissue at its edge often does. With
these classes, a position that resembles the label's surroundings in the support more than the label is background.
"""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

WIDTH = 8
"""Width of the surroundings in pixels: two positions of the feature map."""


def surroundings(mask: NDArray[np.bool_], other: NDArray[np.bool_], sectors: int) -> NDArray[np.bool_]:
    """Pixels at most `WIDTH` away from a mask, by their direction from its centre.

    Args:
        mask: Foreground of a slice; an empty one has no surroundings.
        other: Pixels of other requested labels, which do not count as surroundings.
        sectors: S, number of directions, clockwise from the left.

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
