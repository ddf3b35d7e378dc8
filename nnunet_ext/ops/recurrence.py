"""The linear recurrence h_t = a_t h_{t-1} + b_t in plain PyTorch, step by step or in chunks side by side."""

from itertools import pairwise
from math import isqrt

import torch
from torch import Tensor

_STEP_BY_STEP = ("cpu",)
"""Devices on which a step costs little more than its arithmetic, which chunks would triple."""
_FEW_STEPS = 64
"""Up to this many steps are large enough to be taken one by one everywhere."""


def recur(a: Tensor, h: Tensor, state: Tensor, backwards: bool = False) -> None:
    """h_t <- h_t + a_t h_{t-1} in place, with `state` before the first step.

    On accelerators, where starting a step takes longer than its arithmetic, sequences are cut into chunks:

    1. every chunk is read from 0, all chunks side by side, as are the products of their decays;
    2. the states before the chunks follow from their ends, one chunk after the other;
    3. what each of these states leaves in its chunk is added in one step.

    With chunks of about sqrt(l / 3) steps this starts 2 sqrt(3 l) operations instead of l.

    Args:
        a: Decays.
        h: b, replaced by the states.
        state: State before the first step.
        backwards: Whether to go from the last position to the first.

    Shape:
        a and h (l, ...), state (...)
    """
    if a.device.type in _STEP_BY_STEP or len(a) <= _FEW_STEPS:
        _recur_by_steps(a, h, state, backwards)
    else:
        _recur_by_chunks(a, h, state, backwards)


def _recur_by_steps(a: Tensor, h: Tensor, state: Tensor, backwards: bool) -> None:
    order = -1 if backwards else 1
    for decay, now in zip(a.unbind(0)[::order], h.unbind(0)[::order], strict=True):
        state = now.addcmul_(decay, state)


def _recur_by_chunks(a: Tensor, h: Tensor, state: Tensor, backwards: bool) -> None:
    steps = len(a)
    size = max(1, isqrt(steps // 3))
    over = steps % size
    whole, rest = (
        (slice(over, steps), slice(0, over)) if backwards else (slice(0, steps - over), slice(steps - over, steps))
    )
    decays, states = (x[whole].unflatten(0, (-1, size)) for x in (a, h))  # (chunks, size, ...)
    within, chunks = range(size), range(len(decays))
    if backwards:
        within, chunks = within[::-1], chunks[::-1]
    products = decays.clone()
    for before, now in pairwise(within):
        states[:, now].addcmul_(decays[:, now], states[:, before])
        products[:, now].mul_(products[:, before])
    entering = torch.empty_like(states[:, 0])
    for chunk in chunks:
        entering[chunk] = state
        state = torch.addcmul(states[chunk, within[-1]], products[chunk, within[-1]], state)
    states.addcmul_(products, entering[:, None])
    _recur_by_steps(a[rest], h[rest], state, backwards)
