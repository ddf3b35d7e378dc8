"""Selective scan on the GPU in Triton: compiled on first use, nothing to build at install.

    delta <- softplus(delta + delta_bias);  h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t
    y_t = (C_t . h_t + D u_t) silu(z_t)

Time is cut into chunks that run at once: a first pass finds the state that each chunk reaches from zero, a short kernel
carries the states over the chunks, a second pass scans again from the right states. Training keeps a state every 16
steps or more, less than one float32 tensor like u; backward recomputes what lies between. No atomics: equal inputs give
equal gradients.

Shape: u, delta, z, y (b, d, l); A (d, n); B, C (b, g, n, l), channel c using group c // (d // g); D, delta_bias (d,).
All float32, any strides; fastest where u, delta, z have channel stride 1 and B, C state stride 1.

Source: Gu & Dao (2023), "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", sections 2 and 3.3.
"""

from collections.abc import Iterator
from typing import Any

import torch
import triton
from torch import Tensor

from nnunet_ext.ops import triton_backward_kernels, triton_kernels

# One warp with a channel per lane: wider tiles would put a barrier into every sum over channels.
TILE = 32
# Steps whose loads are in flight together; in backward also those whose states fill half of the 255 registers.
BLOCK = 8
BACKWARD_BLOCK = 4
# States that a lane reads at a time, if their number is a multiple of it.
ROW = 4
# More states than this are scanned in several launches that add up.
STATES = 16
# Longest chunk first; shorter ones while they leave the GPU (132 SMs on an H100) fewer warps than this.
CHUNKS = (256, 128, 64)
WARPS = 2048

# Strides in time up to this: a chunk has fewer than max(512, n + 16) steps, so offsets within it are 32-bit numbers.
MAX_STEP = 2**20

# Fusing a multiply and an add is Triton's default up to 3.9; named because 3.10 changes it and 3.9 warns.
LAUNCH: dict[str, Any] = {"num_warps": 1, "enable_fp_fusion": True}

# A tensor in the form of `triton_kernels`: a tuple of the tensor and its strides, or None.
KernelTensor = Any


def save_interval(n: int) -> int:
    """Steps between saved states: a multiple of 16 no less than n."""
    return 16 * max(1, triton.cdiv(n, 16))


def saved_shape(b: int, d: int, n: int, l: int) -> tuple[int, ...]:  # noqa: E741
    """Shape of what `forward` saves, less than (b, d, l) in size: the states before steps 16, 32, ... for n <= 16."""
    return b, (l - 1) // save_interval(n), n, d


class _Plan:
    """The division of a problem into chunks, and its tensors in the form that the kernels take."""

    def __init__(self, u: Tensor, n: int, groups: int, softplus: bool, reverse: bool) -> None:
        self.b, self.d, self.length = u.shape
        self.n = n
        self.groups = groups
        self.softplus = softplus
        self.reverse = reverse
        self.channels_per_group = self.d // groups
        self.tiles = triton.cdiv(self.channels_per_group, TILE)
        self.interval = save_interval(n)
        for steps in CHUNKS:
            self.chunk = self.interval * triton.cdiv(steps, self.interval)
            self.chunks = triton.cdiv(self.length, self.chunk)
            if self.grid(self.chunks)[0] >= WARPS:
                break

    def state_blocks(self) -> Iterator[slice]:
        """Equal parts of at most `STATES` states."""
        width = triton.cdiv(self.n, triton.cdiv(self.n, STATES))
        for first in range(0, self.n, width):
            yield slice(first, min(first + width, self.n))

    def grid(self, chunks: int) -> tuple[int]:
        return (self.b * chunks * self.groups * self.tiles,)

    @property
    def sizes(self) -> tuple[int, ...]:
        return self.chunks, self.tiles, self.groups, self.channels_per_group

    def options(self, n: int) -> dict[str, Any]:
        """Constants that are compiled into the kernels for n states."""
        sizes = {"CHUNK": self.chunk, "BLOCK": BLOCK, "TILE": TILE, "N": n, "LEVELS": (n - 1).bit_length()}
        return {"SOFTPLUS": self.softplus} | sizes | LAUNCH

    def along_time(self, x: Tensor | None) -> KernelTensor:
        """Pointer to the scan's first step, and strides of batch, step and group, of (b, d, l) or (b, g, n, l)."""
        if x is None:
            return None
        start, sign = (x[..., -1:], -1) if self.reverse else (x, 1)
        return start, x.stride(0), sign * x.stride(-1), *x.stride()[1:-2]

    def carry(self, ends: Tensor, totals: Tensor, a: KernelTensor, initial: KernelTensor, backward: bool) -> None:
        n = ends.shape[2]
        triton_kernels.carry_chunks[(self.b * n * triton.cdiv(self.d, TILE),)](
            ends, totals, a, initial, self.chunks, self.d, BACKWARD=backward, BLOCK=BLOCK, TILE=TILE, N=n, **LAUNCH
        )


