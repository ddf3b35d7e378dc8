"""5x5 convolutions by Winograd's minimal filtering F(4x4, 5x5), by the C extension on the CPU.

    Y = A^T [sum over input channels of (G w G^T) * (B^T X B)] A

for each tile of 4x4 results Y, which reads 8x8 inputs X, with element-wise products *: 64 multiplications per tile and
pair of channels instead of 400. Points of the interpolation are 0, 1, -1, 2, -2, 1/2, -1/2 and infinity. The method is
exact; in float32 its rounding errors are up to 5 times those of a direct convolution, which are 5e-7 of the results'
standard deviation for 32 channels.

Maps have their channels last: (N, H, W, C). Kernels are PyTorch's: (K, C, 5, 5).

Source: Lavin, Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016.
"""

import ctypes
from math import prod
from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_weight
from torch.utils.flop_counter import register_flop_formula

from nnunet_ext.ops.native import NativeLibrary, checked, library_for, pointer, structure
from nnunet_ext.ops.portable import is_portable
from nnunet_ext.ops.self_check import Pairs, example
from nnunet_ext.utils.torch_private import in_function_transform

_SIZE, _POINTS, _SLICE = 5, 64, 32
"""Kernel size; products of a tile; channels of a slice in csrc/winograd.c."""
_MIN_CHANNELS, _MIN_SIDE, _MIN_PIXELS = 32, 16, 1024
"""Measured: from these on the method is faster, and its rounding errors are at most 5 times those of PyTorch's."""
_FINITE_POINTS = (0.0, 1.0, -1.0, 2.0, -2.0, 0.5, -0.5)
_FACTORS = (1.0, -2 / 9, -2 / 9, 1 / 90, 1 / 90, 32 / 45, 32 / 45)


@structure("winograd")
class _Winograd(ctypes.Structure):
    """`winograd` of csrc/winograd.c."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("images", "height", "width", "inputs", "outputs")),
        ("threads", ctypes.c_int32),
        *((name, ctypes.c_void_p) for name in ("x", "kernel", "bias", "y", "grad_y", "grad_kernel", "grad_bias")),
    ]


def is_faster(x: Tensor, weight: Tensor) -> bool:
    """Whether `convolution` takes these tensors and is faster than PyTorch's convolution.

    Both are in float32 on the CPU, and neither channels nor maps are small. Compilers, transforms of torch.func and
    autocast get PyTorch's convolution.
    """
    if is_portable() or torch.compiler.is_compiling() or in_function_transform() or torch.is_autocast_enabled("cpu"):
        return False
    if weight.shape[2:] != (_SIZE, _SIZE) or min(weight.shape[:2]) < _MIN_CHANNELS:
        return False
    *outer, height, width, _ = (int(size) for size in x.shape)  # tensors under torch.jit.trace
    if min(height, width) < _MIN_SIDE or prod(outer) * height * width < _MIN_PIXELS:
        return False
    return library_for("winograd", x, weight) is not None


@torch.library.custom_op("nnunet_ext::winograd_convolution", mutates_args=(), device_types="cpu")
def convolution(x: Tensor, weight: Tensor, bias: Optional[Tensor]) -> Tensor:  # noqa: UP045 - what PyTorch 2.5 reads
    """A 5x5 convolution of maps with zeros around them, in the maps' size.

    Shape:
        x (N, H, W, C), weight (K, C, 5, 5), bias (K,) -> (N, H, W, K)
    """
    library = library_for("winograd", x, weight, bias)
    if library is None:
        return plain_convolution(x, weight, bias).contiguous()
    return _native_convolution(library, x, weight, bias)


@convolution.register_fake
def _(x, weight, bias):
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


@torch.library.custom_op("nnunet_ext::winograd_kernel_gradient", mutates_args=(), device_types="cpu")
def _kernel_gradient(x: Tensor, grad_y: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of weight and bias from that of the result."""
    library = library_for("winograd", x, grad_y)
    if library is None:
        return _plain_kernel_gradient(x, grad_y)
    return _native_kernel_gradient(library, x, grad_y)


@_kernel_gradient.register_fake
def _(x, grad_y):
    return x.new_empty(grad_y.shape[-1], x.shape[-1], _SIZE, _SIZE), x.new_empty(grad_y.shape[-1])


@register_flop_formula(torch.ops.nnunet_ext.winograd_convolution)
def _(x: tuple[int, ...], weight: tuple[int, ...], *_, **__) -> int:
    """Operations of a direct convolution, so that counts do not depend on the machine."""
    *maps, inputs = x
    return 2 * prod(maps) * inputs * weight[0] * _SIZE**2


@register_flop_formula(torch.ops.nnunet_ext.winograd_kernel_gradient)
def _(x: tuple[int, ...], grad_y: tuple[int, ...], *_, **__) -> int:
    return 2 * prod(x) * grad_y[-1] * _SIZE**2


def _save(ctx, inputs, output):
    x, weight, _ = inputs
    ctx.save_for_backward(x, weight)


