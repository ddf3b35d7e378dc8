/* The selective scan of Mamba (Gu and Dao, 2023) in float32, forward and backward.

     delta <- softplus(delta + bias);  h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t;  y_t = (C_t . h_t + D u_t) silu(z_t)

   A vector holds LANES channels, so nothing is summed across lanes in the loop over states; time advances in tiles of
   TILE steps, whose values are brought into vectors on loading. States are taken STATES at a time, in registers. The
   forward pass saves the state at the start of every tile; the backward pass recomputes a tile's states from it.
   Reversed scans walk through tiles, and through the steps in them, backwards. */
#include "tile.h"

#include <stdlib.h>

#if LANES == 16
#define STATES 16
#else
#define STATES 8
#endif
#define BACKWARD_STATES 8 /* with 16, a tile's history would not fit the first cache */
#define ROUND_UP(x, to) (((x) + (to) - 1) / (to) * (to))

typedef struct {
    int64_t batch, channels, groups, states, length;
    int32_t softplus, reverse, parts, threads;
    tensor u, delta, z, y, B, C;            /* z.data may be null */
    const float *A, *D, *delta_bias;        /* (channels, states), (channels), (channels); D and bias may be null */
    const float *first_state;               /* (batch, channels, states), that before the first step; null: zeros */
    float *last_state;                      /* the same after the last step; may be the memory of `first_state` */
    float *saved;                           /* (batch, tiles, states, channels); null: nothing is saved */
    tensor grad_y, grad_u, grad_delta, grad_z, grad_B, grad_C;
    int64_t grad_B_part, grad_C_part;       /* stride between the sums of different parts */
    const float *grad_last_state;           /* (batch, channels, states) or null */
    float *grad_A, *grad_D, *grad_bias;     /* (batch, channels, states), (batch, channels), (batch, channels) */
} scan;

/* The work of one task: one sample, and a range of channel blocks of one group. */
typedef struct {
    const scan *s;
    int64_t batch, group, first, last; /* blocks of LANES channels within the group */
    int64_t padded;                    /* states, rounded up to STATES */
    int64_t row;                       /* length of a row of B_t and C_t: rounded up to LANES too */
} task;

INLINE int64_t tiles(const scan *s) { return (s->length + TILE - 1) / TILE; }

/* The steps of a tile: their first position in memory, their number, and the walk through them. */
typedef struct {
    int64_t position;
    int steps, begin, stride;
} walk;

INLINE walk tile_walk(const scan *s, int64_t tile) {
    int64_t begin = tile * TILE;
    int steps = (int)(s->length - begin < TILE ? s->length - begin : TILE);
    if (s->reverse) return (walk){s->length - begin - steps, steps, steps - 1, -1};
    return (walk){begin, steps, 0, 1};
}

INLINE int64_t channel(const task *k, int64_t block) {
    return k->group * (k->s->channels / k->s->groups) + block * LANES;
}

INLINE int lanes(const task *k, int64_t block) {
    int64_t left = k->s->channels / k->s->groups - block * LANES;
    return left < LANES ? (int)left : LANES;
}

/* out[t][n] = x_n(t), with 0 for the states that padding adds. */
static void load_states(const task *k, const tensor *x, walk w, float *out) {
    vf column[TILE];
    for (int64_t n = 0; n < k->row; n += LANES) {
        int64_t rows = k->s->states - n;
        if (rows <= 0)
            memset(column, 0, sizeof column);
        else
            load_tile(at(x, k->batch, k->group, n, w.position), x, rows < LANES ? (int)rows : LANES, w.steps, column);
        for (int t = 0; t < w.steps; t++) store(out + t * k->row + n, column[t]);
    }
}

/* Sums over lanes of sums[t * padded + n] to x_n(t). */
static void store_states(const task *k, const tensor *x, int64_t offset, walk w, const vf *sums) {
    vf column[TILE];
    for (int64_t n = 0; n < k->s->states; n += LANES) {
        int rows = k->s->states - n < LANES ? (int)(k->s->states - n) : LANES;
        for (int t = 0; t < w.steps; t++) {
            vf r[LANES];
            for (int i = 0; i < LANES; i++) r[i] = n + i < k->padded ? sums[t * k->padded + n + i] : (vf){0};
            transpose(r);
            vf total = r[0];
            UNROLL for (int i = 1; i < LANES; i++) total += r[i];
            column[t] = total;
        }
        store_tile(at(x, k->batch, k->group, n, w.position) + offset, x, rows, w.steps, column);
    }
}