def _strided(x: Tensor | None, *dimensions: int) -> KernelTensor:
    return None if x is None else (x, *(x.stride(i) for i in dimensions))


def _is_channels_last(x: Tensor) -> bool:
    """Whether the channel stride is 1, so that a warp loads channels in one access, and offsets fit into 32 bits."""
    return (x.shape[1] == 1 or x.stride(1) == 1) and x.stride(2) <= MAX_STEP


def _time_major(x: Tensor) -> Tensor:
    """An uninitialised tensor of x's shape (b, d, l), in memory (b, l, d)."""
    return x.new_empty(x.shape[0], x.shape[2], x.shape[1]).transpose(1, 2)


def _channels_last(x: Tensor | None) -> Tensor | None:
    return x if x is None or _is_channels_last(x) else _time_major(x).copy_(x)


def _buffer(x: Tensor | None) -> Tensor | None:
    """Memory for kernels to write x to: x itself if its layout suits them."""
    return x if x is None or _is_channels_last(x) else _time_major(x)


def _finish(x: Tensor | None, buffer: Tensor | None) -> None:
    if x is not None and buffer is not None and buffer is not x:
        x.copy_(buffer)


def _states_last(x: Tensor) -> Tensor:
    """B or C (b, g, n, l) with adjacent states, of which kernels read four at a time if they are aligned."""
    adjacent = (x.shape[2] == 1 or x.stride(2) == 1) and x.stride(3) <= MAX_STEP
    if adjacent and (x.shape[2] % ROW or _is_aligned(x)):
        return x
    return x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)


