"""Triton kernels of the selective scan's backward pass; `triton_kernels` describes their form and arguments."""

import triton
import triton.language as tl

from nnunet_ext.ops.triton_steps import (
    LN_2,
    advance,
    gradient_before_gate,
    load_each,
    load_rates,
    load_row,
    load_states,
    load_vector,
    locate,
    seek,
    sigmoid,
    step_size,
    store_each,
    store_states,
    sum_lanes,
    where_valid,
    zero_states,
)


@triton.jit
def chunk_ends_backward(
    delta,
    C,
    z,
    grad,
    A,
    bias,
    ends,
    totals,
    length,
    chunks,
    tiles,
    groups,
    channels_per_group,
    SOFTPLUS: tl.constexpr,
    EVEN: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
    N: tl.constexpr,
    LEVELS: tl.constexpr,
):
    """The state's gradient that each chunk but the first passes to the one before it, and its sum of step sizes."""
    _tile, group, chunk, batch, channel, exists = locate(tiles, groups, channels_per_group, chunks - 1, TILE)
    chunk += 1
    first = chunk * CHUNK
    delta, delta_t = seek(delta, batch, first, channel)
    C, C_t = seek(C, batch, first, group * C[3])
    grad, grad_t = seek(grad, batch, first, channel)
    if z is not None:
        z, z_t = seek(z, batch, first, channel)
    rates = load_rates(A, channel, exists, N, LEVELS)
    offset = load_vector(bias + channel, exists, True, True) if bias is not None else 0.0
    v = zero_states(TILE, N)
    total = tl.zeros((TILE,), tl.float32)
    steps = tl.minimum(CHUNK, length - first).to(tl.int32)
    blocks = tl.cdiv(steps, BLOCK)
    for i in range(blocks):
        start = (blocks - 1 - i) * BLOCK
        raws = ()
        grads = ()
        for r in tl.static_range(BLOCK):
            valid = start + r < steps
            raws = raws + (load_vector(delta + (start + r) * delta_t, exists, valid, EVEN),)
            g = load_vector(grad + (start + r) * grad_t, exists, valid, EVEN)
            if z is not None:
                g = gradient_before_gate(g, load_vector(z + (start + r) * z_t, exists, valid, EVEN))
            grads = grads + (g,)
        for r in tl.static_range(BLOCK - 1, -1, -1):
            valid = start + r < steps
            dt = step_size(raws[r] + offset, valid, SOFTPLUS, EVEN)
            row = load_row(C + (start + r) * C_t, valid, N, TILE, EVEN)
            new = ()
            for n in tl.static_range(N):
                g = v[n] + grads[r] * row[n]
                new = new + (g * tl.exp2(dt * rates[n]),)
            v = new
            total += dt
    width = groups * channels_per_group
    store_states(ends + (batch * chunks + chunk) * N * width + channel, width, v, exists, N, LEVELS)
    tl.store(totals + (batch * chunks + chunk) * width + channel, total, mask=exists)


