"""Instance norm and leaky ReLU on channels-last maps by the C extension."""

import ctypes

import torch
from torch import Tensor

from nnunet_ext.ops.native import NativeLibrary, native_library, pointer
from nnunet_ext.ops.tracing import has_content


class _Norm(ctypes.Structure):
    """`norm` of csrc/instance_norm.c."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("batch", "voxels", "channels")),
        ("threads", ctypes.c_int32),
        *((name, ctypes.c_float) for name in ("eps", "slope")),
        *((name, ctypes.c_void_p) for name in ("weight", "bias", "x", "grad_y", "out", "mean", "scale", "sums")),
        ("partial", ctypes.c_void_p),
    ]


def native_norm(x: Tensor) -> NativeLibrary | None:
    """The library if it can normalise `x`: in single precision, on the CPU, not compiled; else None.

    Also for a tensor without content, on which nothing is done: what is traced is then what runs.
    """
    if x.device.type != "cpu" or x.dtype != torch.float32 or torch.compiler.is_compiling() or x.numel() == 0:
        return None
    library = native_library()
    return library if library is not None and library.has("instance_norm_forward") else None


def forward(
    library: NativeLibrary, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, slope: float, out: Tensor
) -> tuple[Tensor, Tensor]:
    """Writes LeakyReLU(weight * (x - mean) * scale + bias) to `out`; returns mean and scale = 1 / sqrt(var + eps).

    Args:
        library: From `native_norm`.
        x: Contiguous.
        weight: Contiguous, or None with `bias` None.
        bias: Contiguous.
        eps: Added to the variance.
        slope: Above 0.
        out: Contiguous; may be `x`.

    Shape:
        x and out (B, voxels, C), weight and bias (C,), mean and scale (B, C)
    """
    mean, scale = x.new_empty(2, x.shape[0], x.shape[2]).unbind(0)
    if has_content(x):
        n = _describe(x, weight, bias, slope, out)
        n.eps, n.mean, n.scale = eps, pointer(mean), pointer(scale)
        library.call("instance_norm_forward", n)
    return mean, scale


def backward(
    library: NativeLibrary,
    grad_y: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    scale: Tensor,
    slope: float,
    out: Tensor,
) -> tuple[Tensor, Tensor]:
    """Writes the gradient of x to `out`; returns those of bias and weight.

    Args:
        library: From `native_norm`.
        grad_y: Gradient of the result, contiguous.
        x: What `forward` got; without a weight, what it gave.
        weight: As `forward` got it.
        bias: As `forward` got it.
        mean: From `forward`.
        scale: From `forward`.
        slope: As `forward` got it.
        out: Contiguous; may be `grad_y`.

    Shape:
        grad_y, x and out (B, voxels, C), mean and scale (B, C), the others and the results (C,)
    """
    sums = x.new_empty(x.shape[0], 2, x.shape[2])
    if has_content(x):
        n = _describe(x, weight, bias, slope, out)
        n.grad_y, n.mean, n.scale, n.sums = (pointer(t) for t in (grad_y, mean, scale, sums))
        library.call("instance_norm_backward", n)
    of_bias, of_weight = sums.sum(0).unbind(0)
    return of_bias, of_weight


def _describe(x: Tensor, weight: Tensor | None, bias: Tensor | None, slope: float, out: Tensor) -> _Norm:
    batch, voxels, channels = x.shape
    n = _Norm(batch=batch, voxels=voxels, channels=channels, threads=torch.get_num_threads(), slope=slope)
    n.weight, n.bias, n.x, n.out = (pointer(t) for t in (weight, bias, x, out))
    return n
