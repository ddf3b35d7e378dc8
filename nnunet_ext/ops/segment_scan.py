"""The selective scan in plain PyTorch, on any device and in any floating type, in O(b d l) memory.

Time is cut into segments. Inside a segment all values that do not depend on the state are made at once, time-major,
and the recurrence h_t = a_t h_{t-1} + b_t runs in their memory, one fused multiply-add per step, or in chunks side by
side (`nnunet_ext.ops.recurrence`); the readout is one batched matrix product. Only the state before each segment is
kept; the backward pass recomputes a segment from it.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunet_ext.ops.recurrence import recur

_SEGMENT_ELEMENTS = 1 << 20
"""Values (step, b, d, n) of a segment on the CPU: three buffers of them fit the outer cache."""
_SEGMENT_ELEMENTS_ACCELERATOR = 1 << 24


def _segment_length(b: int, d: int, n: int, device: torch.device) -> int:
    elements = _SEGMENT_ELEMENTS if device.type == "cpu" else _SEGMENT_ELEMENTS_ACCELERATOR
    # No shorter than n, or the kept states would outgrow u.
    return max(16, n, elements // (b * d * n))


def saved_shape(b: int, d: int, n: int, length: int, device: torch.device) -> tuple[int, ...]:
    """Shape of the saved states, one per segment."""
    return -(-length // _segment_length(b, d, n, device)), b, d, n


def forward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    softplus: bool,
    reverse: bool,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """y, the last state and the states saved for `backward`; see `nnunet_ext.ops.scan_operator`."""
    b, d, length = u.shape
    n = A.shape[1]
    y = torch.empty_like(u)
    shape = saved_shape(b, d, n, length, u.device)
    saved = u.new_empty(shape if save else (0,))
    step = _segment_length(b, d, n, u.device)
    decay, drive = (u.new_empty(min(step, length), b, d, n) for _ in range(2))
    state = u.new_zeros(b, d, n)
    for index, part in enumerate(_segments(length, step, reverse)):
        if save:
            saved[index] = state
        segment = _Segment(u, delta, B, C, delta_bias, softplus, part)
        a, h = segment.recurrence(A, decay, drive)
        recur(a, h, state, reverse)
        state = h[0 if reverse else -1].clone()
        out = segment.readout(h, segment.C)
        if D is not None:
            out += segment.u * D
        if z is not None:
            out *= F.silu(_time_major(z, part))
        y[:, :, part] = out.permute(1, 2, 0)
    return y, state, saved


def backward(
    grad_y: Tensor,
    grad_last_state: Tensor | None,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    saved: Tensor,
    softplus: bool,
    reverse: bool,
) -> tuple[Tensor | None, ...]:
    """Gradients of u, delta, A, B, C, D, z and delta_bias; None for tensors that were not given.

    With g_t the gradient of h_t: g_t = C_t dy_t + a_{t+1} g_{t+1}, dC_t = dy_t h_t, dB_t = delta_t u_t g_t,
    du_t = D dy_t + delta_t (B_t . g_t), ddelta_t = u_t (B_t . g_t) + A . w_t, dA = sum_t delta_t w_t with
    w_t = g_t a_t h_{t-1}.
    """
    b, d, length = u.shape
    n = A.shape[1]
    grad_u, grad_delta, grad_B, grad_C = map(torch.empty_like, (u, delta, B, C))
    grad_z = None if z is None else torch.empty_like(z)
    grad_A = torch.zeros_like(A)
    grad_D = None if D is None else torch.zeros_like(D)
    grad_bias = None if delta_bias is None else torch.zeros_like(delta_bias)
    step = _segment_length(b, d, n, u.device)
    decay, drive, gradient = (u.new_empty(min(step, length), b, d, n) for _ in range(3))
    carry = u.new_zeros(b, d, n) if grad_last_state is None else grad_last_state
    for index, part in reversed(list(enumerate(_segments(length, step, reverse)))):
        segment = _Segment(u, delta, B, C, delta_bias, softplus, part)
        start = saved[index]
        a, h = segment.recurrence(A, decay, drive)
        recur(a, h, start, reverse)
        dy = _time_major(grad_y, part)
        if z is not None and grad_z is not None:
            gate = _time_major(z, part)
            sigmoid = torch.sigmoid(gate)
            out = segment.readout(h, segment.C)
            if D is not None:
                out += segment.u * D
            slope = sigmoid * (1 + gate * (1 - sigmoid))
            grad_z[:, :, part] = (out * slope * dy).permute(1, 2, 0)
            dy = dy * gate * sigmoid
        g = segment.outer(dy, segment.C, gradient)
        carry = _run_back(a, g, carry, reverse)
        _store_states(grad_C, part, segment.over_channels(dy, h))
        _store_states(grad_B, part, segment.over_channels(segment.drive, g))
        along_B = segment.readout(g, segment.B)
        # w_t = g_t a_t h_{t-1}, in the memory of a.
        w = a.mul_(g)
        before = h[1:] if reverse else h[:-1]
        (w[:-1] if reverse else w[1:]).mul_(before)
        w[-1 if reverse else 0].mul_(start)
        grad_A += torch.mul(w, segment.delta[..., None], out=g).sum((0, 1))
        d_delta = segment.u * along_B + w.mul_(A).sum(-1)
        if softplus:
            d_delta *= torch.sigmoid(segment.raw)
        grad_delta[:, :, part] = d_delta.permute(1, 2, 0)
        d_u = segment.delta * along_B
        if D is not None and grad_D is not None:
            d_u += dy * D
            grad_D += (dy * segment.u).sum((0, 1))
        if grad_bias is not None:
            grad_bias += d_delta.sum((0, 1))
        grad_u[:, :, part] = d_u.permute(1, 2, 0)
    return grad_u, grad_delta, grad_A, grad_B, grad_C, grad_D, grad_z, grad_bias


def _segments(length: int, step: int, reverse: bool) -> Iterator[slice]:
    """Slices of positions in the order of the scan."""
    for begin in range(0, length, step):
        end = min(begin + step, length)
        yield slice(length - end, length - begin) if reverse else slice(begin, end)


def _time_major(x: Tensor, part: slice) -> Tensor:
    """(b, d, l) -> contiguous (steps, b, d), which may be a view: not to be written to."""
    return x[:, :, part].permute(2, 0, 1).contiguous()


def _store_states(x: Tensor, part: slice, values: Tensor) -> None:
    """(steps, b, g, n) -> the part of (b, g, n, l)."""
    x[..., part] = values.permute(1, 2, 3, 0)


class _Segment:
    """The inputs of one segment, time-major: u, delta, drive = delta u (steps, b, d) and B, C (steps, b, g, n)."""

    def __init__(
        self, u: Tensor, delta: Tensor, B: Tensor, C: Tensor, delta_bias: Tensor | None, softplus: bool, part: slice
    ) -> None:
        self.u = _time_major(u, part)
        raw = _time_major(delta, part)
        self.raw = raw if delta_bias is None else raw + delta_bias
        self.delta = F.softplus(self.raw) if softplus else self.raw
        self.drive = self.delta * self.u
        self.B, self.C = (x[..., part].permute(3, 0, 1, 2).contiguous() for x in (B, C))
        self.groups = B.shape[1]

    def recurrence(self, A: Tensor, decay: Tensor, drive: Tensor) -> tuple[Tensor, Tensor]:
        """a_t = exp(delta_t A) and delta_t u_t B_t, (steps, b, d, n), in the given memory."""
        a = torch.mul(self.delta[..., None], A, out=decay[: len(self.delta)]).exp_()
        return a, self.outer(self.drive, self.B, drive)

    def outer(self, x: Tensor, states: Tensor, memory: Tensor) -> Tensor:
        """x_t (b, d) times B_t or C_t (b, g, n) -> (steps, b, d, n), in the given memory."""
        out = memory[: len(x)]
        grouped = x.unflatten(-1, (self.groups, -1))
        torch.mul(grouped[..., None], states[..., None, :], out=out.unflatten(2, (self.groups, -1)))
        return out

    def readout(self, h: Tensor, states: Tensor) -> Tensor:
        """Sum over n of h_t (b, d, n) times C_t (b, g, n) -> (steps, b, d)."""
        n = h.shape[-1]
        product = torch.bmm(h.reshape(-1, h.shape[2] // self.groups, n), states.reshape(-1, n, 1))
        return product.view(h.shape[:3])

    def over_channels(self, x: Tensor, h: Tensor) -> Tensor:
        """Sum over the channels of a group of x_t (b, d) times h_t (b, d, n) -> (steps, b, g, n)."""
        per_group, n = h.shape[2] // self.groups, h.shape[-1]
        product = torch.bmm(x.reshape(-1, 1, per_group), h.reshape(-1, per_group, n))
        return product.view(*h.shape[:2], self.groups, n)


def _run_back(a: Tensor, g: Tensor, carry: Tensor, reverse: bool) -> Tensor:
    """g_t <- g_t + a_{t+1} g_{t+1} in place, from the last step; returns a_t g_t of the first step."""
    if reverse:
        g[0].add_(carry)
        recur(a[:-1], g[1:], g[0])
        return a[-1] * g[-1]
    g[-1].add_(carry)
    recur(a[1:], g[:-1], g[-1], backwards=True)
    return a[0] * g[0]
