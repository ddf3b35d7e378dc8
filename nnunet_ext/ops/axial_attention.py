"""Self-attention of many short sequences between its projections: by the C extension, or by PyTorch.

The C extension stands behind two operators, so that tensors without content and counters of products go through it too.
"""

import ctypes

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from nnunet_ext.ops.native import NativeLibrary, native_library, pointer

_MAX_SIZE = 64
"""Of a head, in csrc/axial_attention.c."""


class _Attention(ctypes.Structure):
    """`attention` of csrc/axial_attention.c."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("outer", "length", "inner", "heads", "size")),
        ("threads", ctypes.c_int32),
        *((name, ctypes.c_void_p) for name in ("projected", "grad_mixed", "mixed", "grad_projected")),
    ]


def native_attention(dtype: torch.dtype, size: int) -> NativeLibrary | None:
    """The library if it can mix heads of `size` features in this type: single precision, 64 at most; else None."""
    if dtype != torch.float32 or size > _MAX_SIZE:
        return None
    library = native_library()
    return library if library is not None and library.has("axial_attention_forward") else None


def mix(projected: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(size)) v along axis 1 of tensors on the CPU; no gradient: that is `mix_backward`.

    Args:
        projected: q, k and v of every head.

    Shape:
        (outer, length, inner, 3, heads, size) -> (outer, length, inner, heads, size)
    """
    if native_attention(projected.dtype, projected.shape[-1]) is None:
        return mix_reference(projected)
    return _mix(projected)


def mix_backward(projected: Tensor, grad_mixed: Tensor) -> tuple[Tensor, Tensor]:
    """The result of `mix`, made again, and the gradient of `projected`."""
    if native_attention(projected.dtype, projected.shape[-1]) is None:
        leaf = projected.detach().requires_grad_()
        with torch.enable_grad():
            mixed = mix_reference(leaf)
        return mixed.detach(), torch.autograd.grad(mixed, leaf, grad_mixed)[0]
    return _mix_backward(projected, grad_mixed)


def mix_reference(projected: Tensor) -> Tensor:
    """Plain form of `mix`, on any device, with gradient: the attention matrices are formed."""
    q, k, v = projected.permute(3, 0, 2, 4, 1, 5)  # (outer, inner, heads, length, size) each
    scores = (q * projected.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    return (scores.softmax(-1) @ v).permute(0, 3, 1, 2, 4)


@torch.library.custom_op("nnunet_ext::axial_mix", mutates_args=(), device_types="cpu")
def _mix(projected: Tensor) -> Tensor:
    projected = projected.contiguous()
    mixed = _like_mixed(projected)
    _call("axial_attention_forward", projected, mixed=mixed)
    return mixed


@torch.library.custom_op("nnunet_ext::axial_mix_backward", mutates_args=(), device_types="cpu")
def _mix_backward(projected: Tensor, grad_mixed: Tensor) -> tuple[Tensor, Tensor]:
    projected, grad_mixed = projected.contiguous(), grad_mixed.contiguous()
    mixed, grad_projected = torch.empty_like(grad_mixed), torch.empty_like(projected)
    maps = {"grad_mixed": grad_mixed, "mixed": mixed, "grad_projected": grad_projected}
    _call("axial_attention_backward", projected, **maps)
    return mixed, grad_projected


@_mix.register_fake
def _(projected: Tensor) -> Tensor:
    return _like_mixed(projected)


@_mix_backward.register_fake
def _(projected: Tensor, grad_mixed: Tensor) -> tuple[Tensor, Tensor]:
    return _like_mixed(projected), projected.new_empty(projected.shape)


def _like_mixed(projected: Tensor) -> Tensor:
    return projected.new_empty((*projected.shape[:3], *projected.shape[4:]))


@register_flop_formula(torch.ops.nnunet_ext.axial_mix)
def _(projected: tuple[int, ...], *_, **__) -> int:
    """Scores, and the weighted sums of the values; a multiplication and an addition each."""
    outer, length, inner, _three, heads, size = projected
    return 4 * outer * inner * heads * length * length * size


@register_flop_formula(torch.ops.nnunet_ext.axial_mix_backward)
def _(projected: tuple[int, ...], *_, **__) -> int:
    """The same again, and two products for the gradient of each of them."""
    outer, length, inner, _three, heads, size = projected
    return 12 * outer * inner * heads * length * length * size


def _call(name: str, projected: Tensor, **maps: Tensor) -> None:
    outer, length, inner, _, heads, size = projected.shape
    library = native_attention(projected.dtype, size)
    assert library is not None
    argument = _Attention(outer, length, inner, heads, size, torch.get_num_threads(), pointer(projected))
    for key, x in maps.items():
        setattr(argument, key, pointer(x))
    library.call(name, argument)
