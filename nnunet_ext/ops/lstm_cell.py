"""The element-wise part of a ConvLSTM's steps over the slices of a stack, on the CPU by the C extension.

    i, f, o, g = gates + before;  c' = sigmoid(f) c + sigmoid(i) tanh(g);  h' = sigmoid(o) tanh(c')

Two steps per slice: the first from c = 0, the second from the memory (c, and the hidden part of the gates) of the slice
that was read before. Each is an operator with a backward pass, which cuts, joins and shifts slices by views.
"""

import ctypes
from typing import List, Optional  # noqa: UP035

import torch
from torch import Tensor

from nnunet_ext.ops.native import NativeLibrary, checked, library_for, structure
from nnunet_ext.ops.portable import is_portable
from nnunet_ext.ops.self_check import Pairs, example
from nnunet_ext.utils.torch_private import in_function_transform

GATES = 4
"""i, f, o, g: input, forget and output gate, candidate."""


@structure("map")
class _Map(ctypes.Structure):
    """`map` of csrc/lstm_cell.c: (batch, rows, channels) strides in elements."""

    _fields_ = [("data", ctypes.c_void_p), ("batch", ctypes.c_int64), ("row", ctypes.c_int64)]


_INPUTS = ("gates", "before", "c")
_STATES = ("state_i", "state_f", "state_o", "state_g")
_RESULTS = ("next_c", "h")
_GRADIENTS = ("grad_c", "grad_f", "grad_g", "grad_h")
_GRADIENT_RESULTS = ("grad_gates", "grad_before", "grad_c_before")


