"""A convolutional LSTM with two steps over neighbouring slices, evaluated once per slice of a stack.

Source: Ji, Ye, Ma, "Sparse Coding Inspired LSTM and Self-Attention Integration for Medical Image Segmentation", IEEE
TIP 2024; the cell: Shi et al., "Convolutional LSTM Network", NeurIPS 2015.

The authors run the cell's convolution on [input, hidden] for both steps of every slice. Here it is split into an input
part and a hidden part: a slice's input part is used both when the slice is the current one and when it is its
neighbour's previous one, and the first step, whose hidden state is 0, needs no hidden part. That halves the work.

On the CPU, the element-wise part of a step is one pass of the C extension, if available, without concatenating,
splitting or copying tensors.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from nnunet_ext.blocks.layout import cpu_channels_last
from nnunet_ext.ops import lstm_cell


class States(NamedTuple):
    """States of the last step: cell state c, forget gate f, candidate g, hidden state h, each (B, n, H, W, C)."""

    c: Tensor
    f: Tensor
    g: Tensor
    h: Tensor


class Memory(NamedTuple):
    """State passed from a slice to the slice read after it: c, and the hidden part of that slice's gates."""

    c: Tensor
    gates: Tensor


class SliceLSTM(nn.Module):
    """A ConvLSTM that reads a neighbouring slice and then the slice itself, for every slice of a stack.

    i, f, o, g = conv([x, h]);  c' = sigmoid(f) c + sigmoid(i) tanh(g);  h' = sigmoid(o) tanh(c'), from c = h = 0.

    Args:
        channels: C.
        kernel_size: Odd kernel size in voxels.
        reverse: Whether the neighbour is the next slice instead of the previous one.

    Shape:
        (B, n, H, W, C) -> `States` of n slices
    """

    def __init__(self, channels: int, kernel_size: int = 5, reverse: bool = False) -> None:
        super().__init__()
        self.reverse = reverse
        self.conv = nn.Conv2d(2 * channels, 4 * channels, kernel_size, padding=kernel_size // 2)

    def forward(self, stack: Tensor, memory: Memory | None, last: bool) -> tuple[States, Memory | None]:
        """States of one part of a stack that is read in parts.

        Args:
            stack: Maps of neighbouring slices.
            memory: Memory of the slice read before this part; None: there is none, and the first slice is its own
                neighbour.
            last: Whether no slice is read after this part.

        Returns:
            The states, and the memory of the slice read last (None if no slice follows).
        """
        of_input, of_hidden = self.conv.weight.split(stack.shape[-1], 1)
        gates = self._convolve(stack, of_input, self.conv.bias)
        n = stack.shape[1]
        neighbours = max(n - last, memory is None)
        handed = None
        if neighbours:
            read = slice(n - neighbours, n) if self.reverse else slice(0, neighbours)
            c, h = _first_step(gates, read)
            handed = Memory(c, self._convolve(h, of_hidden, None))
        states = _second_step(gates, memory, handed, self.reverse)
        if last or handed is None:
            return states, None
        return states, Memory(*(x[:, :1] if self.reverse else x[:, -1:] for x in handed))

    def _convolve(self, maps: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        x = maps.flatten(0, 1).movedim(-1, 1)
        y = cpu_channels_last(F.conv2d(x, weight, bias, padding=self.conv.padding))
        return y.movedim(1, -1).unflatten(0, maps.shape[:2])


def _first_step(gates: Tensor, read: slice) -> tuple[Tensor, Tensor]:
    """c and h of some slices after a step from c = 0, where the forget gate has no effect."""
    library = lstm_cell.native_cell(gates)
    if library is not None:
        return _FirstStep.apply(library, gates, read)
    i, _, o, g = gates[:, read].chunk(lstm_cell.GATES, -1)
    c = torch.sigmoid(i) * torch.tanh(g)
    return c, torch.sigmoid(o) * torch.tanh(c)


def _second_step(gates: Tensor, memory: Memory | None, handed: Memory | None, reverse: bool) -> States:
    """States of n slices, each computed from the memory of the slice read before it.

    Args:
        gates: Gates of the n slices.
        memory: Memory of the slice read before the first of them; None: the first is its own neighbour.
        handed: Memories of these slices in their own order, at least of those that are read before another one of them
            (or of the only one, without `memory`); None: no memories.
        reverse: Whether slices are read from the last to the first.
    """
    before = (None, None) if memory is None else memory
    after = (None, None) if handed is None else handed
    library = lstm_cell.native_cell(gates)
    if library is not None:
        return States(*_SecondStep.apply(library, gates, *before, *after, reverse))
    c, hidden = (_read_before(m, h, gates.shape[1], reverse) for m, h in zip(before, after, strict=True))
    i, f, o, g = (gates + hidden).chunk(lstm_cell.GATES, -1)
    f, g = torch.sigmoid(f), torch.tanh(g)
    c = torch.addcmul(f * c, torch.sigmoid(i), g)
    return States(c, f, g, torch.sigmoid(o) * torch.tanh(c))


def _read_before(memory: Tensor | None, handed: Tensor | None, n: int, reverse: bool) -> Tensor:
    """For each of n slices, the memory of the slice read before it."""
    edge, parts = _sources(memory, handed, n, reverse)
    if parts is None:
        return edge
    return torch.cat((parts, edge) if reverse else (edge, parts), 1)


def _sources(memory: Tensor | None, handed: Tensor | None, n: int, reverse: bool) -> tuple[Tensor, Tensor | None]:
    """Views of the memory read by the first slice, and of those read by the n - 1 others (None if there are none)."""
    if memory is None:
        assert handed is not None  # for mypy: a memory was given or made
        memory = handed[:, -1:] if reverse else handed[:, :1]
    if n == 1:
        return memory, None
    assert handed is not None
    return memory, handed[:, handed.shape[1] - n + 1 :] if reverse else handed[:, : n - 1]


def _targets(x: Tensor, reverse: bool) -> tuple[Tensor, Tensor]:
    """Views of the slice that is read first, and of the other slices."""
    return (x[:, -1:], x[:, :-1]) if reverse else (x[:, :1], x[:, 1:])


class _FirstStep(torch.autograd.Function):
    """`_first_step` in the C extension; saves the gates, which exist anyway."""

    @staticmethod
    def forward(ctx, library, gates, read):
        channels = gates.shape[-1] // lstm_cell.GATES
        used = gates[:, read]
        c, h = (gates.new_empty(*used.shape[:-1], channels) for _ in range(2))
        lstm_cell.forward(library, channels, gates=used, next_c=c, h=h)
        ctx.save_for_backward(gates)
        ctx.library, ctx.read = library, read
        return c, h

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads):
        (gates,) = ctx.saved_tensors
        grad = torch.empty_like(gates)
        grad[:, : ctx.read.start] = 0
        grad[:, ctx.read.stop :] = 0
        grad_c, grad_h = (g.contiguous() for g in grads)
        lstm_cell.backward(
            ctx.library,
            grad_c.shape[-1],
            gates=gates[:, ctx.read],
            grad_c=grad_c,
            grad_h=grad_h,
            grad_gates=grad[:, ctx.read],
        )
        return None, grad, None


class _SecondStep(torch.autograd.Function):
    """`_second_step` in the C extension; saves the states and the previous c."""

    @staticmethod
    def forward(ctx, library, gates, memory_c, memory_gates, handed_c, handed_gates, reverse):
        channels, n = gates.shape[-1] // lstm_cell.GATES, gates.shape[1]
        states = torch.empty_like(gates)
        c, h = (gates.new_empty(*gates.shape[:-1], channels) for _ in range(2))
        written = ("gates", "states", "next_c", "h")
        maps: list[tuple[Tensor, Tensor | None]] = [_targets(x, reverse) for x in (gates, states, c, h)]
        maps += [_sources(*x, n, reverse) for x in ((memory_gates, handed_gates), (memory_c, handed_c))]
        for part in list(zip(*maps, strict=True))[:n]:  # a single slice has no others
            lstm_cell.forward(library, channels, **dict(zip((*written, "before", "c"), part, strict=True)))
        ctx.save_for_backward(states, memory_c, handed_c)
        ctx.library, ctx.reverse = library, reverse
        _, f, _, g = states.chunk(lstm_cell.GATES, -1)
        return c, f, g, h

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads):
        states, memory_c, handed_c = ctx.saved_tensors
        channels, n = states.shape[-1] // lstm_cell.GATES, states.shape[1]
        grad_gates = torch.empty_like(states)
        # Gradients of the first slice's memory; those of the other slices go to the memories passed to them.
        edge_c, edge_gates = (x.new_empty(x.shape[0], 1, *x.shape[2:]) for x in (grads[0], states))
        handed: list[Tensor | None] = [None, None]
        if handed_c is not None:
            handed = [x.new_empty(*handed_c.shape[:-1], x.shape[-1]) for x in (grads[0], states)]
        edges = (edge_c, edge_gates)
        sources: list[tuple[Tensor, Tensor | None]] = [
            (edge, _sources(edge, whole, n, ctx.reverse)[1]) for edge, whole in zip(edges, handed, strict=True)
        ]
        maps = [_targets(x, ctx.reverse) for x in (*(g.contiguous() for g in grads), states, grad_gates)]
        names = ("grad_c", "grad_f", "grad_g", "grad_h", "states", "grad_gates", "c", "grad_c_before", "grad_before")
        for part in list(zip(*maps, _sources(memory_c, handed_c, n, ctx.reverse), *sources, strict=True))[:n]:
            lstm_cell.backward(ctx.library, channels, **dict(zip(names, part, strict=True)))
        for whole, edge in zip(handed, edges, strict=True):
            if whole is None:
                continue
            # The gradient of the slices read last comes from the following part.
            unread = whole.shape[1] - (n - 1)
            (whole[:, :unread] if ctx.reverse else whole[:, n - 1 :]).zero_()
            if memory_c is None:
                (whole[:, -1:] if ctx.reverse else whole[:, :1]).add_(edge)
        of_memory = (None, None) if memory_c is None else edges
        return None, grad_gates, *of_memory, *handed, None
