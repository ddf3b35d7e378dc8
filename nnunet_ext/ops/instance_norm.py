"""Instance norm and leaky ReLU on (batch, voxels, channels) maps on the CPU: by the C extension, or by PyTorch.

    n = (x - mean) scale, scale = 1 / sqrt(var + eps);  y = leaky(w n + b)

Three operators: the norm, its backward pass, and the norm in the memory of its input. Without w and b, n follows from
the result, as the leaky ReLU has an inverse; the backward pass then gets y in place of x, so that x need not be kept.
"""

import ctypes
from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunet_ext.ops.native import NativeLibrary, checked, library_for, pointer, structure
from nnunet_ext.ops.reductions import sum_of_products
from nnunet_ext.ops.self_check import Pairs, example


@structure("norm")
class _Norm(ctypes.Structure):
    """`norm` of csrc/instance_norm.c."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("batch", "voxels", "channels")),
        ("threads", ctypes.c_int32),
        *((name, ctypes.c_float) for name in ("eps", "slope")),
        *((name, ctypes.c_void_p) for name in ("weight", "bias", "x", "grad_y", "out", "mean", "scale", "sums")),
        ("partial", ctypes.c_void_p),
    ]


@torch.library.custom_op("nnunet_ext::instance_norm", mutates_args=(), device_types="cpu")
def instance_norm(
    x: Tensor,
    weight: Optional[Tensor],  # noqa: UP045
    bias: Optional[Tensor],  # noqa: UP045
    eps: float,
    slope: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """y, and the mean and the scale that its backward pass needs; they have no gradient of their own.

    Args:
        x: Map in float32 or float64.
        weight: Scale per channel, in the type of x; None, with `bias` None: 1.
        bias: Shift per channel.
        eps: Added to the (biased) variance.
        slope: Slope of the leaky ReLU, above 0; 1 leaves it out.

    Shape:
        x and y (B, voxels, C), weight and bias (C,), mean and scale (B, C)
    """
    x, weight, bias = _contiguous(x, weight, bias)
    out = torch.empty_like(x)
    return out, *_forward(x, weight, bias, eps, slope, out)


@instance_norm.register_fake
def _(x, weight, bias, eps, slope):
    moments = x.new_empty(2, x.shape[0], x.shape[2])
    return x.new_empty(x.shape), torch.empty_like(moments[0]), torch.empty_like(moments[1])


@torch.library.custom_op("nnunet_ext::instance_norm_", mutates_args=("x",), device_types="cpu")
def instance_norm_(
    x: Tensor,
    weight: Optional[Tensor],  # noqa: UP045
    bias: Optional[Tensor],  # noqa: UP045
    eps: float,
    slope: float,
) -> None:
    """`instance_norm` in the memory of a contiguous `x`; without gradients."""
    _, weight, bias = _contiguous(x, weight, bias)
    _forward(x, weight, bias, eps, slope, x)


@torch.library.custom_op("nnunet_ext::instance_norm_backward", mutates_args=(), device_types="cpu")
def _instance_norm_backward(
    grad_y: Tensor,
    x: Tensor,
    weight: Optional[Tensor],  # noqa: UP045
    bias: Optional[Tensor],  # noqa: UP045
    mean: Tensor,
    scale: Tensor,
    slope: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias; `x` is the input, or without a weight the result."""
    x, weight, bias = _contiguous(x, weight, bias)
    grad_y = grad_y.contiguous()
    library = library_for("instance_norm", x, weight, bias)
    if library is None:
        return _plain_backward(grad_y, x, weight, bias, mean, scale, slope)
    return _native_backward(library, grad_y, x, weight, bias, mean, scale, slope)


@_instance_norm_backward.register_fake
def _(grad_y, x, weight, bias, mean, scale, slope):
    return x.new_empty(x.shape), x.new_empty(x.shape[2]), x.new_empty(x.shape[2])


def _setup_context(ctx, inputs, output):
    x, weight, bias, _, slope = inputs
    y, mean, scale = output
    ctx.mark_non_differentiable(mean, scale)
    ctx.save_for_backward(y if weight is None else x, weight, bias, mean, scale)
    ctx.slope = slope


def _backward(ctx, grad_y, *_):
    x, weight, bias, mean, scale = ctx.saved_tensors
    grad_x, grad_weight, grad_bias = _instance_norm_backward(grad_y, x, weight, bias, mean, scale, ctx.slope)
    if weight is None:
        return grad_x, None, None, None, None
    return grad_x, grad_weight, grad_bias, None, None