@structure("cell")
class _Cell(ctypes.Structure):
    """`cell` of csrc/lstm_cell.c."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("batch", "rows", "channels")),
        ("threads", ctypes.c_int32),
        *((name, _Map) for name in (*_INPUTS, *_STATES, *_RESULTS, *_GRADIENTS, *_GRADIENT_RESULTS)),
    ]


def is_native(gates: Tensor) -> bool:
    """Whether the operators here take tensors like `gates`.

    Under torch.compile PyTorch's functions fuse better, and only they have rules for transforms of torch.func.
    """
    if is_portable() or torch.compiler.is_compiling() or in_function_transform():
        return False
    return library_for("lstm_cell", gates) is not None


@torch.library.custom_op("nnunet_ext::lstm_first_step", mutates_args=(), device_types="cpu")
def first_step(gates: Tensor, start: int, stop: int) -> tuple[Tensor, Tensor]:
    """c and h of the slices from `start` to `stop` after a step from c = 0, where the forget gate does not matter.

    Shape:
        gates (B, n, ..., 4 C) -> (B, stop - start, ..., C) twice
    """
    used = gates.contiguous()[:, start:stop]
    c, h = (_like_states(used) for _ in range(2))
    _call("lstm_cell_forward", gates=used, next_c=c, h=h)
    return c, h


@first_step.register_fake
def _(gates, start, stop):
    used = gates[:, start:stop]
    return _like_states(used), _like_states(used)


@torch.library.custom_op("nnunet_ext::lstm_first_step_backward", mutates_args=(), device_types="cpu")
def _first_step_backward(gates: Tensor, grad_c: Tensor, grad_h: Tensor, start: int, stop: int) -> Tensor:
    gates = gates.contiguous()
    grad = torch.empty_like(gates)
    grad[:, :start] = 0
    grad[:, stop:] = 0
    given = {"grad_c": grad_c.contiguous(), "grad_h": grad_h.contiguous()}
    _call("lstm_cell_backward", gates=gates[:, start:stop], grad_gates=grad[:, start:stop], **given)
    return grad


@_first_step_backward.register_fake
def _(gates, grad_c, grad_h, start, stop):
    return gates.new_empty(gates.shape)


def _save_first(ctx, inputs, output):
    gates, *ctx.read = inputs
    ctx.save_for_backward(gates)


def _differentiate_first(ctx, grad_c, grad_h):
    return _first_step_backward(ctx.saved_tensors[0], grad_c, grad_h, *ctx.read), None, None


first_step.register_autograd(_differentiate_first, setup_context=_save_first)


@torch.library.custom_op("nnunet_ext::lstm_second_step", mutates_args=(), device_types="cpu")
def second_step(
    gates: Tensor,
    memory_c: Optional[Tensor],  # noqa: UP045
    memory_gates: Optional[Tensor],  # noqa: UP045
    handed_c: Optional[Tensor],  # noqa: UP045
    handed_gates: Optional[Tensor],  # noqa: UP045
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """c, f, g and h of n slices after the memory of the slice read before each; and i and o, for its backward pass.

    Args:
        gates: Input part of the gates.
        memory_c: c of the slice read before the first of them; None: the first is its own neighbour.
        memory_gates: Hidden part of that slice's gates.
        handed_c: c of these slices in their own order, at least of those that are read before another one of them (or
            of the only one, without a memory); None: there are none.
        handed_gates: Hidden parts of the gates, likewise.
        reverse: Whether slices are read from the last to the first.

    Shape:
        gates (B, n, ..., 4 C) -> (B, n, ..., C) each
    """
    gates, n = gates.contiguous(), gates.shape[1]
    i, f, o, g, c, h = (_like_states(gates) for _ in range(6))
    written = ("gates", *_STATES, *_RESULTS)
    maps: list[tuple[Tensor, Tensor | None]] = [targets(x, reverse) for x in (gates, i, f, o, g, c, h)]
    maps += [sources(*x, n, reverse) for x in ((memory_gates, handed_gates), (memory_c, handed_c))]
    for part in list(zip(*maps, strict=True))[:n]:  # a single slice has no others
        _call("lstm_cell_forward", **dict(zip((*written, "before", "c"), part, strict=True)))
    return c, f, g, h, i, o


@second_step.register_fake
def _(gates, memory_c, memory_gates, handed_c, handed_gates, reverse):
    c, f, g, h, i, o = (_like_states(gates) for _ in range(6))
    return c, f, g, h, i, o


@torch.library.custom_op("nnunet_ext::lstm_second_step_backward", mutates_args=(), device_types="cpu")
def _second_step_backward(
    gradients: List[Tensor],  # noqa: UP006
    states: List[Tensor],  # noqa: UP006
    memory_c: Optional[Tensor],  # noqa: UP045
    handed_c: Optional[Tensor],  # noqa: UP045
    reverse: bool,
) -> List[Tensor]:  # noqa: UP006 - what PyTorch 2.5 reads
    """Gradients of gates, and of those of memory_c, memory_gates, handed_c and handed_gates that were given.

    Args:
        gradients: Gradients of c, f, g and h.
        states: The states i, f, o and g.
        memory_c: As `second_step` got it.
        handed_c: As `second_step` got it.
        reverse: As `second_step` got it.
    """
    grads = [x.contiguous() for x in gradients]
    n, channels = grads[0].shape[1], grads[0].shape[-1]
    grad_gates = grads[0].new_empty(*grads[0].shape[:-1], GATES * channels)
    both = (grads[0], grad_gates)
    # The gradient of the slice read first goes to its memory, that of the others to the states handed to them.
    edges = [x.new_empty(x.shape[0], 1, *x.shape[2:]) for x in both]
    handed: list[Tensor | None] = [None, None]
    if handed_c is not None:
        handed = [x.new_empty(*handed_c.shape[:-1], x.shape[-1]) for x in both]
    given: list[tuple[Tensor, Tensor | None]] = [
        (edge, sources(edge, whole, n, reverse)[1]) for edge, whole in zip(edges, handed, strict=True)
    ]
    maps = [targets(x, reverse) for x in (*grads, *states, grad_gates)]
    names = (*_GRADIENTS, *_STATES, "grad_gates", "c", "grad_c_before", "grad_before")
    for part in list(zip(*maps, sources(memory_c, handed_c, n, reverse), *given, strict=True))[:n]:
        _call("lstm_cell_backward", **dict(zip(names, part, strict=True)))
    for whole, edge in zip(handed, edges, strict=True):
        if whole is None:
            continue
        # Slices that are read after the last of these get their gradient elsewhere.
        unread = whole.shape[1] - (n - 1)
        (whole[:, :unread] if reverse else whole[:, n - 1 :]).zero_()
        if memory_c is None:
            (whole[:, -1:] if reverse else whole[:, :1]).add_(edge)
    of_memory = [] if memory_c is None else edges
    return [grad_gates, *of_memory, *(x for x in handed if x is not None)]


@_second_step_backward.register_fake
def _(gradients, states, memory_c, handed_c, reverse):
    grad_c = gradients[0]
    *outer, channels = grad_c.shape
    results = [grad_c.new_empty(*outer, GATES * channels)]
    if memory_c is not None:
        edge = (outer[0], 1, *outer[2:])
        results += [grad_c.new_empty(*edge, channels), grad_c.new_empty(*edge, GATES * channels)]
    if handed_c is not None:
        results += [grad_c.new_empty(*handed_c.shape[:-1], width) for width in (channels, GATES * channels)]
    return results


def _save_second(ctx, inputs, output):
    _, memory_c, _, handed_c, _, ctx.reverse = inputs
    _, f, g, _, i, o = output
    ctx.mark_non_differentiable(i, o)
    ctx.set_materialize_grads(False)  # i and o would get maps of zeros
    ctx.save_for_backward(i, f, o, g, memory_c, handed_c)


def _differentiate_second(ctx, grad_c, grad_f, grad_g, grad_h, *_):
    *states, memory_c, handed_c = ctx.saved_tensors
    gradients = [torch.zeros_like(states[0]) if x is None else x for x in (grad_c, grad_f, grad_g, grad_h)]
    grad_gates, *others = _second_step_backward(gradients, states, memory_c, handed_c, ctx.reverse)
    of_memory = (None, None) if memory_c is None else (others.pop(0), others.pop(0))
    return grad_gates, *of_memory, *(others or (None, None)), None


second_step.register_autograd(_differentiate_second, setup_context=_save_second)


def sources(memory: Tensor | None, handed: Tensor | None, n: int, reverse: bool) -> tuple[Tensor, Tensor | None]:
    """Views from which the slice read first and the n - 1 others read (None: there are no others)."""
    if memory is None:
        assert handed is not None  # for mypy: a memory was given or made
        memory = handed[:, -1:] if reverse else handed[:, :1]
    if n == 1:
        return memory, None
    assert handed is not None
    return memory, handed[:, handed.shape[1] - n + 1 :] if reverse else handed[:, : n - 1]


def targets(x: Tensor, reverse: bool) -> tuple[Tensor, Tensor]:
    """Views of the one of n slices that is read first, and of the others."""
    return (x[:, -1:], x[:, :-1]) if reverse else (x[:, :1], x[:, 1:])


def _like_states(gates: Tensor) -> Tensor:
    return gates.new_empty(*gates.shape[:-1], gates.shape[-1] // GATES)


def _call(name: str, **maps: Tensor | None) -> None:
    """A step, forward or backward, on (B, ..., 4 C) gates and (B, ..., C) maps; None among `maps` is left out."""
    library = library_for("lstm_cell", *maps.values())
    if library is None:
        raise RuntimeError(f"{name} needs the C extension and float32 tensors on the CPU: use PyTorch's functions")
    _step(library, name, **maps)


def _step(library: NativeLibrary, name: str, **maps: Tensor | None) -> None:
    flat = {key: _rows(x) for key, x in maps.items() if x is not None}
    channels = next(x.shape[-1] // (GATES if "gates" in key else 1) for key, x in flat.items())
    first = next(iter(flat.values()))
    cell = _Cell(batch=first.shape[0], rows=first.shape[1], channels=channels, threads=torch.get_num_threads())
    for key, x in flat.items():
        setattr(cell, key, _Map(x.data_ptr(), *x.stride()[:2]))
    library.call(name, cell)


def _rows(x: Tensor) -> Tensor:
    """View (B, rows, C).

    Raises:
        ValueError: unless channels are adjacent in memory.
    """
    if x.stride(-1) != 1 and x.shape[-1] > 1:
        raise ValueError(f"channels must be adjacent in memory, strides are {x.stride()}")
    return x.view(x.shape[0], -1, x.shape[-1])


def plain_step(gates: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """c, f, g and h after a step from c, in PyTorch's functions."""
    i, f, o, g = gates.chunk(GATES, -1)
    f, g = torch.sigmoid(f), torch.tanh(g)
    c = torch.addcmul(f * c, torch.sigmoid(i), g)
    return c, f, g, torch.sigmoid(o) * torch.tanh(c)


