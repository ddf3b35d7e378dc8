"""Convolution blocks."""

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_ext.blocks.instance_norm import InstanceNormLeakyReLU
from nnunet_ext.blocks.layout import cpu_channels_last, has_rows, rows
from nnunet_ext.ops.portable import is_portable
from nnunet_ext.ops.tracing import is_traced
from nnunet_ext.utils.torch_private import has_hooks


class ConvNormAct(nn.Module):
    """Convolution (same padding), instance norm, leaky ReLU.

    Args:
        conv_op: ``torch.nn.Conv2d`` or ``torch.nn.Conv3d``.
        input_channels: Channels of the input.
        output_channels: Channels of the output.
        kernel_size: Odd size per axis, in voxels.
        eps: Added to the norm's variance.
        slope: Slope of the leaky ReLU; 1 leaves it out.
        bias: Whether the convolution has a bias.
        affine: Whether the norm has a learnt scale and shift.
        stride: Stride per axis; None: 1.

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
        eps: float = 1e-5,
        slope: float = 0.1,
        bias: bool = True,
        affine: bool = True,
        stride: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        padding = tuple((k - 1) // 2 for k in kernel_size)
        strides = (1,) * len(padding) if stride is None else tuple(stride)
        # Axes of kernel 1 are strided by slicing: in the backward pass of a convolution whose stride is larger than
        # its kernel, PyTorch's CPU kernel writes beyond its memory (torch 2.14).
        steps = tuple(1 if k == 1 else s for k, s in zip(kernel_size, strides, strict=True))
        kept = [slice(None, None, s if k == 1 else 1) for k, s in zip(kernel_size, strides, strict=True)]
        self.kept = (slice(None), slice(None), *kept)
        self.sliced = steps != strides
        self.conv = conv_op(input_channels, output_channels, tuple(kernel_size), steps, padding, bias=bias)
        self.pointwise = all(k == 1 for k in kernel_size) and all(s == 1 for s in steps)
        self.norm_act = InstanceNormLeakyReLU(output_channels, eps, slope, affine)

    def forward(self, x: Tensor) -> Tensor:
        if self.sliced:
            x = x[self.kept]
        if self.pointwise and x.device.type == "cpu":
            y = conv_1x1(self.conv, x)
        else:
            y = cpu_channels_last(convolve(self.conv, x))
        # Hooks may keep the map between convolution and norm.
        return self.norm_act(y, overwrite=not (has_hooks(self.conv) or has_hooks(self.norm_act)))


def convolve(conv: nn.Module, x: Tensor) -> Tensor:
    """`conv(x)`, but fast for single samples on the CPU.

    PyTorch passes a single sample to oneDNN only if it has more than 20480 values without its last axis. For the others
    (full resolution with few channels, and the deep stages) its own kernel takes two to five times as long and loses
    the channels-last layout (torch 2.15). nnU-Net predicts one sample at a time.

    Shape:
        (B, C, *P) -> (B, C', *P / stride)
    """
    # The batch comes last: asking for its size would fix it in an exported graph.
    if is_portable() or is_traced(x) or x.shape[0] != 1 or not _onednn_takes(x) or has_hooks(conv):
        return conv(x)
    known = cast(nn.Conv3d, conv)
    settings = cast(tuple[int, ...], known.padding), known.stride, known.dilation
    return torch.mkldnn_convolution(cpu_channels_last(x), known.weight, known.bias, *settings, known.groups)


def conv_1x1(conv: nn.Module, x: Tensor) -> Tensor:
    """A 1x1 convolution; on the CPU a matrix product, as PyTorch's kernel is slow there and loses channels-last.

    Shape:
        (B, C, *P) -> (B, C', *P)
    """
    return conv(x) if x.device.type != "cpu" or has_hooks(conv) else product_1x1(conv, x)


def product_1x1(conv: nn.Module, x: Tensor) -> Tensor:
    """A 1x1 convolution as a matrix product, whatever the device; shapes as `conv_1x1`."""
    # The type is a string because the compiler of PyTorch 2.5 cannot trace a union.
    weight, bias = cast(Tensor, conv.weight), cast("Tensor | None", conv.bias)
    return F.linear(x.movedim(1, -1), weight.flatten(1), bias).movedim(-1, 1)


def plus_conv_1x1(y: Tensor, conv: nn.Module, x: Tensor, *, overwrite: bool = False) -> Tensor:
    """y + conv(x) of a 1x1 convolution.

    Args:
        y: Map to which it is added.
        conv: The convolution.
        x: Its input.
        overwrite: Whether the memory of `y` may be overwritten if it needs no gradient: only for a map that nothing
            else holds. Without any gradient the product is summed there, and needs no memory of its own.

    Shape:
        y and result (B, C', *P), x (B, C, *P)
    """
    if not overwrite or y.requires_grad:
        return y + conv_1x1(conv, x)
    if torch.is_grad_enabled() or is_portable() or is_traced(y) or has_hooks(conv) or not _is_plain(y):
        return y.add_(conv_1x1(conv, x))
    weight, bias = cast(Tensor, conv.weight), cast("Tensor | None", conv.bias)
    sums = rows(y).flatten(0, 1)
    sums.addmm_(x.movedim(1, -1).reshape(-1, x.shape[1]), weight.flatten(1).t())
    if bias is not None:
        sums.add_(bias)
    return y


def _is_plain(y: Tensor) -> bool:
    """Whether a product can be summed in the map's memory: in channels-last on the CPU, single or double precision."""
    plain = y.dtype in (torch.float32, torch.float64) and not torch.is_autocast_enabled("cpu")
    return plain and has_rows(y) and y.numel() > 0


def _onednn_takes(x: Tensor) -> bool:
    """Whether oneDNN is available and supports `x`; torch.compile cannot trace these checks."""
    onednn = torch.backends.mkldnn
    plain = x.device.type == "cpu" and x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    return plain and onednn.is_available() and bool(onednn.enabled)


def two_conv(
    conv_op: type[nn.Module], input_channels: int, output_channels: int, kernel_size: Sequence[int]
) -> nn.Sequential:
    """Two `ConvNormAct` in a row, input_channels -> output_channels -> output_channels."""
    return nn.Sequential(
        ConvNormAct(conv_op, input_channels, output_channels, kernel_size),
        ConvNormAct(conv_op, output_channels, output_channels, kernel_size),
    )