instance_norm.register_autograd(_backward, setup_context=_setup_context)


def _contiguous(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> tuple[Tensor, Tensor | None, Tensor | None]:
    weight, bias = (None if t is None else t.contiguous() for t in (weight, bias))
    return x.contiguous(), weight, bias


def _forward(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, slope: float, out: Tensor
) -> tuple[Tensor, Tensor]:
    """Writes y to `out`, which may be `x`; returns mean and scale."""
    library = library_for("instance_norm", x, weight, bias)
    if library is None:
        return _plain_forward(x, weight, bias, eps, slope, out)
    return _native_forward(library, x, weight, bias, eps, slope, out)


def _native_forward(
    library: NativeLibrary, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, slope: float, out: Tensor
) -> tuple[Tensor, Tensor]:
    mean, scale = x.new_empty(x.shape[0], x.shape[2]), x.new_empty(x.shape[0], x.shape[2])
    n = _describe(x, weight, bias, slope, out)
    n.eps, n.mean, n.scale = eps, pointer(mean), pointer(scale)
    library.call("instance_norm_forward", n)
    return mean, scale


def _native_backward(
    library: NativeLibrary,
    grad_y: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    scale: Tensor,
    slope: float,
) -> tuple[Tensor, Tensor, Tensor]:
    out, sums = torch.empty_like(x), x.new_empty(x.shape[0], 2, x.shape[2])
    n = _describe(x, weight, bias, slope, out)
    n.grad_y, n.mean, n.scale, n.sums = (pointer(t) for t in (grad_y, mean, scale, sums))
    library.call("instance_norm_backward", n)
    return out, sums[:, 1].sum(0), sums[:, 0].sum(0)


def _describe(x: Tensor, weight: Tensor | None, bias: Tensor | None, slope: float, out: Tensor) -> _Norm:
    batch, voxels, channels = x.shape
    n = _Norm(batch=batch, voxels=voxels, channels=channels, threads=torch.get_num_threads(), slope=slope)
    n.weight, n.bias, n.x, n.out = (pointer(t) for t in (weight, bias, x, out))
    return n


def _plain_forward(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, slope: float, out: Tensor
) -> tuple[Tensor, Tensor]:
    mean = x.mean(1, keepdim=True)
    torch.sub(x, mean, out=out)
    scale = (sum_of_products(out, out) / x.shape[1] + eps).rsqrt()
    out.mul_(scale)
    if weight is not None and bias is not None:
        out.mul_(weight).add_(bias)
    if slope != 1:
        F.leaky_relu_(out, slope)
    return mean[:, 0], scale[:, 0]


def _plain_backward(
    grad_y: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    scale: Tensor,
    slope: float,
) -> tuple[Tensor, Tensor, Tensor]:
    factor = scale[:, None]
    if weight is None or bias is None:
        normalised, result = F.leaky_relu(x, 1 / slope), x
    else:
        normalised = (x - mean[:, None]).mul_(factor)
        result, factor = torch.addcmul(bias, normalised, weight), factor * weight
    grad = torch.ops.aten.leaky_relu_backward(grad_y, result, slope, True)  # only the result's sign counts
    sum_grad, sum_product = grad.sum(1, keepdim=True), sum_of_products(grad, normalised)
    grad.sub_(sum_grad / x.shape[1]).addcmul_(normalised, sum_product, value=-1.0 / x.shape[1]).mul_(factor)
    return grad, sum_product.sum((0, 1)), sum_grad.sum((0, 1))


@checked("instance_norm")
def _compare(library: NativeLibrary) -> Pairs:
    channels, slope = 21, 0.1
    x, grad_y = (2 * example(2, 33, channels, seed=i) + 1 for i in range(2))
    learnt = example(channels, seed=2), example(channels, seed=3)
    for weight, bias in ((*learnt,), (None, None)):
        found, expected = torch.empty_like(x), torch.empty_like(x)
        moments = _native_forward(library, x, weight, bias, 1e-5, slope, found)
        plain = _plain_forward(x, weight, bias, 1e-5, slope, expected)
        yield from zip((found, *moments), (expected, *plain), strict=True)
        kept = expected if weight is None else x
        yield from zip(
            _native_backward(library, grad_y, kept, weight, bias, *plain, slope),
            _plain_backward(grad_y, kept, weight, bias, *plain, slope),
            strict=True,
        )