def _is_aligned(x: Tensor) -> bool:
    """Whether Triton knows of every row of states that it is aligned: it looks at multiples of 16 of all numbers."""
    return x.data_ptr() % 16 == 0 and all(x.stride(i) % 16 == 0 or x.shape[i] == 1 for i in (0, 1, 3))


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
    """Scans; equation and shapes as in the module's docstring.

    Args:
        reverse: Whether to scan from the last position to the first.
        save: Whether to keep the states that `backward` needs.

    Returns:
        y laid out as `empty_like(u)`; the state (b, d, n) after the scan's last step; the saved states (`saved_shape`),
        of shape (0,) without `save`.
    """
    plan = _Plan(u, A.shape[1], B.shape[1], softplus, reverse)
    y = torch.empty_like(u)
    buffer = _buffer(y)
    last_state = u.new_empty(plan.b, plan.d, plan.n)
    saved = u.new_empty(saved_shape(plan.b, plan.d, plan.n, plan.length) if save else (0,))
    at_u, at_delta, at_z = (plan.along_time(_channels_last(x)) for x in (u, delta, z))
    B, C = _states_last(B), _states_last(C)
    D, delta_bias = (None if x is None else x.contiguous() for x in (D, delta_bias))
    carry = None
    with torch.cuda.device_of(u):
        for states in plan.state_blocks():
            last = states.stop == plan.n
            a, at_B, at_C = _strided(A[:, states], 1, 0), *(plan.along_time(x[:, :, states]) for x in (B, C))
            options = plan.options(states.stop - states.start)
            if plan.chunks > 1:
                carry = u.new_empty(plan.b, plan.chunks, options["N"], plan.d)
                totals = u.new_empty(plan.b, plan.chunks, plan.d)
                triton_kernels.chunk_ends[plan.grid(plan.chunks - 1)](
                    at_u, at_delta, at_B, a, delta_bias, carry, totals, *plan.sizes, **options
                )
                plan.carry(carry, totals, a, None, backward=False)
            triton_kernels.scan[plan.grid(plan.chunks)](
                *(at_u, at_delta, at_B, at_C, at_z if last else None, a, D if last else None, delta_bias),
                *(_strided(carry, 0, 1, 2, 3), plan.along_time(buffer)),
                _strided(saved[:, :, states], 0, 1, 2) if save else None,
                _strided(last_state[:, :, states], 0, 2, 1),
                *(plan.length, *plan.sizes),
                ADD=states.start > 0,
                EVEN=plan.length % BLOCK == 0,
                SAVE_EVERY=plan.interval,
                **options,
            )
    _finish(y, buffer)
    return y, last_state, saved


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
    """Gradients of u, delta, A, B, C, D, z and delta_bias, each laid out as `empty_like` of its input; None for None.

    Args:
        grad_y: dL/dy, (b, d, l).
        grad_last_state: dL/d last_state, (b, d, n); None for zeros.
        saved: Saved states of `forward` with `save` and the same inputs.
    """
    plan = _Plan(u, A.shape[1], B.shape[1], softplus, reverse)
    du, ddelta, dA, dB, dC = (torch.empty_like(x) for x in (u, delta, A, B, C))
    dD, dz, dbias = (None if x is None else torch.empty_like(x) for x in (D, z, delta_bias))
    buffers = [_buffer(x) for x in (du, ddelta, dz)]
    at_u, at_delta, at_z, at_grad = (plan.along_time(_channels_last(x)) for x in (u, delta, z, grad_y))
    B, C = _states_last(B), _states_last(C)
    D, delta_bias = (None if x is None else x.contiguous() for x in (D, delta_bias))
    # Each program's sums over its own steps or channels; torch adds them up.
    parts = (plan.b, plan.chunks)
    parts_D, parts_bias = u.new_empty(2, *parts, plan.d).unbind()
    with torch.cuda.device_of(u):
        for states in plan.state_blocks():
            first = states.start == 0
            a, at_B, at_C = _strided(A[:, states], 1, 0), *(plan.along_time(x[:, :, states]) for x in (B, C))
            n = states.stop - states.start
            even = plan.length % BACKWARD_BLOCK == 0
            options = plan.options(n) | {"BLOCK": BACKWARD_BLOCK, "EVEN": even}
            initial = None if grad_last_state is None else grad_last_state[:, :, states]
            # Without chunks, the gradient of the last state enters the only chunk.
            carry = None if initial is None else initial.transpose(1, 2)[:, None]
            if plan.chunks > 1:
                carry = u.new_empty(*parts, n, plan.d)
                totals = u.new_empty(*parts, plan.d)
                triton_backward_kernels.chunk_ends_backward[plan.grid(plan.chunks - 1)](
                    *(at_delta, at_C, at_z, at_grad, a, delta_bias, carry, totals, plan.length, *plan.sizes), **options
                )
                plan.carry(carry, totals, a, _strided(initial, 0, 2, 1), backward=True)
            padded = triton.next_power_of_2(n)
            parts_BC = u.new_empty(plan.tiles, plan.b, plan.length, plan.groups, 2, padded)
            parts_A = u.new_empty(*parts, n, plan.d)
            scratch = u.new_empty(*parts, plan.interval // BACKWARD_BLOCK, n, plan.d)
            at_BC = plan.along_time(parts_BC.flatten(3).permute(1, 0, 3, 2))
            triton_backward_kernels.scan_backward[plan.grid(plan.chunks)](
                *(at_u, at_delta, at_B, at_C, at_z, at_grad, a, D if first else None, delta_bias),
                *(_strided(saved[:, :, states], 0, 1, 2), _strided(carry, 0, 1, 2, 3)),
                *(plan.along_time(x) for x in buffers),
                *(at_BC, parts_A, parts_D, parts_bias, scratch),
                *(plan.length, *plan.sizes),
                ADD=not first,
                SAVE_EVERY=plan.interval,
                **options,
            )
            dA[:, states] = parts_A.sum((0, 1)).t()
            for result, part in ((dB, parts_BC[:, :, :, :, 0, :n]), (dC, parts_BC[:, :, :, :, 1, :n])):
                result[:, :, states] = part.sum(0).permute(0, 2, 3, 1)
            if dbias is not None:
                summed = parts_bias.sum((0, 1))
                dbias.copy_(summed) if first else dbias.add_(summed)
            if dD is not None and first:
                dD.copy_(parts_D.sum((0, 1)))
    for whole, buffer in zip((du, ddelta, dz), buffers, strict=True):
        _finish(whole, buffer)
    return du, ddelta, dA, dB, dC, dD, dz, dbias
