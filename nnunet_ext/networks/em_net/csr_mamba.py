"""CSR Mamba layer (channel squeeze-reinforce) of EM-Net.

Source: Chang, Zeng, Huang, Ni, "EM-Net: Efficient Channel and Frequency Learning with Mamba for 3D Medical Image
Segmentation", MICCAI 2024 (arXiv 2409.17675).
"""

from collections.abc import Sequence
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_ext.blocks.channelwise import ChannelMLP, ChannelNorm, to_tokens, to_volume
from nnunet_ext.blocks.conv import convolve
from nnunet_ext.blocks.dimension import batch_norm_op, dropout_op
from nnunet_ext.blocks.layout import cpu_channels_last
from nnunet_ext.blocks.mamba import Mamba
from nnunet_ext.utils.torch_private import has_hooks

_SQUEEZE = 4
_GAMMA = 1e-6
_DROPOUT = 0.1
_SLOPE = 0.01


class CSRMamba(nn.Module):
    """Mamba on the tokens and on their squeezed channels, then a residual convolution block.

        t = tokens(x) + pos;  n = norm(t)
        m = norm_m(mamba(n));  s = norm_s(mamba(mlp(n)))        mlp: C -> C // 4 -> C
        y = t + gamma (m + s)
        x' = y + project(dropout(block(y)))

    Args:
        conv_op: ``torch.nn.Conv2d`` or ``torch.nn.Conv3d``.
        channels: C.
        size: P in voxels, to which `pos` is tied.
        kernel_size: Odd kernel size of the convolution block, per axis.
        mamba: Whether to apply Mamba; without it, m = norm_m(n) and s = norm_s(mlp(n)).

    Shape:
        (B, C, *P) -> (B, C, *P) in channels-last memory
    """

    def __init__(
        self,
        conv_op: type[nn.Module],
        channels: int,
        size: Sequence[int],
        kernel_size: Sequence[int],
        mamba: bool = True,
    ) -> None:
        super().__init__()
        self.size = tuple(size)
        self.pos = nn.Parameter(torch.zeros(1, prod(size), channels))
        self.gamma = nn.Parameter(torch.full((channels,), _GAMMA))
        self.norm, self.norm_m, self.norm_s = (ChannelNorm(channels) for _ in range(3))
        self.mlp = ChannelMLP(channels, max(1, channels // _SQUEEZE))
        self.mamba = Mamba(channels, bidirectional=True) if mamba else nn.Identity()
        self.block = ResidualBlock(conv_op, channels, kernel_size)
        self.dropout = dropout_op(conv_op)(_DROPOUT)
        self.project = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        tokens = to_tokens(x) + self.pos
        normalised = self.norm(tokens)
        # Two sequences as one batch: the scan is sequential in time, so a larger batch costs less than a second scan.
        both = self.mamba(torch.cat((normalised, self.mlp(normalised).to(normalised.dtype))))
        m, s = both.view(2, *normalised.shape)
        y = torch.addcmul(tokens, self.gamma, self.norm_m(m) + self.norm_s(s))
        changed = to_tokens(self.dropout(self.block(to_volume(y, self.size))))
        return to_volume(y + self.project(changed), self.size)


class ResidualBlock(nn.Module):
    """LeakyReLU(x + norm2(conv2(LeakyReLU(norm1(conv1(x)))))), batch norms, convolutions without bias.

    Args:
        conv_op: ``torch.nn.Conv2d`` or ``torch.nn.Conv3d``.
        channels: C.
        kernel_size: Odd size per axis, in voxels.

    Shape:
        (B, C, *P) -> (B, C, *P)
    """

    def __init__(self, conv_op: type[nn.Module], channels: int, kernel_size: Sequence[int]) -> None:
        super().__init__()
        padding = tuple((k - 1) // 2 for k in kernel_size)
        self.conv1, self.conv2 = (
            conv_op(channels, channels, tuple(kernel_size), padding=padding, bias=False) for _ in range(2)
        )
        self.norm1, self.norm2 = (batch_norm_op(conv_op)(channels) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        y = F.leaky_relu(
            self.norm1(cpu_channels_last(convolve(self.conv1, x))), _SLOPE, inplace=not has_hooks(self.norm1)
        )
        y = self.norm2(cpu_channels_last(convolve(self.conv2, y)))
        return F.leaky_relu(x + y, _SLOPE, inplace=True)