def plain_first_step(gates: Tensor) -> tuple[Tensor, Tensor]:
    """c and h after a step from c = 0, in PyTorch's functions."""
    i, _, o, g = gates.chunk(GATES, -1)
    c = torch.sigmoid(i) * torch.tanh(g)
    return c, torch.sigmoid(o) * torch.tanh(c)


@checked("lstm_cell")
def _compare(library: NativeLibrary) -> Pairs:
    channels = 21
    gates, before = (4 * example(2, 5, GATES * channels, seed=s) for s in range(2))
    c, *gradients = (example(2, 5, channels, seed=s) for s in range(2, 7))
    with torch.enable_grad():
        leaves = [x.clone().requires_grad_() for x in (gates, c)]
        expected = plain_step(leaves[0] + before, leaves[1])
        expected_gradients = torch.autograd.grad(expected, leaves, gradients)
    states = [torch.empty_like(c) for _ in _STATES]
    next_c, h, grad_c_before = (torch.empty_like(c) for _ in range(3))
    grad_gates = torch.empty_like(gates)
    named = dict(zip(_STATES, states, strict=True))
    _step(library, "lstm_cell_forward", gates=gates, before=before, c=c, next_c=next_c, h=h, **named)
    grad_c, grad_f, grad_g, grad_h = gradients
    named |= {"grad_c": grad_c, "grad_f": grad_f, "grad_g": grad_g, "grad_h": grad_h}
    _step(library, "lstm_cell_backward", c=c, grad_gates=grad_gates, grad_c_before=grad_c_before, **named)
    found = (next_c, states[1], states[3], h, grad_gates, grad_c_before)
    yield from zip(found, (*(x.detach() for x in expected), *expected_gradients), strict=True)
