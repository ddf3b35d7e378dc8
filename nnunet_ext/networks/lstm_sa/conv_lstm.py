"""A convolutional LSTM with two steps over neighbouring slices, evaluated once per slice of a stack.

Source: Ji, Ye, Ma, "Sparse Coding Inspired LSTM and Self-Attention Integration for Medical Image Segmentation", IEEE
TIP 2024; the cell: Shi et al., "Convolutional LSTM Network", NeurIPS 2015.

The authors run the cell's convolution on [input, hidden] for both steps of every slice. Here it is split into an input
part and a hidden part: a slice's input part is used both when the slice is the current one and when it is its
neighbour's previous one, and the first step, whose hidden state is 0, needs no hidden part. That halves the work.

On the CPU, the C extension, if available, computes 5x5 convolutions with six times fewer multiplications, and the
element-wise part of a step in one pass, without concatenating, splitting or copying tensors.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_ext.blocks.layout import cpu_channels_last
from nnunet_ext.ops import lstm_cell, winograd


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
        n = int(stack.shape[1])  # a tensor under torch.jit.trace
        neighbours = max(n - int(last), int(memory is None))
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
        if winograd.is_faster(maps, weight):
            return winograd.convolution(maps.flatten(0, 1), weight, bias).unflatten(0, maps.shape[:2])
        x = maps.flatten(0, 1).movedim(-1, 1)
        y = cpu_channels_last(F.conv2d(x, weight, bias, padding=self.conv.padding))
        return y.movedim(1, -1).unflatten(0, maps.shape[:2])


def _first_step(gates: Tensor, read: slice) -> tuple[Tensor, Tensor]:
    """c and h of some slices after a step from c = 0, where the forget gate has no effect."""
    if lstm_cell.is_native(gates):
        return lstm_cell.first_step(gates, read.start, read.stop)
    return lstm_cell.plain_first_step(gates[:, read])


def _second_step(gates: Tensor, memory: Memory | None, handed: Memory | None, reverse: bool) -> States:
    """States of n slices, each computed from the memory of the slice read before it.

    Args:
        gates: Input part of the gates of the n slices.
        memory: Memory of the slice read before the first of them; None: the first is its own neighbour.
        handed: Memories of these slices in their own order, at least of those that are read before another one of them
            (or of the only one, without `memory`); None: no memories.
        reverse: Whether slices are read from the last to the first.
    """
    before = (None, None) if memory is None else memory
    after = (None, None) if handed is None else handed
    if lstm_cell.is_native(gates):
        return States(*lstm_cell.second_step(gates, *before, *after, reverse)[:4])
    c, hidden = (_read_before(m, h, gates.shape[1], reverse) for m, h in zip(before, after, strict=True))
    return States(*lstm_cell.plain_step(gates + hidden, c))


def _read_before(memory: Tensor | None, handed: Tensor | None, n: int, reverse: bool) -> Tensor:
    """For each of n slices, the memory of the slice read before it."""
    edge, parts = lstm_cell.sources(memory, handed, n, reverse)
    if parts is None:
        return edge
    return torch.cat((parts, edge) if reverse else (edge, parts), 1)
