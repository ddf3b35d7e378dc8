"""Naive reference implementation of the selective scan, with which every backend is compared."""

import torch
import torch.nn.functional as F
from torch import Tensor


def selective_scan_reference(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
    reverse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Reference of `nnunet_ext.ops.selective_scan`: a loop over time under autograd that keeps (b, d, l, n) values."""
    dtype = torch.float64 if u.dtype == torch.float64 else torch.float32
    u32, delta, A, B, C = (t.to(dtype) for t in (u, delta, A, B, C))
    b, d, length = u.shape
    B, C = (t[None, :, :, None].expand(b, -1, -1, length) if t.ndim == 2 else t for t in (B, C))
    B, C = (t[:, None] if t.ndim == 3 else t for t in (B, C))
    B, C = (t.repeat_interleave(d // t.shape[1], 1) for t in (B, C))  # (b, d, n, l)
    if delta_bias is not None:
        delta = delta + delta_bias.to(dtype)[:, None]
    if delta_softplus:
        delta = F.softplus(delta)
    decay = torch.exp(torch.einsum("bdl,dn->bdln", delta, A)).unbind(2)
    drive = torch.einsum("bdl,bdnl,bdl->bdln", delta, B, u32).unbind(2)
    readout = C.unbind(3)
    state = u32.new_zeros(u.shape[0], u.shape[1], A.shape[1])
    steps: list[Tensor] = [state] * length
    for t in reversed(range(length)) if reverse else range(length):
        state = decay[t] * state + drive[t]
        steps[t] = (state * readout[t]).sum(-1)
    y = torch.stack(steps, 2)
    if D is not None:
        y = y + u32 * D.to(dtype)[:, None]
    if z is not None:
        y = y * F.silu(z.to(dtype))
    y = y.to(u.dtype)
    return (y, state) if return_last_state else y