def _differentiate(ctx, grad_y):
    x, weight = ctx.saved_tensors
    of_x, of_weight, of_bias = ctx.needs_input_grad
    grad_x = convolution(grad_y, _adjoint(weight), None) if of_x else None
    grad_weight, grad_bias = _kernel_gradient(x, grad_y) if of_weight or of_bias else (None, None)
    return grad_x, grad_weight, grad_bias if of_bias else None


convolution.register_autograd(_differentiate, setup_context=_save)


def _adjoint(weight: Tensor) -> Tensor:
    """Kernel of the convolution that gives the gradient of a convolution's input."""
    return weight.transpose(0, 1).flip(2, 3)


def plain_convolution(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`convolution` by PyTorch."""
    return F.conv2d(x.movedim(-1, 1), weight, bias, padding=_SIZE // 2).movedim(1, -1)


def _plain_kernel_gradient(x: Tensor, grad_y: Tensor) -> tuple[Tensor, Tensor]:
    shape = (grad_y.shape[-1], x.shape[-1], _SIZE, _SIZE)
    maps, gradients = x.movedim(-1, 1), grad_y.movedim(-1, 1)
    return conv2d_weight(maps, shape, gradients, padding=_SIZE // 2).contiguous(), grad_y.sum((0, 1, 2))


def _native_convolution(library: NativeLibrary, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    x, kernel = x.contiguous(), _pack(weight)
    y = x.new_empty(*x.shape[:-1], weight.shape[0])
    bias = None if bias is None else bias.contiguous()
    library.call("winograd_forward", _describe(x, y, kernel=kernel, bias=bias, y=y))
    return y


def _native_kernel_gradient(library: NativeLibrary, x: Tensor, grad_y: Tensor) -> tuple[Tensor, Tensor]:
    x, grad_y = x.contiguous(), grad_y.contiguous()
    outputs, inputs = (_slices(t.shape[-1]) for t in (grad_y, x))
    packed, bias = x.new_zeros(outputs, _POINTS, inputs * _SLICE, _SLICE), x.new_zeros(outputs * _SLICE)
    argument = _describe(x, grad_y, grad_y=grad_y, grad_kernel=packed, grad_bias=bias)
    library.call("winograd_backward", argument)
    return _unpack_gradient(packed, grad_y.shape[-1], x.shape[-1]), bias[: grad_y.shape[-1]].clone()


def _describe(x: Tensor, results: Tensor, **tensors: Tensor | None) -> _Winograd:
    argument = _Winograd(*x.shape, results.shape[-1], torch.get_num_threads(), pointer(x))
    for name, tensor in tensors.items():
        setattr(argument, name, pointer(tensor))
    return argument


def _transform() -> Tensor:
    """G, (8, 5): its rows are f (1, p, .. p^4) at the finite points p, and (0, .. 0, 1) at infinity."""
    rows = [[f * p**power for power in range(_SIZE)] for p, f in zip(_FINITE_POINTS, _FACTORS, strict=True)]
    return torch.tensor([*rows, [0.0] * (_SIZE - 1) + [1.0]], dtype=torch.float64, device="cpu")


def _slices(channels: int) -> int:
    return -(-channels // _SLICE)


def _pack(weight: Tensor) -> Tensor:
    """G w G^T in the order of the C code, filled up with zeros: (slices of K, 64, slices of C * 32, 32)."""
    outputs, inputs = weight.shape[:2]
    if inputs % _SLICE or outputs % _SLICE:
        weight = F.pad(weight, (0, 0, 0, 0, 0, -inputs % _SLICE, 0, -outputs % _SLICE))
    pixels = weight.unflatten(0, (-1, _SLICE)).permute(0, 3, 4, 2, 1).flatten(3).double()  # (slices of K, 5, 5, ...)
    g = _transform()
    points = g @ (g @ pixels.flatten(2)).unflatten(2, (_SIZE, -1))  # (slices of K, 8, 8, ...)
    return points.float().view(-1, _POINTS, weight.shape[1], _SLICE)


def _unpack_gradient(packed: Tensor, outputs: int, inputs: int) -> Tensor:
    g = _transform().T
    points = packed.double().view(len(packed), len(g.T), len(g.T), -1)
    pixels = g @ (g @ points).flatten(2)  # (slices of K, 5, 5 * ...)
    whole = pixels.float().view(-1, _SIZE, _SIZE, packed.shape[2], _SLICE).permute(0, 4, 3, 1, 2).flatten(0, 1)
    return whole[:outputs, :inputs].contiguous()


@checked("winograd")
def _compare(library: NativeLibrary) -> Pairs:
    inputs, outputs = 21, 37
    x, grad_y = example(2, 9, 6, inputs), example(2, 9, 6, outputs, seed=1)
    weight, bias = example(outputs, inputs, _SIZE, _SIZE, seed=2), example(outputs, seed=3)
    yield _native_convolution(library, x, weight, bias), plain_convolution(x, weight, bias)
    yield from zip(_native_kernel_gradient(library, x, grad_y), _plain_kernel_gradient(x, grad_y), strict=True)