@triton.jit
def scan_backward(
    u,
    delta,
    B,
    C,
    z,
    grad,
    A,
    D,
    bias,
    saved,
    carry,
    du,
    ddelta,
    dz,
    dBC,
    dA,
    dD,
    dbias,
    scratch,
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
    """Gradients of a chunk, block by block from its end; ADD adds these states' share of du, ddelta and dz.

    With g_t = dL/dh_t, p_t = dL/d(C . h_t + D u_t) and a_t = exp(delta_t A):

        g_t = a_{t+1} g_{t+1} + C_t p_t         dC_t = sum_d p_t h_t        dB_t = sum_d g_t delta_t u_t
        du_t = D p_t + delta_t B_t . g_t        dA = sum_t delta_t g_t a_t h_{t-1}
        ddelta_t = u_t B_t . g_t + sum_n A g_t a_t h_{t-1}, through softplus where there is one

    From a saved state, the states before the blocks that follow it are computed once and put into `scratch`
    (B, K, blocks, N, D). A block's states are recomputed from its own and stay in registers as a_t h_{t-1}; h_t follows
    from it.
    """
    PADDED: tl.constexpr = 1 << LEVELS
    tile, group, chunk, batch, channel, exists = locate(tiles, groups, channels_per_group, chunks, TILE)
    first = chunk * CHUNK
    u, u_t = seek(u, batch, first, channel)
    delta, delta_t = seek(delta, batch, first, channel)
    B, B_t = seek(B, batch, first, group * B[3])
    C, C_t = seek(C, batch, first, group * C[3])
    grad, grad_t = seek(grad, batch, first, channel)
    du, du_t = seek(du, batch, first, channel)
    ddelta, ddelta_t = seek(ddelta, batch, first, channel)
    columns = group * 2 * PADDED + tl.arange(0, 2 * PADDED)
    dBC, dBC_t = seek(dBC, batch, first, tile * dBC[3] + columns)
    if z is not None:
        z, z_t = seek(z, batch, first, channel)
        dz, dz_t = seek(dz, batch, first, channel)
    rates = load_rates(A, channel, exists, N, LEVELS)
    offset = load_vector(bias + channel, exists, True, True) if bias is not None else 0.0
    skip = load_vector(D + channel, exists, True, True) if D is not None else 0.0
    if carry is not None:
        v = load_states(
            carry[0] + batch * carry[1] + chunk * carry[2] + channel * carry[4], carry[3], exists, N, LEVELS
        )
    else:
        v = zero_states(TILE, N)
    sums_A = zero_states(TILE, N)
    sum_D = tl.zeros((TILE,), tl.float32)
    sum_bias = tl.zeros((TILE,), tl.float32)
    steps = tl.minimum(CHUNK, length - first).to(tl.int32)
    width = groups * channels_per_group
    part = batch * chunks + chunk
    scratch += part * (SAVE_EVERY // BLOCK) * N * width + channel
    intervals = tl.cdiv(steps, SAVE_EVERY)
    for i in range(intervals):
        anchor = (intervals - 1 - i) * SAVE_EVERY
        blocks = tl.cdiv(tl.minimum(SAVE_EVERY, steps - anchor), BLOCK)
        place = (first + anchor) // SAVE_EVERY - 1
        h = load_states(
            saved[0] + batch * saved[1] + place * saved[2] + channel,
            saved[3],
            where_valid(exists, place >= 0),
            N,
            LEVELS,
        )
        store_each(scratch, width, h, exists, N)
        for block in range(1, blocks):
            before = anchor + (block - 1) * BLOCK
            for r in tl.static_range(BLOCK):
                x = load_vector(u + (before + r) * u_t, exists, True, True)
                raw = load_vector(delta + (before + r) * delta_t, exists, True, True)
                dt = step_size(raw + offset, True, SOFTPLUS, True)
                h = advance(h, rates, dt, dt * x, B + (before + r) * B_t, True, N, TILE, True)[0]
            store_each(scratch + block * N * width, width, h, exists, N)
        for j in range(blocks):
            block = blocks - 1 - j
            start = anchor + block * BLOCK
            h = load_each(scratch + block * N * width, width, exists, N)
            us = ()
            dts = ()
            kept = ()
            for r in tl.static_range(BLOCK):
                valid = start + r < steps
                us = us + (load_vector(u + (start + r) * u_t, exists, valid, EVEN),)
                raw = load_vector(delta + (start + r) * delta_t, exists, valid, EVEN)
                dts = dts + (step_size(raw + offset, valid, SOFTPLUS, EVEN),)
            for r in tl.static_range(BLOCK):
                valid = start + r < steps
                h, decayed = advance(h, rates, dts[r], dts[r] * us[r], B + (start + r) * B_t, valid, N, TILE, EVEN)
                kept = kept + decayed
            for r in tl.static_range(BLOCK - 1, -1, -1):
                valid = start + r < steps
                mask = exists if EVEN else where_valid(exists, valid)
                dt = dts[r]
                drive = dt * us[r]
                p = load_vector(grad + (start + r) * grad_t, exists, valid, EVEN)
                grad_y = p
                if z is not None:
                    gate = load_vector(z + (start + r) * z_t, exists, valid, EVEN)
                    p = gradient_before_gate(p, gate)
                out = skip * us[r] + tl.zeros((TILE,), tl.float32)
                from_B = tl.zeros((TILE,), tl.float32)
                from_A = tl.zeros((TILE,), tl.float32)
                new_v = ()
                new_sums = ()
                products_B = ()
                products_C = ()
                row_B = load_row(B + (start + r) * B_t, valid, N, TILE, EVEN)
                row_C = load_row(C + (start + r) * C_t, valid, N, TILE, EVEN)
                for n in tl.static_range(N):
                    b, c = row_B[n], row_C[n]
                    h_n = kept[r * N + n] + drive * b
                    g = v[n] + p * c
                    decayed_g = g * kept[r * N + n]
                    out += h_n * c
                    from_B += g * b
                    from_A += rates[n] * decayed_g
                    products_B = products_B + (g * drive,)
                    products_C = products_C + (p * h_n,)
                    new_sums = new_sums + (sums_A[n] + dt * decayed_g,)
                    new_v = new_v + (g * tl.exp2(dt * rates[n]),)
                for _extra in tl.static_range(PADDED - N):
                    products_B = products_B + (tl.zeros((TILE,), tl.float32),)
                    products_C = products_C + (tl.zeros((TILE,), tl.float32),)
                v = new_v
                sums_A = new_sums
                sums = sum_lanes(products_B + products_C, 2 * PADDED, LEVELS + 1, TILE)
                grad_u = skip * p + dt * from_B
                grad_delta = us[r] * from_B + from_A * LN_2
                if SOFTPLUS:
                    grad_delta *= sigmoid(load_vector(delta + (start + r) * delta_t, exists, valid, EVEN) + offset)
                sum_D += p * us[r]
                sum_bias += grad_delta if EVEN else tl.where(valid, grad_delta, 0.0)
                if ADD:
                    grad_u += load_vector(du + (start + r) * du_t, exists, valid, EVEN)
                    grad_delta += load_vector(ddelta + (start + r) * ddelta_t, exists, valid, EVEN)
                tl.store(du + (start + r) * du_t, grad_u, mask=mask)
                tl.store(ddelta + (start + r) * ddelta_t, grad_delta, mask=mask)
                if EVEN:
                    tl.store(dBC + (start + r) * dBC_t, sums)
                else:
                    tl.store(dBC + (start + r) * dBC_t, sums, mask=where_valid(columns >= 0, valid))
                if z is not None:
                    s = sigmoid(gate)
                    grad_z = grad_y * out * s * (1.0 + gate * (1.0 - s))
                    if ADD:
                        grad_z += load_vector(dz + (start + r) * dz_t, exists, valid, EVEN)
                    tl.store(dz + (start + r) * dz_t, grad_z, mask=mask)
    store_states(dA + part * N * width + channel, width, sums_A, exists, N, LEVELS)
    if D is not None:
        tl.store(dD + part * width + channel, sum_D, mask=exists)
    if bias is not None:
        tl.store(dbias + part * width + channel, sum_bias, mask=exists)
