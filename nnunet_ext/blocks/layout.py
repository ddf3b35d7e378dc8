"""Channels-last memory on the CPU, where it makes convolutions, pooling and upsampling 1.5 to 10 times faster."""

import torch
from torch import Tensor


def channels_last(ndim: int) -> torch.memory_format:
    """The channels-last format of a (B, C, *P) tensor with `ndim` axes, batch and channels included."""
    return torch.channels_last if ndim == 4 else torch.channels_last_3d


def cpu_channels_last(x: Tensor) -> Tensor:
    """`x` in channels-last memory on the CPU, unchanged elsewhere (PyTorch's small convolutions lose the layout)."""
    return x.to(memory_format=channels_last(x.ndim)) if x.device.type == "cpu" else x


def has_rows(x: Tensor) -> bool:
    """Whether a map is channels-last and on the CPU, so that operators can work on its `rows`."""
    return x.device.type == "cpu" and x.is_contiguous(memory_format=channels_last(x.ndim))


def rows(x: Tensor) -> Tensor:
    """View (B, voxels, C) of a channels-last map (B, C, *P); an error if the memory is not channels-last."""
    return x.movedim(1, -1).view(x.shape[0], -1, x.shape[1])
