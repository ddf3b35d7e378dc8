"""The element-wise part of a ConvLSTM's step on channels-last maps by the C extension."""

import ctypes

import torch
from torch import Tensor

from nnunet_ext.ops.native import NativeLibrary, native_library
from nnunet_ext.ops.tracing import has_content

GATES = 4
"""i, f, o, g: input, forget and output gate, candidate."""


class _Map(ctypes.Structure):
    """`map` of csrc/lstm_cell.c: (batch, rows, channels) strides in elements."""

    _fields_ = [("data", ctypes.c_void_p), ("batch", ctypes.c_int64), ("row", ctypes.c_int64)]


_INPUTS = ("gates", "before", "c")
_RESULTS = ("states", "next_c", "h")
_GRADIENTS = ("grad_c", "grad_f", "grad_g", "grad_h")
_GRADIENT_RESULTS = ("grad_gates", "grad_before", "grad_c_before")


class _Cell(ctypes.Structure):
    """`cell` of csrc/lstm_cell.c."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("batch", "rows", "channels")),
        ("threads", ctypes.c_int32),
        *((name, _Map) for name in (*_INPUTS, *_RESULTS, *_GRADIENTS, *_GRADIENT_RESULTS)),
    ]


def native_cell(gates: Tensor) -> NativeLibrary | None:
    """The library if it can do steps on tensors like `gates`: single precision, on the CPU, not compiled; else None.

    Also for tensors without content, on which steps do nothing: what is traced is then what runs.
    """
    if gates.device.type != "cpu" or gates.dtype != torch.float32 or torch.compiler.is_compiling():
        return None
    library = native_library()
    return library if library is not None and library.has("lstm_cell_forward") else None


def forward(library: NativeLibrary, channels: int, **maps: Tensor | None) -> None:
    """A step: writes `states` (sigmoid or tanh of i, f, o, g), `next_c` and `h`, those that are given.

        i, f, o, g = gates + before;  c' = sigmoid(f) c + sigmoid(i) tanh(g);  h' = sigmoid(o) tanh(c')

    Args:
        library: From `native_cell`.
        channels: C.
        maps: gates, before (None: 0), c (None: 0), and the results.

    Shape:
        gates, before and states (B, ..., 4 C), the others (B, ..., C), with one stride over all axes between
    """
    _call(library, "lstm_cell_forward", channels, maps)


def backward(library: NativeLibrary, channels: int, **maps: Tensor | None) -> None:
    """Backward of `forward`: writes `grad_gates`, `grad_before` (the same values) and `grad_c_before`, if given.

    Args:
        library: From `native_cell`.
        channels: C.
        maps: c; states, or gates and before, from which they are made again; grad_c and grad_h of the results, grad_f
            and grad_g of the states (None: 0); and the results.

    Shape:
        As in `forward`; gradients as what they are of
    """
    _call(library, "lstm_cell_backward", channels, maps)


def _call(library: NativeLibrary, name: str, channels: int, maps: dict[str, Tensor | None]) -> None:
    flat = {key: _rows(x) for key, x in maps.items() if x is not None}
    first = next(iter(flat.values()))
    if not has_content(first):
        return
    cell = _Cell(batch=first.shape[0], rows=first.shape[1], channels=channels, threads=torch.get_num_threads())
    for key, x in flat.items():
        setattr(cell, key, _Map(x.data_ptr(), *x.stride()[:2]))
    library.call(name, cell)


def _rows(x: Tensor) -> Tensor:
    """View (B, rows, C); an error where there is none."""
    if x.stride(-1) != 1 and x.shape[-1] > 1:
        raise ValueError(f"channels must lie beside each other, strides are {x.stride()}")
    return x.view(x.shape[0], -1, x.shape[-1])
