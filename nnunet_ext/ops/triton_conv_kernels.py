"""Triton kernels of the causal convolution: `triton_conv` prepares their arguments and launches them.

Sequences come as tuples of a pointer to the first step and the strides of batch, channel and step; filters are
(D, WIDTH).
"""

import triton
import triton.language as tl

from nnunet_ext.ops.triton_steps import sigmoid


@triton.jit
def _locate(channels, length, TILE: tl.constexpr, CHUNK: tl.constexpr):
    """This program's batch, chunk, number of chunks, channels, and which of these exist."""
    tiles = tl.cdiv(channels, TILE)
    chunks = tl.cdiv(length, CHUNK)
    program = tl.program_id(0).to(tl.int64)  # so that no offset computed from it overflows
    channel = program % tiles * TILE + tl.arange(0, TILE)
    return program // tiles // chunks, program // tiles % chunks, chunks, channel, channel < channels


@triton.jit
def _place(tensor, batch, channel, step):
    return tensor[0] + batch * tensor[1] + channel[None, :] * tensor[2] + step[:, None] * tensor[3]


@triton.jit
def _tile(tensor, batch, channel, step, exists, length):
    """Values (STEPS, TILE) in float32, 0 outside the sequence."""
    inside = exists[None, :] & ((step >= 0) & (step < length))[:, None]
    return tl.load(_place(tensor, batch, channel, step), mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _tiles(tensor, batch, channel, step, exists, length, FIRST: tl.constexpr, COUNT: tl.constexpr):
    """`COUNT` tiles, the first of them `FIRST` steps later."""
    found = ()
    for i in tl.static_range(COUNT):
        found = found + (_tile(tensor, batch, channel, step + (FIRST + i), exists, length),)
    return found


@triton.jit
def _filters(weight, channel, exists, WIDTH: tl.constexpr):
    taps = ()
    for j in tl.static_range(WIDTH):
        taps = taps + (tl.load(weight + channel * WIDTH + j, mask=exists, other=0.0)[None, :],)
    return taps


@triton.jit
def _response(tiles, taps, offset, LAG: tl.constexpr, WIDTH: tl.constexpr):
    total = offset + taps[0] * tiles[LAG]
    for j in tl.static_range(1, WIDTH):
        total += taps[j] * tiles[LAG + j]
    return total


@triton.jit
def convolve(
    x,
    y,
    weight,
    bias,
    channels,
    length,
    WIDTH: tl.constexpr,
    SILU: tl.constexpr,
    TILE: tl.constexpr,
    STEPS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """y = act(r) of a program's channels and steps."""
    batch, chunk, _chunks, channel, exists = _locate(channels, length, TILE, CHUNK)
    taps = _filters(weight, channel, exists, WIDTH)
    offset = tl.load(bias + channel, mask=exists, other=0.0)[None, :] if bias is not None else 0.0
    first = chunk * CHUNK
    for start in range(0, tl.minimum(CHUNK, length - first).to(tl.int32), STEPS):
        step = first + start + tl.arange(0, STEPS)
        tiles = _tiles(x, batch, channel, step, exists, length, 1 - WIDTH, WIDTH)
        out = _response(tiles, taps, offset, 0, WIDTH)
        if SILU:
            out *= sigmoid(out)
        tl.store(_place(y, batch, channel, step), out, mask=exists[None, :] & (step < length)[:, None])


@triton.jit
def convolve_backward(
    x,
    grad_y,
    grad_x,
    sums,
    weight,
    bias,
    channels,
    length,
    WIDTH: tl.constexpr,
    SILU: tl.constexpr,
    TILE: tl.constexpr,
    STEPS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Gradient of x, and in `sums` (B, chunks, WIDTH + 1, D) the parts of the gradients of taps and bias."""
    batch, chunk, chunks, channel, exists = _locate(channels, length, TILE, CHUNK)
    taps = _filters(weight, channel, exists, WIDTH)
    offset = tl.load(bias + channel, mask=exists, other=0.0)[None, :] if bias is not None else 0.0
    of_taps = ()
    for _j in tl.static_range(WIDTH):
        of_taps = of_taps + (tl.zeros((TILE,), tl.float32),)
    of_bias = tl.zeros((TILE,), tl.float32)
    first = chunk * CHUNK
    for start in range(0, tl.minimum(CHUNK, length - first).to(tl.int32), STEPS):
        step = first + start + tl.arange(0, STEPS)
        tiles = _tiles(x, batch, channel, step, exists, length, 1 - WIDTH, 2 * WIDTH - 1)
        total = tl.zeros((STEPS, TILE), tl.float32)
        for lag in tl.static_range(WIDTH):
            grad = _tile(grad_y, batch, channel, step + lag, exists, length)
            if SILU:
                response = _response(tiles, taps, offset, lag, WIDTH)
                s = sigmoid(response)
                grad *= s * (1.0 + response * (1.0 - s))
            total += taps[WIDTH - 1 - lag] * grad
            if lag == 0:
                new = ()
                for j in tl.static_range(WIDTH):
                    new = new + (of_taps[j] + tl.sum(grad * tiles[j], 0),)
                of_taps = new
                of_bias += tl.sum(grad, 0)
        tl.store(_place(grad_x, batch, channel, step), total, mask=exists[None, :] & (step < length)[:, None])
    place = sums + (batch * chunks + chunk) * (WIDTH + 1) * channels + channel
    for j in tl.static_range(WIDTH):
        tl.store(place + j * channels, of_taps[j], mask=exists)
    tl.store(place + WIDTH * channels, of_bias, mask=exists)
