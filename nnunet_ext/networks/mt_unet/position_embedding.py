"""A learnt position embedding of MT-UNet's tokens.

Source: Wang et al., "Mixed Transformer U-Net for Medical Image Segmentation", ICASSP 2022, in the form that the authors
of LSTM-SA publish as their baseline.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nnunet_ext.blocks.channelwise import to_volume
from nnunet_ext.networks.adapting.tied import Declaration
from nnunet_ext.networks.adapting.tokens import POSITIONS


class PositionEmbedding(nn.Module):
    """x + pos.

    Args:
        channels: C.
        size: (H, W) in tokens, to which `pos` is tied.

    Shape:
        (B, C, H, W) -> (B, C, H, W)
    """

    def __init__(self, channels: int, size: Sequence[int]) -> None:
        super().__init__()
        self.size = tuple(size)
        self.pos = nn.Parameter(torch.zeros(1, self.size[0] * self.size[1], channels))

    def forward(self, x: Tensor) -> Tensor:
        return x + to_volume(self.pos, self.size)


TIED: Declaration = {PositionEmbedding: POSITIONS}
"""The parameters of MT-UNet that are tied to the patch."""
