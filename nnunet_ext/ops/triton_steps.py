"""Functions shared by the Triton kernels of the selective scan: loads, stores, one step, sums over lanes."""

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def softplus(x):
    """log(1 + exp(x)), to float32's precision also where it is tiny."""
    e = tl.exp2(-tl.abs(x) * LOG2_E)
    # log(1 + e) would lose e's digits to the 1; 2 artanh(e / (2 + e)) keeps them. Polynomial fitted over 0 <= e <= 1.
    s = e / (2.0 + e)
    q = s * s
    p = 1.0 + q * (0.33333158 + q * (0.20012427 + q * (0.13980709 + q * 0.14087329)))
    return tl.maximum(x, 0.0) + 2.0 * s * p


@triton.jit
def sigmoid(x):
    return 1.0 / (1.0 + tl.exp2(-x * LOG2_E))


@triton.jit
def locate(tiles, groups, channels_per_group, chunks, TILE: tl.constexpr):
    """This program's tile, group, chunk (of the `chunks` launched) and batch; its channels and which of them exist."""
    program = tl.program_id(0).to(tl.int64)  # so that no offset computed from it overflows
    tile = program % tiles
    group = program // tiles % groups
    rest = program // tiles // groups
    inside = tile * TILE + tl.arange(0, TILE)
    channels = group * channels_per_group + inside
    return tile, group, rest % chunks, rest // chunks, channels, inside < channels_per_group


@triton.jit
def seek(tensor, batch, step, offset):
    """Pointer to a step of a tensor, and its stride in time; within a chunk 32-bit multiples of it are enough."""
    return tensor[0] + batch * tensor[1] + step * tensor[2] + offset, tensor[2]


@triton.jit
def where_valid(mask, valid):
    """mask & valid, which Triton's interpreter gives the wrong type when one of them is a scalar."""
    return tl.where(valid, mask, False)


@triton.jit
def load_vector(pointer, mask, valid, EVEN: tl.constexpr):
    if not EVEN:
        mask = where_valid(mask, valid)
    return tl.load(pointer, mask=mask, other=0.0)


@triton.jit
def load_scalar(pointer, valid, EVEN: tl.constexpr):
    if EVEN:
        return tl.load(pointer)
    else:
        return tl.load(pointer, mask=valid, other=0.0)


@triton.jit
def load_row(pointer, valid, N: tl.constexpr, TILE: tl.constexpr, EVEN: tl.constexpr):
    """N values of one step, which all lanes read: four at a time where N is a multiple of 4."""
    row = ()
    if N % 4 == 0:
        # A lane owns its row of (TILE, 4), which it reads in one access if the compiler knows the values aligned.
        offsets = tl.zeros((TILE, 1), tl.int32) + tl.arange(0, 4)[None, :]
        for first in tl.static_range(0, N, 4):
            if EVEN:
                x = tl.load(pointer + first + offsets)
            else:
                x = tl.load(pointer + first + offsets, mask=where_valid(offsets >= 0, valid), other=0.0)
            row = row + split_states(x, 4, 2)
    else:
        for n in tl.static_range(N):
            row = row + (load_scalar(pointer + n, valid, EVEN),)
    return row


@triton.jit
def split_states(x, N: tl.constexpr, LEVELS: tl.constexpr):
    """The first N columns of (TILE, 2**LEVELS) as vectors."""
    parts = (x,)
    for level in tl.static_range(LEVELS):
        halves = ()
        for i in tl.static_range(1 << level):
            pair = tl.reshape(parts[i], (x.shape[0], 2, 1 << (LEVELS - level - 1)))
            low, high = tl.split(tl.permute(pair, (0, 2, 1)))
            halves = halves + (low, high)
        parts = halves
    states = ()
    for n in tl.static_range(N):
        states = states + (tl.reshape(parts[n], (x.shape[0],)),)
    return states


@triton.jit
def load_states(pointer, stride, mask, N: tl.constexpr, LEVELS: tl.constexpr):
    # One access instead of N: Triton's time to compile grows with accesses times operations.
    n = tl.arange(0, 1 << LEVELS)
    x = tl.load(pointer[:, None] + n[None, :] * stride, mask=mask[:, None] & (n < N)[None, :], other=0.0)
    return split_states(x, N, LEVELS)


