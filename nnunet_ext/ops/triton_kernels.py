"""Triton kernels of the selective scan: `triton_scan` prepares their arguments and launches them.

The kernels of the backward pass, in `triton_backward_kernels`, have the same form.

A program is one warp that owns `TILE` channels of one group, one lane per channel, and walks through a chunk of time
step by step. The N states of a channel are a tuple of registers, so that the sum over states needs no exchange between
lanes. Steps count in the order of the scan; a reversed scan is a pointer to the last position and a negative stride.

Tensors come as tuples of a pointer and strides:

    u, delta, z, y and their gradients   pointer, batch, step          (channel stride 1)
    B, C                                 pointer, batch, step, group   (state stride 1)
    A                                    pointer, state, channel
    last_state, initial                  pointer, batch, state, channel
    carry, saved                         pointer, batch, chunk or saved block, state, channel
    dBC                                  pointer, batch, step, tile    (groups of B's, then C's, padded states)

Letters: B batch, D channels, N states, K chunks.

Source: Gu & Dao (2023), "Mamba: Linear-Time Sequence Modeling with Selective State Spaces".
"""

import triton
import triton.language as tl

from nnunet_ext.ops.triton_steps import (
    LOG2_E,
    advance,
    load_rates,
    load_row,
    load_states,
    load_vector,
    locate,
    seek,
    sigmoid,
    step_size,
    store_states,
    where_valid,
    zero_states,
)


@triton.jit
def chunk_ends(
    u,
    delta,
    B,
    A,
    bias,
    ends,
    totals,
    chunks,
    tiles,
    groups,
    channels_per_group,
    SOFTPLUS: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
    N: tl.constexpr,
    LEVELS: tl.constexpr,
):
    """State (B, K, N, D) that each chunk but the last reaches from zero, and its sum of step sizes (B, K, D)."""
    _tile, group, chunk, batch, channel, exists = locate(tiles, groups, channels_per_group, chunks - 1, TILE)
    first = chunk * CHUNK
    u, u_t = seek(u, batch, first, channel)
    delta, delta_t = seek(delta, batch, first, channel)
    B, B_t = seek(B, batch, first, group * B[3])
    rates = load_rates(A, channel, exists, N, LEVELS)
    offset = load_vector(bias + channel, exists, True, True) if bias is not None else 0.0
    h = zero_states(TILE, N)
    total = tl.zeros((TILE,), tl.float32)
    for start in range(0, CHUNK, BLOCK):
        us = ()
        raws = ()
        for r in tl.static_range(BLOCK):
            us = us + (load_vector(u + (start + r) * u_t, exists, True, True),)
            raws = raws + (load_vector(delta + (start + r) * delta_t, exists, True, True),)
        for r in tl.static_range(BLOCK):
            dt = step_size(raws[r] + offset, True, SOFTPLUS, True)
            h = advance(h, rates, dt, dt * us[r], B + (start + r) * B_t, True, N, TILE, True)[0]
            total += dt
    width = groups * channels_per_group
    store_states(ends + (batch * chunks + chunk) * N * width + channel, width, h, exists, N, LEVELS)
    tl.store(totals + (batch * chunks + chunk) * width + channel, total, mask=exists)


@triton.jit
def carry_chunks(
    ends,
    totals,
    A,
    initial,
    chunks,
    width,
    BACKWARD: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
    N: tl.constexpr,
):
    """Replaces each chunk's end by the state that enters it: state <- exp(A sum delta) state + end."""
    program = tl.program_id(0).to(tl.int64)
    tiles = tl.cdiv(width, TILE)
    channel = program % tiles * TILE + tl.arange(0, TILE)
    n = program // tiles % N
    batch = program // tiles // N
    exists = channel < width
    rate = tl.load(A[0] + n * A[1] + channel * A[2], mask=exists, other=0.0) * LOG2_E
    ends += (batch * chunks * N + n) * width + channel
    totals += batch * chunks * width + channel
    if initial is not None:
        place = initial[0] + batch * initial[1] + n * initial[2] + channel * initial[3]
        state = tl.load(place, mask=exists, other=0.0)
    else:
        state = tl.zeros((TILE,), tl.float32)
    for start in range(0, chunks, BLOCK):
        # Loads before stores: the compiler must assume that a store changes what is loaded after it.
        ahead = ()
        decays = ()
        for r in tl.static_range(BLOCK):
            chunk = chunks - 1 - start - r if BACKWARD else start + r
            needed = where_valid(exists, start + r < chunks - 1)
            ahead = ahead + (tl.load(ends + chunk * N * width, mask=needed, other=0.0),)
            decays = decays + (tl.exp2(rate * tl.load(totals + chunk * width, mask=needed, other=0.0)),)
        for r in tl.static_range(BLOCK):
            chunk = chunks - 1 - start - r if BACKWARD else start + r
            tl.store(ends + chunk * N * width, state, mask=where_valid(exists, start + r < chunks))
            state = decays[r] * state + ahead[r]


