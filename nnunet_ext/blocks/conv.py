"""Convolution blocks."""

from collections.abc import Sequence
from functools import partial
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_ext.blocks.dimension import conv_function
from nnunet_ext.blocks.instance_norm import InstanceNormLeakyReLU
from nnunet_ext.blocks.layout import cpu_channels_last

_MIN_CPU_CHANNELS = 3
"""With fewer input channels PyTorch's CPU convolution takes a slow kernel that ignores the channels-last layout."""


class ConvNormAct(nn.Module):
    """Convolution (bias, same padding), instance norm, leaky ReLU.

    Args:
        conv_op: ``torch.nn.Conv2d`` or ``torch.nn.Conv3d``.
        input_channels: Channels of the input.
        output_channels: Channels of the output.
        kernel_size: Odd size per axis, in voxels.
        eps: Of the norm.
        slope: Of the leaky ReLU.

    Shape:
        (B, input_channels, *P) -> (B, output_channels, *P)
    """

    def __init__(
        self,
        conv_op: type[nn.Module],
        input_channels: int,
        output_channels: int,
        kernel_size: Sequence[int],
        eps: float = 1e-5,
        slope: float = 0.1,
    ) -> None:
        super().__init__()
        padding = tuple((k - 1) // 2 for k in kernel_size)
        self.conv = conv_op(input_channels, output_channels, tuple(kernel_size), padding=padding, bias=True)
        self.convolve = partial(conv_function(conv_op), padding=padding)
        self.norm_act = InstanceNormLeakyReLU(output_channels, eps, slope)

    def forward(self, x: Tensor) -> Tensor:
        missing = _MIN_CPU_CHANNELS - x.shape[1] if x.device.type == "cpu" else 0
        if missing > 0:
            # Channels of zeros change nothing but the kernel that PyTorch chooses.
            pad = (0, 0) * (x.ndim - 2) + (0, missing)
            weight = F.pad(cast(Tensor, self.conv.weight), pad)
            x = self.convolve(cpu_channels_last(F.pad(x, pad)), weight, self.conv.bias)
        else:
            x = self.conv(x)
        return self.norm_act(cpu_channels_last(x))


def two_conv(
    conv_op: type[nn.Module], input_channels: int, output_channels: int, kernel_size: Sequence[int]
) -> nn.Sequential:
    """Two `ConvNormAct` in a row, input_channels -> output_channels -> output_channels."""
    return nn.Sequential(
        ConvNormAct(conv_op, input_channels, output_channels, kernel_size),
        ConvNormAct(conv_op, output_channels, output_channels, kernel_size),
    )
