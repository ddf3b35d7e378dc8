"""Causal depthwise convolution over time with SiLU, in either direction: the other half of a Mamba block."""

import ctypes
from collections.abc import Callable
from functools import cache, partial
from importlib import util
from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunet_ext.ops import triton_support
from nnunet_ext.ops.native import NativeLibrary, Strided, checked, library_for, pointer, structure
from nnunet_ext.ops.portable import is_portable
from nnunet_ext.ops.self_check import Pairs, example, is_right
from nnunet_ext.ops.tracing import is_traced
from nnunet_ext.utils.torch_private import in_function_transform


def causal_conv1d_reference(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str | None = None, reverse: bool = False
) -> Tensor:
    """Plain form of `causal_conv1d`: PyTorch's grouped convolution."""
    with torch.autocast(x.device.type, enabled=False):
        wide, weight, bias = _in_one_type(x, weight, bias)
        pad = weight.shape[1] - 1
        padded = F.pad(wide, (0, pad) if reverse else (pad, 0))
        y = F.conv1d(padded, (weight.flip(1) if reverse else weight)[:, None], bias, groups=x.shape[1])
        return (F.silu(y) if activation == "silu" else y).to(x.dtype)


def causal_conv1d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str | None = None, reverse: bool = False
) -> Tensor:
    """y_t = act(bias + sum_j w_j x_{t-k+1+j}); reversed, act(bias + sum_j w_j x_{t+k-1-j}); x is 0 outside.

    The reversed form is the causal one on the reversed sequence, its result reversed back. Nothing is copied or padded,
    and results are laid out as `empty_like(x)`. One pass computes it: on the CPU that of the C extension (if channels
    are adjacent in memory), on CUDA that of the package causal_conv1d, where it is installed, or of a Triton kernel;
    elsewhere there is a pass for each tap. It is computed in at least float32; gradients of weight and bias are
    accumulated in that type and returned in the parameters' own type, whatever the type of x.

    Args:
        x: Sequence.
        weight: One filter per channel.
        bias: One value per channel.
        activation: "silu" or None.
        reverse: Whether time runs from the last position to the first.

    Shape:
        x and result (b, d, l) in the type of x; weight (d, k); bias (d,).

    Raises:
        ValueError: for another activation, or shapes that do not fit together.

    Source: the convolution of Gu and Dao, "Mamba", 2023; meaning of causal_conv1d's `causal_conv1d_fn`.
    """
    if activation not in ("silu", None):
        raise ValueError(f"`activation`={activation!r} is unknown; known: 'silu', None")
    if x.ndim != 3 or weight.ndim != 2 or weight.shape[0] != x.shape[1]:
        raise ValueError(f"`weight` must have the shape (d, k) for `x` (b, d, l), got {weight.shape} and {x.shape}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"`bias` must have the shape ({weight.shape[0]},), got {tuple(bias.shape)}")
    if is_portable() or in_function_transform():  # only PyTorch's convolution has rules for them
        return causal_conv1d_reference(x, weight, bias, activation, reverse)
    if x.device.type == "cuda" and not is_traced(x) and not reverse and _package_takes(x, weight) and _package_usable():
        from causal_conv1d import causal_conv1d_fn

        return causal_conv1d_fn(x, weight, bias, activation=activation)
    return _convolution(x, weight, bias, activation == "silu", reverse)


def _package_takes(x: Tensor, weight: Tensor) -> bool:
    """Whether the kernels of causal_conv1d support these tensors; for others they raise an error."""
    half_or_single = x.dtype in (torch.float16, torch.bfloat16, torch.float32)
    aligned = x.stride(2) == 1 or (x.shape[1] % 8 == 0 and x.stride(0) % 8 == 0 and x.stride(2) % 8 == 0)
    return half_or_single and 2 <= weight.shape[1] <= 4 and aligned


@cache
def _package_usable() -> bool:
    if util.find_spec("causal_conv1d") is None:
        return False
    try:
        import causal_conv1d  # noqa: F401
    except (ImportError, OSError):
        return False
    return True


@structure("convolution")
class _Convolution(ctypes.Structure):
    """`convolution` of csrc/causal_conv1d.c."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("batch", "channels", "length", "width")),
        *((name, ctypes.c_int32) for name in ("silu", "threads")),
        *((name, Strided) for name in ("x", "y", "grad_y", "grad_x")),
        *((name, ctypes.c_void_p) for name in ("weight", "bias", "sums")),
    ]


def _common_type(x: Tensor, weight: Tensor) -> torch.dtype:
    """The type that the convolution is computed in: the common one, at least float32."""
    return torch.promote_types(torch.promote_types(x.dtype, weight.dtype), torch.float32)


def _in_one_type(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """The tensors in their common type."""
    dtype = _common_type(x, weight)
    return x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)


def _library(x: Tensor, weight: Tensor, bias: Tensor | None) -> NativeLibrary | None:
    """The library if it takes these: single precision, adjacent channels, also in results shaped like `x`."""
    if x.stride(1) != 1 or torch.empty_like(x, device="meta").stride(1) != 1:
        return None
    return library_for("causal_conv1d", x, weight, bias)


def _triton_takes(x: Tensor, weight: Tensor) -> bool:
    """Whether Triton's kernels compute it: in single precision on CUDA, if they agree with plain PyTorch there."""
    if _common_type(x, weight) != torch.float32 or (x.device.type != "cuda" and not triton_support.INTERPRETED):
        return False
    if triton_support.why_unusable() is not None:
        return False
    compare = partial(_compare_triton, x.device)
    return is_right(("triton convolution", str(x.device)), "the Triton kernel of the causal convolution", compare)


def _in_time(x: Tensor, reverse: bool) -> Strided:
    """A (b, d, l) tensor in the order in which the convolution reads time."""
    strided = Strided(x.data_ptr(), x.stride(0), 0, 1, x.stride(2))
    if reverse:
        strided.data += (x.shape[2] - 1) * x.stride(2) * x.element_size()
        strided.time = -x.stride(2)
    return strided


def _describe(x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, reverse: bool) -> _Convolution:
    """The arguments as a C structure; `weight` is (k, d) here, and contiguous like `bias`."""
    b, d, length = x.shape
    c = _Convolution(batch=b, channels=d, length=length, width=weight.shape[0])
    c.silu, c.threads = silu, torch.get_num_threads()
    c.x = _in_time(x, reverse)
    c.weight, c.bias = pointer(weight), pointer(bias)
    return c


def _taps(width: int, length: int, reverse: bool) -> list[tuple[int, slice, slice]]:
    """Index of each tap, the outputs that it contributes to, and the inputs that it reads."""
    taps = []
    for j in range(max(0, width - length), width):
        lag = width - 1 - j
        late, early = slice(lag, length), slice(0, length - lag)
        taps.append((j, early, late) if reverse else (j, late, early))
    return taps


def _plain_response(x: Tensor, weight: Tensor, bias: Tensor | None, reverse: bool) -> Tensor:
    """One multiply-add per tap: on a CPU several times faster than PyTorch's grouped convolution; nothing is copied."""
    y = torch.zeros_like(x) if bias is None else torch.zeros_like(x).add_(bias[:, None])
    for j, outputs, inputs in _taps(weight.shape[1], x.shape[2], reverse):
        y[:, :, outputs].addcmul_(x[:, :, inputs], weight[:, j : j + 1])
    return y


@torch.library.custom_op("nnunet_ext::causal_conv1d", mutates_args=())
def _convolution(
    x: Tensor,
    weight: Tensor,
    bias: Optional[Tensor],  # noqa: UP045
    silu: bool,
    reverse: bool,
) -> Tensor:
    if _triton_takes(x, weight):
        from nnunet_ext.ops import triton_conv

        return triton_conv.forward(x, weight.float(), None if bias is None else bias.float(), silu, reverse)
    wide, weight, bias = _in_one_type(x, weight, bias)
    library = _library(wide, weight, bias)
    y = (
        _plain(wide, weight, bias, silu, reverse)
        if library is None
        else _native(library, wide, weight, bias, silu, reverse)
    )
    return y.to(x.dtype)


@_convolution.register_fake
def _(x, weight, bias, silu, reverse):
    return torch.empty_like(x)


@torch.library.custom_op("nnunet_ext::causal_conv1d_backward", mutates_args=())
def _convolution_backward(
    grad_y: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Optional[Tensor],  # noqa: UP045
    silu: bool,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    if _triton_takes(x, weight):
        from nnunet_ext.ops import triton_conv

        wide_bias = None if bias is None else bias.float()
        of_x, *of_weights = triton_conv.backward(grad_y, x, weight.float(), wide_bias, silu, reverse)
    else:
        wide, wide_weight, bias = _in_one_type(x, weight, bias)
        arguments = grad_y.to(wide.dtype), wide, wide_weight, bias, silu, reverse
        library = _library(wide, wide_weight, bias)
        of_x, *of_weights = _plain_backward(*arguments) if library is None else _native_backward(library, *arguments)
    of_weight, of_bias = (g.to(weight.dtype) for g in of_weights)
    return of_x.to(x.dtype), of_weight, of_bias


@_convolution_backward.register_fake
def _(grad_y, x, weight, bias, silu, reverse):
    return torch.empty_like(x), weight.new_empty(weight.shape), weight.new_empty(weight.shape[0])


def _native(
    library: NativeLibrary, x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, reverse: bool
) -> Tensor:
    y = torch.empty_like(x)
    by_tap, bias = weight.t().contiguous(), None if bias is None else bias.contiguous()
    c = _describe(x, by_tap, bias, silu, reverse)
    c.y = _in_time(y, reverse)
    library.call("causal_conv1d_forward", c)
    return y


def _native_backward(
    library: NativeLibrary,
    grad_y: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    silu: bool,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    if grad_y.stride(1) != 1:
        grad_y = grad_y.transpose(1, 2).contiguous().transpose(1, 2)
    by_tap, bias = weight.t().contiguous(), None if bias is None else bias.contiguous()
    c = _describe(x, by_tap, bias, silu, reverse)
    grad_x = torch.empty_like(x)
    library.functions.causal_conv1d_sums.restype = ctypes.c_int64
    sums = x.new_empty(library.functions.causal_conv1d_sums(ctypes.byref(c)), c.width + 1, c.channels)
    c.grad_y, c.grad_x, c.sums = _in_time(grad_y, reverse), _in_time(grad_x, reverse), pointer(sums)
    library.call("causal_conv1d_backward", c)
    total = sums.sum(0)
    return grad_x, total[:-1].t().contiguous(), total[-1].clone()


def _plain(x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, reverse: bool) -> Tensor:
    y = _plain_response(x, weight, bias, reverse)
    return F.silu(y, inplace=True) if silu else y


def _plain_backward(
    grad_y: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, reverse: bool
) -> tuple[Tensor, Tensor, Tensor]:
    if silu:
        response = _plain_response(x, weight, bias, reverse)
        grad_y = torch.ops.aten.silu_backward(grad_y, response)
    grad_x, grad_weight = torch.zeros_like(x), torch.zeros_like(weight)
    for j, outputs, inputs in _taps(weight.shape[1], x.shape[2], reverse):
        grad_x[:, :, inputs].addcmul_(grad_y[:, :, outputs], weight[:, j : j + 1])
        grad_weight[:, j] = (grad_y[:, :, outputs] * x[:, :, inputs]).sum((0, 2))
    return grad_x, grad_weight, grad_y.sum((0, 2))


def _setup_context(ctx, inputs, output):
    x, weight, bias, *ctx.options = inputs
    ctx.save_for_backward(x, weight, bias)


def _backward(ctx, grad_y):
    x, weight, bias = ctx.saved_tensors
    grad_x, grad_weight, grad_bias = _convolution_backward(grad_y, x, weight, bias, *ctx.options)
    return grad_x, grad_weight, None if bias is None else grad_bias.to(bias.dtype), None, None


_convolution.register_autograd(_backward, setup_context=_setup_context)


@checked("causal_conv1d")
def _compare(library: NativeLibrary) -> Pairs:
    return _pairs(partial(_native, library), partial(_native_backward, library), "cpu")


def _compare_triton(device: torch.device) -> Pairs:
    from nnunet_ext.ops import triton_conv

    return _pairs(triton_conv.forward, triton_conv.backward, device)


def _pairs(
    forward: Callable[..., Tensor], backward: Callable[..., tuple[Tensor, Tensor, Tensor]], device: str | torch.device
) -> Pairs:
    """Results and gradients of two functions and of plain PyTorch, in both directions."""
    x, grad_y = (example(2, 19, 21, seed=s, device=device).transpose(1, 2) for s in range(2))
    weight, bias = (example(*shape, seed=s, device=device) for s, shape in ((2, (21, 4)), (3, (21,))))
    for reverse in (False, True):
        options = x, weight, bias, True, reverse
        yield forward(*options), _plain(*options)
        yield from zip(backward(grad_y, *options), _plain_backward(grad_y, *options), strict=True)