@triton.jit
def scan(
    u,
    delta,
    B,
    C,
    z,
    A,
    D,
    bias,
    carry,
    y,
    saved,
    last_state,
    length,
    chunks,
    tiles,
    groups,
    channels_per_group,
    ADD: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    EVEN: tl.constexpr,
    CHUNK: tl.constexpr,
    SAVE_EVERY: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
    N: tl.constexpr,
    LEVELS: tl.constexpr,
):
    """y = (C . h + D u) silu(z) of a chunk; ADD adds to the C . h of other states that y holds."""
    _tile, group, chunk, batch, channel, exists = locate(tiles, groups, channels_per_group, chunks, TILE)
    first = chunk * CHUNK
    u, u_t = seek(u, batch, first, channel)
    delta, delta_t = seek(delta, batch, first, channel)
    B, B_t = seek(B, batch, first, group * B[3])
    C, C_t = seek(C, batch, first, group * C[3])
    y, y_t = seek(y, batch, first, channel)
    if z is not None:
        z, z_t = seek(z, batch, first, channel)
    rates = load_rates(A, channel, exists, N, LEVELS)
    offset = load_vector(bias + channel, exists, True, True) if bias is not None else 0.0
    skip = load_vector(D + channel, exists, True, True) if D is not None else 0.0
    if carry is not None:
        h = load_states(
            carry[0] + batch * carry[1] + chunk * carry[2] + channel * carry[4], carry[3], exists, N, LEVELS
        )
    else:
        h = zero_states(TILE, N)
    steps = tl.minimum(CHUNK, length - first).to(tl.int32)
    for start in range(0, steps, BLOCK):
        if saved is not None:
            step = first + start
            if (step > 0) & (step % SAVE_EVERY == 0):
                place = saved[0] + batch * saved[1] + (step // SAVE_EVERY - 1) * saved[2] + channel
                store_states(place, saved[3], h, exists, N, LEVELS)
        # All loads of a block come first: the compiler must not move a load over a store that might change it.
        us = ()
        raws = ()
        gates = ()
        ys = ()
        for r in tl.static_range(BLOCK):
            valid = start + r < steps
            us = us + (load_vector(u + (start + r) * u_t, exists, valid, EVEN),)
            raws = raws + (load_vector(delta + (start + r) * delta_t, exists, valid, EVEN),)
            if z is not None:
                gates = gates + (load_vector(z + (start + r) * z_t, exists, valid, EVEN),)
            if ADD:
                ys = ys + (load_vector(y + (start + r) * y_t, exists, valid, EVEN),)
        outs = ()
        for r in tl.static_range(BLOCK):
            valid = start + r < steps
            dt = step_size(raws[r] + offset, valid, SOFTPLUS, EVEN)
            h = advance(h, rates, dt, dt * us[r], B + (start + r) * B_t, valid, N, TILE, EVEN)[0]
            out = ys[r] if ADD else tl.zeros((TILE,), tl.float32)
            row = load_row(C + (start + r) * C_t, valid, N, TILE, EVEN)
            for n in tl.static_range(N):
                out += h[n] * row[n]
            out += skip * us[r]
            if z is not None:
                out *= gates[r] * sigmoid(gates[r])
            outs = outs + (out,)
        for r in tl.static_range(BLOCK):
            mask = exists if EVEN else where_valid(exists, start + r < steps)
            tl.store(y + (start + r) * y_t, outs[r], mask=mask)
    if chunk == chunks - 1:
        store_states(
            last_state[0] + batch * last_state[1] + channel * last_state[3], last_state[2], h, exists, N, LEVELS
        )
