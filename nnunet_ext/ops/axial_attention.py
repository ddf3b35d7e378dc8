"""Self-attention of many short sequences between its projections: by the C extension, or by PyTorch."""

import ctypes

import torch
from torch import Tensor

from nnunet_ext.ops.native import NativeLibrary, native_library, pointer
from nnunet_ext.ops.tracing import has_content

_MAX_SIZE = 64
"""Of a head, in csrc/axial_attention.c."""


class _Attention(ctypes.Structure):
    """`attention` of csrc/axial_attention.c."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("outer", "length", "inner", "heads", "size")),
        ("threads", ctypes.c_int32),
        *((name, ctypes.c_void_p) for name in ("projected", "grad_mixed", "mixed", "grad_projected")),
    ]


def native_attention(x: Tensor, size: int) -> NativeLibrary | None:
    """The library if it can mix heads of `size` features of tensors like `x`: 64 at most, single precision; else None.

    Also for tensors without content: what counts products is to see them.
    """
    if x.dtype != torch.float32 or size > _MAX_SIZE or not has_content(x):
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
    library = native_attention(projected, projected.shape[-1])
    if library is None:
        return mix_reference(projected)
    projected = projected.contiguous()
    mixed = torch.empty_like(projected[:, :, :, 0], memory_format=torch.contiguous_format)
    _call(library, "axial_attention_forward", projected, mixed=mixed)
    return mixed


def mix_backward(projected: Tensor, grad_mixed: Tensor) -> tuple[Tensor, Tensor]:
    """The result of `mix`, made again, and the gradient of `projected`."""
    library = native_attention(projected, projected.shape[-1])
    if library is None:
        leaf = projected.detach().requires_grad_()
        with torch.enable_grad():
            mixed = mix_reference(leaf)
        return mixed.detach(), torch.autograd.grad(mixed, leaf, grad_mixed)[0]
    projected, grad_mixed = projected.contiguous(), grad_mixed.contiguous()
    mixed, grad_projected = torch.empty_like(grad_mixed), torch.empty_like(projected)
    maps = {"grad_mixed": grad_mixed, "mixed": mixed, "grad_projected": grad_projected}
    _call(library, "axial_attention_backward", projected, **maps)
    return mixed, grad_projected


def mix_reference(projected: Tensor) -> Tensor:
    """Plain form of `mix`, on any device, with gradient: the attention matrices are formed."""
    q, k, v = projected.permute(3, 0, 2, 4, 1, 5)  # (outer, inner, heads, length, size) each
    scores = (q * projected.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    return (scores.softmax(-1) @ v).permute(0, 3, 1, 2, 4)


def _call(library: NativeLibrary, name: str, projected: Tensor, **maps: Tensor) -> None:
    outer, length, inner, _, heads, size = projected.shape
    argument = _Attention(outer, length, inner, heads, size, torch.get_num_threads(), pointer(projected))
    for key, x in maps.items():
        setattr(argument, key, pointer(x))
    library.call(name, argument)
