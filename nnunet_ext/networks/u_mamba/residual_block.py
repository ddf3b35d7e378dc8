"""Residual convolution block of U-Mamba."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_ext.blocks.conv import ConvNormAct, plus_conv_1x1
from nnunet_ext.utils.torch_private import has_hooks

_SLOPE = 0.01


class ResidualBlock(nn.Module):
    """LeakyReLU(norm2(conv2(LeakyReLU(norm1(conv1(x))))) + shortcut(x)), instance norms, convolutions with biases.

    Args:
        conv_op: ``torch.nn.Conv2d`` or ``torch.nn.Conv3d``.
        input_channels: Channels of the input.
        output_channels: Channels of the output.
        kernel_size: Odd size of both convolutions per axis, in voxels.
        stride: Stride of the first convolution and of the shortcut per axis; None: 1.
        projection: Whether the shortcut is a 1x1 convolution; otherwise it is the identity, which needs equal
            channels and no stride.

    Shape:
        (B, input_channels, *P) -> (B, output_channels, *P / stride)
    """

    def __init__(
        self,
        conv_op: type[nn.Module],
        input_channels: int,
        output_channels: int,
        kernel_size: Sequence[int],
        *,
        stride: Sequence[int] | None = None,
        projection: bool = True,
    ) -> None:
        super().__init__()
        self.conv1 = ConvNormAct(conv_op, input_channels, output_channels, kernel_size, slope=_SLOPE, stride=stride)
        self.conv2 = ConvNormAct(conv_op, output_channels, output_channels, kernel_size, slope=1)
        self.shortcut = conv_op(input_channels, output_channels, kernel_size=1) if projection else None
        # A 1x1 convolution is strided by slicing, for the reason given in `ConvNormAct`.
        self.kept = (slice(None), slice(None), *(slice(None, None, step) for step in stride or ()))

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(self.conv1(x))
        # A norm may hold its result for the backward pass, and a hook may hold it anyway; otherwise fresh memory would
        # cost more than the sum.
        held = y.requires_grad or has_hooks(self.conv2) or has_hooks(self.conv2.norm_act)
        if self.shortcut is not None:
            y = plus_conv_1x1(y, self.shortcut, x[self.kept], overwrite=not held)
        else:
            y = y + x if held else y.add_(x)
        return F.leaky_relu(y, _SLOPE, inplace=True)
