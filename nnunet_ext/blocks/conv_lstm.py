"""Convolutional LSTM of two steps over neighbouring slices, evaluated once per slice of a stack.

Source: Ji, Ye, Ma, "Sparse Coding Inspired LSTM and Self-Attention Integration for Medical Image Segmentation", IEEE
TIP 2024; the cell: Shi et al., "Convolutional LSTM Network", NeurIPS 2015.

The authors run the cell's convolution on [input, hidden] for both steps of every slice. Here it is split into its
input part and its hidden part: a slice's input part serves it as the previous slice of its neighbour and as the
current one, and the first step, whose hidden state is 0, needs no hidden part. That is half of the work.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_ext.blocks.layout import cpu_channels_last


class States(NamedTuple):
    """Of the last step: cell state c, forget gate f, candidate g, hidden state h, each (B, n, H, W, C)."""

    c: Tensor
    f: Tensor
    g: Tensor
    h: Tensor


class Memory(NamedTuple):
    """What a slice hands to the one that is read after it: c, and the hidden part of that one's gates."""

    c: Tensor
    gates: Tensor


class SliceLSTM(nn.Module):
    """A ConvLSTM that reads a neighbouring slice and then the slice itself, for every slice of a stack.

    i, f, o, g = conv([x, h]);  c' = sigmoid(f) c + sigmoid(i) tanh(g);  h' = sigmoid(o) tanh(c'), from c = h = 0.

    Args:
        channels: C.
        kernel_size: Odd, in voxels.
        reverse: Whether the neighbour is the next slice instead of the previous one.

    Shape:
        (B, n, H, W, C) -> `States` of n slices
    """

    def __init__(self, channels: int, kernel_size: int = 5, reverse: bool = False) -> None:
        super().__init__()
        self.reverse = reverse
        self.conv = nn.Conv2d(2 * channels, 4 * channels, kernel_size, padding=kernel_size // 2)

    def forward(self, stack: Tensor, memory: Memory | None, last: bool) -> tuple[States, Memory | None]:
        """States of a stack that is read in parts.

        Args:
            stack: Maps of neighbouring slices.
            memory: Of the slice read before the stack; None: there is none, the first one is its own neighbour.
            last: Whether no slice is read after the stack.

        Returns:
            The states, and the memory of the slice read last (None if it is the last of all).
        """
        of_input, of_hidden = self.conv.weight.split(stack.shape[-1], 1)
        gates = self._convolve(stack, of_input, self.conv.bias)
        n = stack.shape[1]
        neighbours = max(n - last, memory is None)
        handed = None
        if neighbours:
            c, h = _first_step(gates[:, n - neighbours :] if self.reverse else gates[:, :neighbours])
            handed = Memory(c, self._convolve(h, of_hidden, None))
            if memory is None:
                memory = Memory(*(x[:, -1:] if self.reverse else x[:, :1] for x in handed))
        before = memory
        if memory is not None and handed is not None and n > 1:
            before = Memory(*(self._join(first, rest, n) for first, rest in zip(memory, handed, strict=True)))
        assert before is not None  # for mypy: a memory was given or made
        states = _second_step(gates + before.gates, before.c)
        if last or handed is None:
            return states, None
        return states, Memory(*(x[:, :1] if self.reverse else x[:, -1:] for x in handed))

    def _join(self, first: Tensor, rest: Tensor, n: int) -> Tensor:
        """Of the slice read before each of n slices."""
        if self.reverse:
            return torch.cat((rest[:, rest.shape[1] - n + 1 :], first), 1)
        return torch.cat((first, rest[:, : n - 1]), 1)

    def _convolve(self, maps: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        x = maps.flatten(0, 1).movedim(-1, 1)
        y = cpu_channels_last(F.conv2d(x, weight, bias, padding=self.conv.padding))
        return y.movedim(1, -1).unflatten(0, maps.shape[:2])


def _first_step(gates: Tensor) -> tuple[Tensor, Tensor]:
    """c and h after a step from c = 0, where the forget gate does not matter."""
    i, _, o, g = gates.chunk(4, -1)
    c = torch.sigmoid(i) * torch.tanh(g)
    return c, torch.sigmoid(o) * torch.tanh(c)


def _second_step(gates: Tensor, c: Tensor) -> States:
    i, f, o, g = gates.chunk(4, -1)
    f, g = torch.sigmoid(f), torch.tanh(g)
    c = torch.addcmul(f * c, torch.sigmoid(i), g)
    return States(c, f, g, torch.sigmoid(o) * torch.tanh(c))