INLINE vf per_channel(const task *k, int64_t block, const float *values) {
    return values ? load_some(values + channel(k, block), lanes(k, block)) : (vf){0};
}

/* (channels, states) values of a block, one vector per state, times `factor`; 0 for null and for states that padding
   adds. */
static void load_block(const task *k, int64_t block, const float *values, float factor, vf *out) {
    int64_t states = k->s->states;
    tensor x = {.row = states, .time = 1};
    for (int64_t n = 0; n < k->padded; n += TILE) {
        vf part[TILE] = {0};
        int count = (int)(states - n < TILE ? states - n : TILE);
        if (values && count > 0)
            load_tile(values + channel(k, block) * states + n, &x, lanes(k, block), count, part);
        for (int i = 0; i < TILE && n + i < k->padded; i++) out[n + i] = part[i] * factor;
    }
}

static void store_block(const task *k, int64_t block, float *values, const vf *in) {
    int64_t states = k->s->states;
    tensor x = {.row = states, .time = 1};
    for (int64_t n = 0; n < states; n += TILE) {
        vf part[TILE];
        int count = (int)(states - n < TILE ? states - n : TILE);
        for (int i = 0; i < TILE; i++) part[i] = i < count ? in[n + i] : (vf){0};
        store_tile(values + channel(k, block) * states + n, &x, lanes(k, block), count, part);
    }
}

/* The values of the task's sample among (batch, channels, states) ones; null for null. */
INLINE float *of_sample(const task *k, const float *values) {
    return values ? (float *)values + k->batch * k->s->channels * k->s->states : 0;
}

/* What a task reads and writes next. */
typedef struct {
    int count;
    ahead tensors[7];
} queue;

/* The part of the tensors (up to a null) that belongs to the block after `block`, whose tile is followed by `next`. */
INLINE queue look_beyond(const task *k, int64_t tile, int64_t next, int64_t block, const tensor *const *x) {
    queue q = {0};
    if (block + 1 < k->last)
        block++;
    else
        tile = next, block = k->first;
    if (tile < 0 || tile >= tiles(k->s)) return q;
    walk w = tile_walk(k->s, tile);
    for (; *x; x++)
        if ((*x)->data) q.tensors[q.count++] = look_ahead(*x, at(*x, k->batch, 0, channel(k, block), w.position));
    return q;
}

INLINE void prefetch_all(const queue *q, int step) {
    for (int i = 0; i < q->count; i++) prefetch(&q->tensors[i], step);
}

INLINE float *saved_state(const task *k, int64_t tile, int64_t block) {
    const scan *s = k->s;
    return s->saved + (k->batch * tiles(s) + tile) * s->states * s->channels + channel(k, block);
}

/* Delta and, unless `slope` is null, its derivative by the input. */
INLINE void load_delta(const task *k, int64_t block, walk w, vf *delta, vf *slope) {
    const scan *s = k->s;
    load_tile(at(&s->delta, k->batch, 0, channel(k, block), w.position), &s->delta, lanes(k, block), w.steps, delta);
    vf bias = per_channel(k, block, s->delta_bias);
    for (int t = 0; t < w.steps; t++) {
        delta[t] += bias;
        if (s->softplus) delta[t] = softplus(delta[t], slope ? &slope[t] : 0);
    }
}

/* Zeroed memory for `vectors` vectors, aligned to one. */
static vf *allocate(int64_t vectors) {
    size_t size = (size_t)ROUND_UP(vectors, 2) * 64;
    void *p = aligned_alloc(64, size);
    if (p) memset(p, 0, size);
    return p;
}

