"""2D convolutions with batch norm, and the residual pair of them in MT-UNet's stem.

Source: Wang et al., "Mixed Transformer U-Net for Medical Image Segmentation", ICASSP 2022, in the form that the authors
of LSTM-SA publish as their baseline.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_ext.blocks.conv import product_1x1
from nnunet_ext.blocks.layout import cpu_channels_last
from nnunet_ext.utils.torch_private import has_hooks


class Pointwise(nn.Conv2d):
    """A 1x1 convolution, computed on the CPU as a matrix product.

    Args:
        input_channels: Channels of the input.
        output_channels: Channels of the output.
        bias: Whether it has a bias.

    Shape:
        (B, input_channels, H, W) -> (B, output_channels, H, W)
    """

    def __init__(self, input_channels: int, output_channels: int, bias: bool = True) -> None:
        super().__init__(input_channels, output_channels, kernel_size=1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return product_1x1(self, x) if x.device.type == "cpu" else super().forward(x)


class ConvBatchNorm(nn.Module):
    """Convolution (same padding where the kernel is odd), batch norm, ReLU.

    Args:
        input_channels: Channels of the input.
        output_channels: Channels of the output.
        kernel_size: Kernel size in pixels, on both axes.
        stride: Stride in pixels, on both axes; a 1x1 convolution has none.
        bias: Whether the convolution has a bias.
        relu: Whether to apply the ReLU.

    Shape:
        (B, input_channels, H, W) -> (B, output_channels, H / stride, W / stride)
    """

    def __init__(
        self,
        input_channels: int,
        output_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        bias: bool = False,
        relu: bool = True,
    ) -> None:
        super().__init__()
        self.conv: nn.Module
        if kernel_size == 1:
            self.conv = Pointwise(input_channels, output_channels, bias)
        else:
            padding = (kernel_size - 1) // 2
            self.conv = nn.Conv2d(input_channels, output_channels, kernel_size, stride, padding, bias=bias)
        self.norm = nn.BatchNorm2d(output_channels)
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(cpu_channels_last(self.conv(x)))
        return F.relu(x, inplace=not has_hooks(self.norm)) if self.relu else x


class DoubleConv(nn.Module):
    """relu(h + norm(conv1x1(h))), h = norm(conv3x3(relu(norm(conv3x3(x))))): only the 1x1 convolution has a bias.

    Args:
        input_channels: Channels of the input.
        output_channels: Channels of the output.

    Shape:
        (B, input_channels, H, W) -> (B, output_channels, H, W)
    """

    def __init__(self, input_channels: int, output_channels: int) -> None:
        super().__init__()
        self.conv1 = ConvBatchNorm(input_channels, output_channels, 3)
        self.conv2 = ConvBatchNorm(output_channels, output_channels, 3, relu=False)
        self.shortcut = ConvBatchNorm(output_channels, output_channels, 1, bias=True, relu=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv2(self.conv1(x))
        return F.relu(h + self.shortcut(h), inplace=True)
