"""Positions of feature maps in the image, and their resampling to the grid of FAF-Net's features.

FAF-Net upsamples its maps with aligned corners, so position i of a grid of h lies at the image's pixel
t_i = i (H - 1) / (h - 1). Feature maps of other strides are read at these points, linearly between their own positions
and constantly beyond the outermost ones.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from nnunet_ext.blocks.channelwise import at_least_float32

STRIDE = 4
"""Stride of the grid of FAF-Net's features; the paper's."""


def strided_grid(size: Sequence[int]) -> tuple[int, ...]:
    """ceil(H / 4) positions per axis."""
    return tuple(-(-s // STRIDE) for s in size)


def reading_matrix(size: int, first: float, step: float, count: int, like: Tensor) -> Tensor:
    """Matrix (h, n) that reads a map with n = `count` positions at the points t_i of an axis of `size` pixels.

    The map's position j lies at pixel first + j step. Row i holds the weights of linear interpolation,
    max(0, 1 - |u_i - j|) with u_i = (t_i - first) / step, clamped to [0, n - 1].
    """
    (points,) = strided_grid((size,))
    spacing = (size - 1) / max(points - 1, 1)
    of_points, of_map = (torch.arange(n, dtype=like.dtype, device=like.device) for n in (points, count))
    u = (of_points * (spacing / step) - first / step).clamp(0, count - 1)
    return (1 - (u[:, None] - of_map).abs()).clamp_min(0)


def read_at(maps: Tensor, size: Sequence[int], firsts: Sequence[float], steps: Sequence[float]) -> Tensor:
    """Maps at the grid of an image of (H, W) pixels, in at least float32.

    Args:
        maps: Maps of any stride.
        size: (H, W) in pixels.
        firsts: Row and column of the maps' first position, in pixels from the centre of the image's first pixel.
        steps: Distance of the maps' positions, in pixels, per axis.

    Shape:
        (B, C, n, m) -> (B, C, ceil(H / 4), ceil(W / 4))
    """
    with torch.autocast(maps.device.type, enabled=False):
        maps = at_least_float32(maps)
        rows, columns = (reading_matrix(*axis, maps) for axis in zip(size, firsts, steps, maps.shape[-2:], strict=True))
        return rows @ (maps @ columns.T)