static int forward(const task *k) {
    const scan *s = k->s;
    int64_t blocks = k->last - k->first, states = k->padded;
    vf *memory = allocate(2 * blocks * states + 2 * TILE * k->row);
    if (!memory) return 1;
    vf *state = memory, *rate = state + blocks * states;
    float *B = (float *)(rate + blocks * states), *C = B + TILE * k->row;
    for (int64_t b = 0; b < blocks; b++) {
        load_block(k, k->first + b, s->A, LOG2E, rate + b * states);
        load_block(k, k->first + b, of_sample(k, s->first_state), 1.0f, state + b * states);
    }
    const tensor *used[] = {&s->u, &s->delta, &s->z, &s->y, 0};
    for (int64_t tile = 0; tile < tiles(s); tile++) {
        walk w = tile_walk(s, tile);
        load_states(k, &s->B, w, B);
        load_states(k, &s->C, w, C);
        for (int64_t b = 0; b < blocks; b++) {
            int64_t block = k->first + b, c = channel(k, block);
            vf u[TILE], delta[TILE], y[TILE];
            queue later = look_beyond(k, tile, tile + 1, block, used);
            load_tile(at(&s->u, k->batch, 0, c, w.position), &s->u, lanes(k, block), w.steps, u);
            load_delta(k, block, w, delta, 0);
            if (s->saved) {
                float *p = saved_state(k, tile, block);
                for (int64_t n = 0; n < s->states; n++)
                    store_some(p + n * s->channels, state[b * states + n], lanes(k, block));
            }
            vf D = per_channel(k, block, s->D);
            for (int t = 0; t < w.steps; t++) y[t] = D * u[t];
            for (int64_t n0 = 0; n0 < states; n0 += STATES) {
                vf h[STATES], *a = rate + b * states + n0, *kept = state + b * states + n0;
                UNROLL for (int n = 0; n < STATES; n++) h[n] = kept[n];
                for (int i = 0, t = w.begin; i < w.steps; i++, t += w.stride) {
                    prefetch_all(&later, i);
                    vf step = delta[t], drive = step * u[t], even = y[t], odd = {0};
                    const float *Bt = B + t * k->row + n0, *Ct = C + t * k->row + n0;
                    UNROLL for (int n = 0; n < STATES; n += 2) {
                        h[n] = h[n] * exp2_product(step, a[n]) + drive * Bt[n];
                        even += h[n] * Ct[n];
                        h[n + 1] = h[n + 1] * exp2_product(step, a[n + 1]) + drive * Bt[n + 1];
                        odd += h[n + 1] * Ct[n + 1];
                    }
                    y[t] = even + odd;
                }
                UNROLL for (int n = 0; n < STATES; n++) kept[n] = h[n];
            }
            if (s->z.data) {
                vf z[TILE];
                load_tile(at(&s->z, k->batch, 0, c, w.position), &s->z, lanes(k, block), w.steps, z);
                for (int t = 0; t < w.steps; t++) y[t] *= z[t] * sigmoid(z[t]);
            }
            store_tile(at(&s->y, k->batch, 0, c, w.position), &s->y, lanes(k, block), w.steps, y);
        }
    }
    for (int64_t b = 0; b < blocks; b++) store_block(k, k->first + b, of_sample(k, s->last_state), state + b * states);
    free(memory);
    return 0;
}

/* With g_t the gradient of h_t:  g_t = C_t dy_t + a_{t+1} g_{t+1},  dC_t = dy_t h_t,  dB_t = delta_t u_t g_t,
   du_t = D dy_t + delta_t (B_t . g_t),  ddelta_t = u_t (B_t . g_t) + A . (g_t a_t h_{t-1}),  dA = sum_t delta_t g_t a_t h_{t-1}. */
