"""Self-attention of many short sequences between its projections: by the C extension, or by PyTorch.

Two operators wrap the C extension, so that fake tensors and counters of products work with it too.
"""

import ctypes

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from nnunet_ext.ops.native import NativeLibrary, checked, library_for, pointer, structure
from nnunet_ext.ops.self_check import Pairs, example

_MAX_SIZE = 64
"""Largest size of a head in csrc/axial_attention.c."""


@structure("attention")
class _Attention(ctypes.Structure):
    """`attention` of csrc/axial_attention.c."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("outer", "length", "inner", "heads", "size")),
        ("threads", ctypes.c_int32),
        *((name, ctypes.c_void_p) for name in ("projected", "grad_mixed", "mixed", "grad_projected")),
    ]


def native_attention(projected: Tensor, size: int) -> NativeLibrary | None:
    """The library if it mixes heads of `size` features of tensors like `projected`; None: PyTorch does."""
    return library_for("axial_attention", projected) if size <= _MAX_SIZE else None


def mix(projected: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(size)) v along axis 1 of tensors on the CPU; `mix_backward` gives its gradient.

    Args:
        projected: q, k and v of every head.

    Shape:
        (outer, length, inner, 3, heads, size) -> (outer, length, inner, heads, size)
    """
    if native_attention(projected, projected.shape[-1]) is None:
        return mix_reference(projected)
    return _mix(projected)


def mix_backward(projected: Tensor, grad_mixed: Tensor) -> tuple[Tensor, Tensor]:
    """The result of `mix`, computed again, and the gradient of `projected`."""
    if native_attention(projected, projected.shape[-1]) is None:
        return _plain_backward(projected, grad_mixed)
    return _mix_backward(projected, grad_mixed)


def _plain_backward(projected: Tensor, grad_mixed: Tensor) -> tuple[Tensor, Tensor]:
    leaf = projected.detach().requires_grad_()
    with torch.enable_grad():
        mixed = mix_reference(leaf)
    return mixed.detach(), torch.autograd.grad(mixed, leaf, grad_mixed)[0]


def mix_reference(projected: Tensor) -> Tensor:
    """Plain form of `mix`, on any device, with gradient: the attention matrices are formed."""
    q, k, v = projected.permute(3, 0, 2, 4, 1, 5)  # (outer, inner, heads, length, size) each
    scores = (q * projected.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    return (scores.softmax(-1) @ v).permute(0, 3, 1, 2, 4)


@torch.library.custom_op("nnunet_ext::axial_mix", mutates_args=(), device_types="cpu")
def _mix(projected: Tensor) -> Tensor:
    projected = projected.contiguous()
    library = native_attention(projected, projected.shape[-1])
    return mix_reference(projected).contiguous() if library is None else _native(library, projected)


@torch.library.custom_op("nnunet_ext::axial_mix_backward", mutates_args=(), device_types="cpu")
def _mix_backward(projected: Tensor, grad_mixed: Tensor) -> tuple[Tensor, Tensor]:
    projected, grad_mixed = projected.contiguous(), grad_mixed.contiguous()
    library = native_attention(projected, projected.shape[-1])
    if library is None:
        mixed, gradient = _plain_backward(projected, grad_mixed)
        return mixed.contiguous(), gradient.contiguous()
    return _native_backward(library, projected, grad_mixed)


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
    """Operations of the scores and of the weighted sums of the values: a multiplication and an addition each."""
    outer, length, inner, _three, heads, size = projected
    return 4 * outer * inner * heads * length * length * size


@register_flop_formula(torch.ops.nnunet_ext.axial_mix_backward)
def _(projected: tuple[int, ...], *_, **__) -> int:
    """Operations of the forward pass, and of two products for the gradient of each of its products."""
    outer, length, inner, _three, heads, size = projected
    return 12 * outer * inner * heads * length * length * size


def _native(library: NativeLibrary, projected: Tensor) -> Tensor:
    mixed = _like_mixed(projected)
    library.call("axial_attention_forward", _describe(projected, mixed=mixed))
    return mixed


def _native_backward(library: NativeLibrary, projected: Tensor, grad_mixed: Tensor) -> tuple[Tensor, Tensor]:
    mixed, gradient = torch.empty_like(grad_mixed), torch.empty_like(projected)
    argument = _describe(projected, grad_mixed=grad_mixed, mixed=mixed, grad_projected=gradient)
    library.call("axial_attention_backward", argument)
    return mixed, gradient


def _describe(projected: Tensor, **maps: Tensor) -> _Attention:
    outer, length, inner, _, heads, size = projected.shape
    argument = _Attention(outer, length, inner, heads, size, torch.get_num_threads(), pointer(projected))
    for key, x in maps.items():
        setattr(argument, key, pointer(x))
    return argument


@checked("axial_attention")
def _compare(library: NativeLibrary) -> Pairs:
    projected, grad_mixed = 2 * example(2, 19, 2, 3, 2, 5), example(2, 19, 2, 2, 5, seed=1)
    yield _native(library, projected), mix_reference(projected)
    expected = _plain_backward(projected, grad_mixed)
    yield from zip(_native_backward(library, projected, grad_mixed), expected, strict=True)
