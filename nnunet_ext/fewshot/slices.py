"""Slices of nnU-Net's preprocessed cases, cut to the size that a network is trained on."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def image_slice(case: Sequence[Any], position: int, one_hot: Sequence[int] = ()) -> NDArray[np.float32]:
    """A slice of a case's channels, as the network sees them.

    Args:
        case: Result of `load_case` of nnU-Net's datasets: image, segmentation, previous stage's segmentation, ...
        position: Index along the first spatial axis.
        one_hot: Labels of the previous stage's segmentation that are channels of the input (nnU-Net's cascade).

    Shape:
        result (M, H, W), M with the channels of `one_hot`
    """
    image = np.asarray(case[0][:, position], np.float32)
    if not one_hot:
        return image
    earlier = np.asarray(case[2][position])  # nnU-Net stores it without a channel axis
    return np.concatenate([image, np.stack([earlier == label for label in one_hot]).astype(np.float32)])


def window_start(centre: Sequence[float], shape: Sequence[int], size: Sequence[int]) -> list[int]:
    """First row and column of a window around a point, moved so that it lies within the image.

    On an axis where the image is smaller than the window, the image is centred in it, as in nnU-Net's padding.

    Args:
        centre: Row and column, counted from the centre of the first pixel.
        shape: (H, W) of the image.
        size: Size of the window.
    """
    starts = []
    for c, n, s in zip(centre, shape, size, strict=True):
        starts.append((n - s) // 2 if n < s else min(max(round(c + 0.5 - s / 2), 0), n - s))
    return starts


def window(x: NDArray[Any], start: Sequence[int], size: Sequence[int]) -> NDArray[Any]:
    """(C, H, W) -> (C, *size), starting at `start`, with 0 outside."""
    ends = [s + n for s, n in zip(start, size, strict=True)]
    beyond = [(max(0, -s), max(0, e - n)) for s, e, n in zip(start, ends, x.shape[1:], strict=True)]
    rows, columns = (slice(max(0, s), max(0, s) + n) for s, n in zip(start, size, strict=True))
    return np.pad(x, [(0, 0), *beyond])[:, rows, columns]