static int backward(const task *k, int64_t part) {
    const scan *s = k->s;
    int64_t blocks = k->last - k->first, states = k->padded;
    vf *memory = allocate((3 * blocks + 2 * TILE) * states + 2 * TILE * (BACKWARD_STATES + k->row) + 2 * blocks);
    if (!memory) return 1;
    vf *carry = memory, *rate = carry + blocks * states, *grad_A = rate + blocks * states;
    vf *sum_B = grad_A + blocks * states, *sum_C = sum_B + TILE * states;
    vf *history = sum_C + TILE * states, *decay = history + TILE * BACKWARD_STATES;
    vf *grad_D = decay + TILE * BACKWARD_STATES, *grad_bias = grad_D + blocks;
    float *B = (float *)(grad_bias + blocks), *C = B + TILE * k->row;
    for (int64_t b = 0; b < blocks; b++) {
        load_block(k, k->first + b, s->A, 1.0f, rate + b * states);
        load_block(k, k->first + b, of_sample(k, s->grad_last_state), 1.0f, carry + b * states);
    }
    const tensor *used[] = {&s->u, &s->delta, &s->z, &s->grad_y, &s->grad_u, &s->grad_delta, &s->grad_z, 0};
    for (int64_t tile = tiles(s) - 1; tile >= 0; tile--) {
        walk w = tile_walk(s, tile);
        int end = w.begin + (w.steps - 1) * w.stride;
        load_states(k, &s->B, w, B);
        load_states(k, &s->C, w, C);
        memset(sum_B, 0, 2 * TILE * states * sizeof(vf));
        for (int64_t b = 0; b < blocks; b++) {
            int64_t block = k->first + b, c = channel(k, block);
            int rows = lanes(k, block);
            vf u[TILE], delta[TILE], slope[TILE], z[TILE], dy[TILE], y[TILE], along_B[TILE], along_A[TILE];
            queue later = look_beyond(k, tile, tile - 1, block, used);
            load_tile(at(&s->u, k->batch, 0, c, w.position), &s->u, rows, w.steps, u);
            load_tile(at(&s->grad_y, k->batch, 0, c, w.position), &s->grad_y, rows, w.steps, dy);
            load_delta(k, block, w, delta, slope);
            vf D = per_channel(k, block, s->D), total_D = {0}, total_bias = {0};
            if (s->z.data) {
                load_tile(at(&s->z, k->batch, 0, c, w.position), &s->z, rows, w.steps, z);
                for (int t = 0; t < w.steps; t++) {
                    vf gate = sigmoid(z[t]), silu = gate * z[t], out = dy[t];
                    dy[t] = out * silu;
                    z[t] = out * (gate + silu * (1.0f - gate));
                    y[t] = D * u[t];
                }
            }
            for (int t = 0; t < w.steps; t++) along_B[t] = along_A[t] = (vf){0};
            for (int64_t n0 = 0; n0 < states; n0 += BACKWARD_STATES) {
                const vf *A = rate + b * states + n0;
                vf *kept = carry + b * states + n0, *total_A = grad_A + b * states + n0;
                vf h[BACKWARD_STATES], scaled[BACKWARD_STATES];
                const float *saved = saved_state(k, tile, block) + n0 * s->channels;
                UNROLL for (int n = 0; n < BACKWARD_STATES; n++) {
                    h[n] = n0 + n < s->states ? load_some(saved + n * s->channels, rows) : (vf){0};
                    scaled[n] = A[n] * LOG2E;
                }
                for (int i = 0, t = w.begin; i < w.steps; i++, t += w.stride) {
                    prefetch_all(&later, i);
                    vf out = dy[t], step = delta[t], drive = step * u[t], even = {0}, odd = {0};
                    const float *Bt = B + t * k->row + n0, *Ct = C + t * k->row + n0;
                    vf *before = history + i * BACKWARD_STATES, *a = decay + i * BACKWARD_STATES;
                    vf *to_C = sum_C + t * states + n0;
                    UNROLL for (int n = 0; n < BACKWARD_STATES; n += 2) {
                        before[n] = h[n];
                        a[n] = exp2_product(step, scaled[n]);
                        h[n] = h[n] * a[n] + drive * Bt[n];
                        to_C[n] += out * h[n];
                        even += h[n] * Ct[n];
                        before[n + 1] = h[n + 1];
                        a[n + 1] = exp2_product(step, scaled[n + 1]);
                        h[n + 1] = h[n + 1] * a[n + 1] + drive * Bt[n + 1];
                        to_C[n + 1] += out * h[n + 1];
                        odd += h[n + 1] * Ct[n + 1];
                    }
                    if (s->z.data) y[t] += even + odd;
                }
                vf q[BACKWARD_STATES], tile_A[BACKWARD_STATES];
                UNROLL for (int n = 0; n < BACKWARD_STATES; n++) q[n] = kept[n], tile_A[n] = (vf){0};
                for (int i = w.steps - 1, t = end; i >= 0; i--, t -= w.stride) {
                    vf out = dy[t], step = delta[t], drive = step * u[t], over_B = along_B[t], over_A = along_A[t];
                    const float *Bt = B + t * k->row + n0, *Ct = C + t * k->row + n0;
                    const vf *before = history + i * BACKWARD_STATES, *a = decay + i * BACKWARD_STATES;
                    vf *to_B = sum_B + t * states + n0;
                    UNROLL for (int n = 0; n < BACKWARD_STATES; n++) {
                        vf g = q[n] + out * Ct[n];
                        to_B[n] += g * drive;
                        over_B += g * Bt[n];
                        q[n] = a[n] * g;
                        vf x = q[n] * before[n];
                        over_A += x * A[n];
                        tile_A[n] += x * step;
                    }
                    along_B[t] = over_B;
                    along_A[t] = over_A;
                }
                /* First the tile's sum, then the total, so that long sums in float32 stay exact to 1e-6. */
                UNROLL for (int n = 0; n < BACKWARD_STATES; n++) kept[n] = q[n], total_A[n] += tile_A[n];
            }
            if (s->z.data) {
                for (int t = 0; t < w.steps; t++) z[t] *= y[t];
                store_tile(at(&s->grad_z, k->batch, 0, c, w.position), &s->grad_z, rows, w.steps, z);
            }
            for (int t = 0; t < w.steps; t++) {
                vf du = dy[t] * D + along_B[t] * delta[t], ddelta = along_B[t] * u[t] + along_A[t];
                if (s->softplus) ddelta *= slope[t];
                total_D += dy[t] * u[t];
                total_bias += ddelta;
                u[t] = du;
                delta[t] = ddelta;
            }
            grad_D[b] += total_D;
            grad_bias[b] += total_bias;
            store_tile(at(&s->grad_u, k->batch, 0, c, w.position), &s->grad_u, rows, w.steps, u);
            store_tile(at(&s->grad_delta, k->batch, 0, c, w.position), &s->grad_delta, rows, w.steps, delta);
        }
        store_states(k, &s->grad_B, part * s->grad_B_part, w, sum_B);
        store_states(k, &s->grad_C, part * s->grad_C_part, w, sum_C);
    }
    for (int64_t b = 0; b < blocks; b++) {
        int64_t block = k->first + b, offset = k->batch * s->channels + channel(k, block);
        store_block(k, block, of_sample(k, s->grad_A), grad_A + b * states);
        store_some(s->grad_D + offset, grad_D[b], lanes(k, block));
        store_some(s->grad_bias + offset, grad_bias[b], lanes(k, block));
    }
    free(memory);
    return 0;
}

static int run(const scan *s, int backwards) {
    int64_t blocks = (s->channels / s->groups + LANES - 1) / LANES;
    int64_t tasks = s->batch * s->groups * s->parts;
    int failed = 0;
#pragma omp parallel for schedule(dynamic, 1) num_threads(s->threads) reduction(| : failed)
    for (int64_t i = 0; i < tasks; i++) {
        int64_t part = i % s->parts, group = i / s->parts % s->groups;
        task k = {.s = s, .batch = i / s->parts / s->groups, .group = group};
        k.first = blocks * part / s->parts;
        k.last = blocks * (part + 1) / s->parts;
        k.padded = ROUND_UP(s->states, STATES);
        k.row = ROUND_UP(k.padded, LANES);
        failed |= backwards ? backward(&k, part) : forward(&k);
    }
    return failed;
}

/* Both return 0, or 1 if there is no memory for the work space. */
int selective_scan_forward(const scan *s) { return run(s, 0); }
int selective_scan_backward(const scan *s) { return run(s, 1); }

int selective_scan_tile(void) { return TILE; }
int selective_scan_lanes(void) { return LANES; }
int selective_scan_openmp(void) {
#ifdef _OPENMP
    return 1;
#else
    return 0;
#endif
}
