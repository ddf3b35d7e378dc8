"""The paper's few-shot protocol and ours, which choose the support slice for each part of a volume.

Source: Cheng et al., "FAF-Net", after Hansen et al., "Anomaly detection-inspired few-shot medical image segmentation
through self-supervision with supervoxels", MedIA 2022 (ADNet).
"""

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

DEFAULT_PARTS = {"extent": 3, "position": 40}
"""Default number of parts for each protocol, which divides the label's extent (the paper's) or the whole scan."""


def query_parts(slices: int, parts: int) -> list[range]:
    """Parts of a volume along the slice axis, as equal as whole slices allow; some are empty in a thin volume.

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

    The extent runs from the first to the last slice with foreground. Where the middle slice has none, the
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


def shown_slices(mask: NDArray[np.bool_], parts: int | None = None, match: str = "extent") -> list[int]:
    """For each part of a query volume, the support slice that shows what to look for.

    ``"extent"``, the paper's, takes `support_slices`: every part is shown the label and may contain it. ``"position"``
    takes the middle slice of the same part of the support *scan*, which may have no foreground; such parts are not
    searched. It suits scans with the same field of view. With as many parts as slices, each slice is a part.

    Args:
        mask: Foreground of the support.
        parts: Number of parts; None: `DEFAULT_PARTS`.
        match: ``"extent"`` or ``"position"``.

    Shape:
        (D, H, W)

    Raises:
        ValueError: for an unknown `match`, if no slice that is shown has foreground, or for less than 1 part.
    """
    if match not in DEFAULT_PARTS:
        raise ValueError(f"unknown `match` {match!r}; known: {', '.join(DEFAULT_PARTS)}")
    parts = DEFAULT_PARTS[match] if parts is None else parts
    if match == "extent" or not mask.any():
        return support_slices(mask, parts)
    if parts < 1:
        raise ValueError(f"`parts`={parts} must be at least 1")
    shown = [int((i + 0.5) * len(mask) / parts) for i in range(parts)]
    if not mask[shown].any():
        raise ValueError(f"none of the {parts} slices that are shown has foreground: give more `parts`")
    return shown
