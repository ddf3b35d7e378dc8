"""A plain 2D U-Net without heads, which returns the feature maps of every decoder level."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nnunet_ext.blocks.conv import ConvNormAct
from nnunet_ext.blocks.dimension import conv_transpose_op
from nnunet_ext.blocks.layout import cpu_channels_last

_SLOPE = 0.01


class UNet2d(nn.Module):
    """nnU-Net's plain U-Net on slices: two convolutions per level, strided ones down, transposed ones up.

    Instance norm is computed for each slice, so slices do not affect each other.

    Args:
        input_channels: M.
        features: Channels per level, full resolution first.
        kernel_sizes: Odd kernel sizes per level and axis.
        strides: Strides into each level per axis; all 1 for the first.

    Shape:
        (N, M, H, W) -> list of (N, C_l, H_l, W_l), full resolution first, without the lowest level.
    """

    def __init__(
        self,
        input_channels: int,
        features: Sequence[int],
        kernel_sizes: Sequence[tuple[int, ...]],
        strides: Sequence[tuple[int, ...]],
    ) -> None:
        super().__init__()
        self.encoder, self.upsampling, self.decoder = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        width = input_channels
        for channels, kernel, stride in zip(features, kernel_sizes, strides, strict=True):
            self.encoder.append(_two_convolutions(width, channels, kernel, stride))
            width = channels
        for level in range(len(features) - 1):
            channels, stride = features[level], strides[level + 1]
            self.upsampling.append(conv_transpose_op(nn.Conv2d)(features[level + 1], channels, stride, stride))
            self.decoder.append(_two_convolutions(2 * channels, channels, kernel_sizes[level], (1, 1)))

    def forward(self, x: Tensor) -> list[Tensor]:
        x = cpu_channels_last(x)
        skips = []
        for stage in self.encoder:
            x = stage(x)
            skips.append(x)
        outputs = []
        for level in reversed(range(len(self.decoder))):
            x = torch.cat((skips[level], cpu_channels_last(self.upsampling[level](x))), 1)
            x = self.decoder[level](x)
            outputs.append(x)
        return outputs[::-1]


def _two_convolutions(width: int, channels: int, kernel: Sequence[int], stride: Sequence[int]) -> nn.Sequential:
    return nn.Sequential(
        ConvNormAct(nn.Conv2d, width, channels, kernel, slope=_SLOPE, stride=stride),
        ConvNormAct(nn.Conv2d, channels, channels, kernel, slope=_SLOPE),
    )
