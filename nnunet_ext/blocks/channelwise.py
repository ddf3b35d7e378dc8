"""Maps as tokens: layers that treat every voxel separately work on (..., C), without a permutation.

A (B, C, *P) map in channels-last memory and its tokens (B, L, C) are views of each other, so that convolutions and
token operators alternate without a copy.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_ext.ops.portable import without_autocast


def to_tokens(volume: Tensor) -> Tensor:
    """(B, C, *P) -> (B, L, C), contiguous; a view if the map is in channels-last memory."""
    return volume.movedim(1, -1).flatten(1, -2).contiguous()


def to_volume(tokens: Tensor, size: Sequence[int]) -> Tensor:
    """(B, L, C) -> view (B, C, *size), in channels-last memory."""
    return tokens.unflatten(1, tuple(size)).movedim(-1, 1)


def at_least_float32(x: Tensor) -> Tensor:
    """`x` in float32, or float64 if it is in that."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of tokens, in at least float32, even under autocast.

    Args:
        channels: C.
        eps: Added to the variance.

    Shape:
        (..., C) -> (..., C)
    """

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__(channels, eps=eps)

    def forward(self, tokens: Tensor) -> Tensor:
        with without_autocast(tokens.device.type):
            return super().forward(at_least_float32(tokens))


class ChannelMLP(nn.Module):
    """W_2 GELU(W_1 t + b_1) + b_2 on every token: two 1x1 convolutions, exact GELU.

    Args:
        channels: C of input and output.
        hidden: Channels of the hidden layer.

    Shape:
        (..., C) -> (..., C)
    """

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden)
        self.fc2 = nn.Linear(hidden, channels)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(tokens)))
