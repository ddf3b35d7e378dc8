"""The selective scan in loops over time that exported graphs can hold; see `nnunet_ext.ops.portable`.

A loop's body is recorded once, whatever the length, so that graphs stay small. A step is a few small operations, whose
overhead would dominate one loop over a whole sequence. Time is therefore cut into about sqrt(2 l) segments that are
read side by side, as further samples of the batch:

    1. every segment is read from h = 0, which gives its contribution e_j to the state at its end;
    2. the states at the segments' beginnings follow from h_(j+1) = exp(A sum_t delta_t) h_j + e_j;
    3. every segment is read again from its h_j, which gives y.

No exponent is above 0 where A is negative, as Mamba's is, and nothing of the size (b, d, n, l) is ever stored.
"""

from collections.abc import Sequence
from functools import cache
from math import ceil, sqrt
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunet_ext.ops.portable import Loop
from nnunet_ext.utils.torch_private import recorded_scan, script

_LONGEST_LOOP = 64
"""Sequences of up to this length are read by one loop."""


def portable_scan(tensors: Sequence[Tensor | None], softplus: bool, reverse: bool, loop: Loop) -> tuple[Tensor, Tensor]:
    """y and the last state.

    Args:
        tensors: u, delta, A, B, C, D, z and delta_bias of `nnunet_ext.ops.selective_scan`; B and C as (b, g, n, l).
        softplus: Whether softplus is applied to delta.
        reverse: Whether to scan from the last position to the first.
        loop: How loops are recorded.
    """
    u, delta, A, B, C = cast("list[Tensor]", tensors[:5])
    D, z, delta_bias = tensors[5:]
    groups = B.shape[1]
    delta = delta if delta_bias is None else delta + delta_bias[:, None]
    delta = F.softplus(delta) if softplus else delta
    inputs = [x.unflatten(1, (groups, -1)).permute(3, 0, 1, 2) for x in (delta, delta * u)]  # (l, b, g, d / g)
    inputs += [x.permute(3, 0, 1, 2) for x in (B, C)]  # (l, b, g, n)
    if reverse:
        inputs = [x.flip(0) for x in inputs]
    y, state = _in_segments(A.unflatten(0, (groups, -1)), inputs, loop)
    if reverse:
        y = y.flip(0)
    y = y.permute(1, 2, 3, 0).flatten(1, 2)
    if D is not None:
        y = y + u * D[:, None]
    if z is not None:
        y = y * F.silu(z)
    return y, state.flatten(1, 2)


def _in_segments(rates: Tensor, inputs: list[Tensor], loop: Loop) -> tuple[Tensor, Tensor]:
    """y (l, b, g, d / g) and the last state, of time-major delta, delta u, B and C."""
    length, batch = int(inputs[0].shape[0]), inputs[0].shape[1]  # the first is a tensor under torch.jit.trace
    steps = length if length <= _LONGEST_LOOP else ceil(sqrt(length / 2))
    segments = ceil(length / steps)
    # A step of delta = 0 and u = 0 leaves the state as it is.
    padded = [F.pad(x, (0, 0, 0, 0, 0, 0, 0, segments * steps - length)) for x in inputs]
    rows = [x.unflatten(0, (segments, steps)).transpose(0, 1).flatten(1, 2).contiguous() for x in padded]
    state = rows[0].new_zeros(segments * batch, *rates.shape)
    if segments > 1:
        ends = _over_time(state, rows, rates, loop)[0].unflatten(0, (segments, batch))
        decay = torch.exp(rows[0].sum(0)[..., None] * rates).unflatten(0, (segments, batch))
        state = _over_segments(torch.zeros_like(ends[0]), decay, ends, loop).flatten(0, 1)
    state, y = _over_time(state, rows, rates, loop)
    y = y.unflatten(1, (segments, batch)).transpose(0, 1).flatten(0, 1)[:length]
    return y, state.unflatten(0, (segments, batch))[-1]


def step(h: Tensor, delta: Tensor, drive: Tensor, b: Tensor, c: Tensor, rates: Tensor) -> tuple[Tensor, Tensor]:
    """h_t = exp(delta_t A) h_{t-1} + delta_t u_t B_t and y_t = C_t . h_t.

    Shape:
        h (b, g, e, n), delta and drive = delta u (b, g, e), b and c (b, g, n), rates (g, e, n) -> h, y (b, g, e)
    """
    h = torch.exp(delta[..., None] * rates) * h + drive[..., None] * b[:, :, None]
    return h, (h * c[:, :, None]).sum(-1)


def carry(h: Tensor, decay: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
    """The state at the beginning of the next segment, and that at the beginning of this one."""
    return decay * h + end, h.clone()


def _over_time(h: Tensor, rows: list[Tensor], rates: Tensor, loop: Loop) -> tuple[Tensor, Tensor]:
    if loop == "script":
        return _scripted(_step_loop)(h, *rows, rates)
    return recorded_scan(step, h, rows, rates)


def _over_segments(h: Tensor, decay: Tensor, ends: Tensor, loop: Loop) -> Tensor:
    if loop == "script":
        return _scripted(_carry_loop)(h, decay, ends)
    return recorded_scan(carry, h, [decay, ends])[1]


def _step_loop(h: Tensor, delta: Tensor, drive: Tensor, b: Tensor, c: Tensor, rates: Tensor) -> tuple[Tensor, Tensor]:
    y = torch.empty_like(delta)
    for t in range(delta.shape[0]):
        h, y[t] = step(h, delta[t], drive[t], b[t], c[t], rates)
    return h, y


def _carry_loop(h: Tensor, decay: Tensor, ends: Tensor) -> Tensor:
    before = torch.empty_like(ends)
    for t in range(ends.shape[0]):
        h, before[t] = carry(h, decay[t], ends[t])
    return before


_scripted = cache(script)