@triton.jit
def store_states(pointer, stride, states, mask, N: tl.constexpr, LEVELS: tl.constexpr):
    for _extra in tl.static_range((1 << LEVELS) - N):
        states = states + (states[0],)
    for level in tl.static_range(LEVELS):
        joined = ()
        for i in tl.static_range(1 << (LEVELS - level - 1)):
            joined = joined + (tl.join(states[i], states[i + (1 << (LEVELS - level - 1))]),)
        states = joined
    n = tl.arange(0, 1 << LEVELS)
    x = tl.reshape(states[0], (mask.shape[0], 1 << LEVELS))
    tl.store(pointer[:, None] + n[None, :] * stride, x, mask=mask[:, None] & (n < N)[None, :])


@triton.jit
def store_each(pointer, stride, states, mask, N: tl.constexpr):
    """One access per state, so that each lane stores its own channel and may read it again without a barrier."""
    for n in tl.static_range(N):
        tl.store(pointer + n * stride, states[n], mask=mask)


@triton.jit
def load_each(pointer, stride, mask, N: tl.constexpr):
    """The states that `store_each` has stored."""
    states = ()
    for n in tl.static_range(N):
        states = states + (tl.load(pointer + n * stride, mask=mask, other=0.0),)
    return states


@triton.jit
def zero_states(TILE: tl.constexpr, N: tl.constexpr):
    states = ()
    for _n in tl.static_range(N):
        states = states + (tl.zeros((TILE,), tl.float32),)
    return states


@triton.jit
def load_rates(A, channel, mask, N: tl.constexpr, LEVELS: tl.constexpr):
    """A log2(e), for exp(delta A) as a power of two."""
    a = load_states(A[0] + channel * A[2], A[1], mask, N, LEVELS)
    rates = ()
    for n in tl.static_range(N):
        rates = rates + (a[n] * LOG2_E,)
    return rates


@triton.jit
def step_size(raw, valid, SOFTPLUS: tl.constexpr, EVEN: tl.constexpr):
    dt = softplus(raw) if SOFTPLUS else raw
    if not EVEN:
        # A step of size zero beyond the end does not change any state.
        dt = tl.where(valid, dt, 0.0)
    return dt


@triton.jit
def advance(h, rates, dt, drive, B, valid, N: tl.constexpr, TILE: tl.constexpr, EVEN: tl.constexpr):
    """h <- exp(dt A) h + drive B, and the decayed part exp(dt A) h by itself."""
    row = load_row(B, valid, N, TILE, EVEN)
    new = ()
    decayed = ()
    for n in tl.static_range(N):
        kept = h[n] * tl.exp2(dt * rates[n])
        decayed = decayed + (kept,)
        new = new + (kept + drive * row[n],)
    return new, decayed


@triton.jit
def sum_lanes(values, COUNT: tl.constexpr, LEVELS: tl.constexpr, TILE: tl.constexpr):
    """Sums of COUNT = 2**LEVELS <= TILE vectors (TILE,) over their lanes, as one vector (COUNT,).

    Alternately halves lanes and values until each lane holds one sum. `split` needs the values that it separates in one
    lane, so the compiler moves lanes to registers once, through shared memory, and adds there. This takes a seventh of
    the instructions of COUNT calls of `tl.sum`, and leaves the sums ready for one store.
    """
    for level in tl.static_range(LEVELS):
        joined = ()
        for i in tl.static_range(COUNT >> (level + 1)):
            joined = joined + (tl.join(values[i], values[i + (COUNT >> (level + 1))]),)
        values = joined
    x = tl.reshape(values[0], (1, TILE, COUNT))
    for level in tl.static_range(LEVELS):
        pairs = tl.reshape(x, (1 << level, 2, TILE >> (level + 1), COUNT >> (level + 1), 2))
        low, high = tl.split(tl.permute(pairs, (4, 0, 2, 3, 1)))
        x = tl.reshape(low + high, (2 << level, TILE >> (level + 1), COUNT >> (level + 1)))
    return tl.sum(tl.reshape(x, (COUNT, TILE // COUNT)), 1)


@triton.jit
def gradient_before_gate(grad, gate):
    return grad * gate * sigmoid(gate)
