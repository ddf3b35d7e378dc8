"""The paper's few-shot protocol: which support slice tells what to look for in which part of a query volume.

Source: Cheng et al., "FAF-Net", after Hansen et al., "Anomaly detection-inspired few-shot medical image segmentation
through self-supervision with supervoxels", MedIA 2022 (ADNet).
"""

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray


def query_parts(slices: int, parts: int) -> list[range]:
    """Equal parts of a volume along the slice axis, as equal as whole slices allow; empty ones of a thin volume.

    Args:
        slices: D of the volume.
        parts: n_part of the paper.

    Raises:
        ValueError: for less than 1 part.
    """
    if parts < 1:
        raise ValueError(f"`parts`={parts} must be at least 1")
    edges = [round(slices * i / parts) for i in range(parts + 1)]
    return [range(start, end) for start, end in pairwise(edges)]


def support_slices(mask: NDArray[np.bool_], parts: int) -> list[int]:
    """For each part, the middle slice of that part of the mask's extent.

    The extent runs from the first to the last slice with foreground. Where the middle slice has none itself, the
    nearest one that has is taken.

    Args:
        mask: Foreground of the support.
        parts: n_part of the paper.

    Shape:
        (D, H, W)

    Raises:
        ValueError: if the mask is empty, or for less than 1 part.
    """
    if parts < 1:
        raise ValueError(f"`parts`={parts} must be at least 1")
    present = np.flatnonzero(mask.any((1, 2)))
    if not len(present):
        raise ValueError("the mask is empty: it shows nothing to look for")
    first, extent = present[0], present[-1] - present[0] + 1
    middles = [first + int((i + 0.5) * extent / parts) for i in range(parts)]
    return [int(present[np.abs(present - middle).argmin()]) for middle in middles]
