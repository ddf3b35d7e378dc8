"""Mamba on a map, with its voxels or its channels as tokens."""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor, nn

from nnunet_ext.blocks.channelwise import ChannelNorm, to_tokens, to_volume
from nnunet_ext.blocks.mamba import Mamba

_FLOAT16_LIMIT = 1024.0
"""Largest magnitude that is passed to float16 convolutions."""


class MambaLayer(nn.Module):
    """mamba(norm(tokens)), back on the map; without a residual connection.

    Tokens are the voxels in memory order (last axis fastest) with d = C, or the channels, in their order, with d =
    number of voxels. Norm and Mamba are computed in at least float32, even under autocast.

    No norm follows Mamba, whose result grows with a high power of its input and can exceed the range of the following
    float16 convolutions, up to NaN. Under float16 autocast, and only there, it is therefore limited to +-1024, which is
    far above the values of a network that trains well.

    Args:
        channels: C.
        size: P in voxels; weights depend on it only where channels are the tokens.
        channel_tokens: Whether channels are the tokens.

    Shape:
        (B, C, *P) -> (B, C, *P)
    """

    def __init__(self, channels: int, size: Sequence[int], channel_tokens: bool) -> None:
        super().__init__()
        self.channel_tokens, self.size = channel_tokens, tuple(size)
        width = prod(size) if channel_tokens else channels
        self.norm = ChannelNorm(width)
        self.mamba = Mamba(width)

    def forward(self, x: Tensor) -> Tensor:
        if self.channel_tokens:
            y = self.mamba(self.norm(x.flatten(2))).unflatten(2, x.shape[2:])
        else:
            y = to_volume(self.mamba(self.norm(to_tokens(x))), x.shape[2:])
        if _in_float16(y.device.type):
            y = y.clamp(-_FLOAT16_LIMIT, _FLOAT16_LIMIT)
        # Off the CPU, instance norm would copy each later map out of channels-last memory.
        return y if y.device.type == "cpu" else y.contiguous()


def _in_float16(device_type: str) -> bool:
    return torch.is_autocast_enabled(device_type) and torch.get_autocast_dtype(device_type) == torch.float16
