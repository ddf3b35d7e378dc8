/* Multi-head self-attention of many short sequences, between its projections, forward and backward.

     p = softmax(q k^T / sqrt(size)),  mixed = p v

   Queries are the lanes, so nothing is summed across lanes but the gradients of keys and values. One head of one
   sequence is worked on at a time; its scores stay in the cache. */
#include "vector.h"

#include <math.h>
#include <stdlib.h>

#define MAX_SIZE 64 /* as in ops/axial_attention.py */

typedef struct {
    int64_t outer, length, inner, heads, size;
    int32_t threads;
    const float *projected;  /* (outer, length, inner, 3, heads, size): q, k, v */
    const float *grad_mixed; /* backward only */
    float *mixed;            /* (outer, length, inner, heads, size) */
    float *grad_projected;   /* backward only */
} attention;

/* One head of one sequence, and the work space of a thread. */
typedef struct {
    int64_t length, blocks, step; /* blocks of LANES queries; between tokens of `projected`, in floats */
    float scale;                  /* of the scores, to base 2 */
    float *keys, *values;         /* (length, size) */
    vf *queries, *grads;          /* (blocks, size): queries times scale, gradients of `mixed` */
    vf *scores, *slopes;          /* (blocks, length): p, and the gradients of the scores */
} head;

static int64_t blocks_of(const attention *a) { return (a->length + LANES - 1) / LANES; }

/* Sizes in the work space, in vectors: keys or values; scores or slopes, of which the forward pass keeps one block. */
static int64_t rows_size(const attention *a) { return (a->length * a->size + LANES - 1) / LANES; }
static int64_t scores_size(const attention *a, int backwards) { return (backwards ? blocks_of(a) : 1) * a->length; }

static int64_t work_size(const attention *a, int backwards) {
    return 2 * (rows_size(a) + blocks_of(a) * a->size + scores_size(a, backwards));
}

static head divide(const attention *a, vf *memory, int backwards) {
    head h = {.length = a->length, .blocks = blocks_of(a), .step = 3 * a->inner * a->heads * a->size};
    h.scale = LOG2E / sqrtf((float)a->size);
    h.keys = (float *)memory;
    h.values = (float *)(memory + rows_size(a));
    h.queries = memory + 2 * rows_size(a);
    h.grads = h.queries + h.blocks * a->size;
    h.scores = h.grads + h.blocks * a->size;
    h.slopes = h.scores + scores_size(a, backwards);
    return h;
}

/* Copies rows of (length, size), which lie `step` floats apart, to contiguous memory. */
INLINE void load_rows(const float *from, int64_t step, int64_t length, int size, float *to) {
    for (int64_t t = 0; t < length; t++)
        for (int j = 0; j < size; j++) to[t * size + j] = from[t * step + j];
}

/* Copies the rows to lanes, times a factor; lanes without a row are 0. */
INLINE void load_lanes(const float *from, int64_t step, int64_t length, int size, float factor, vf *to) {
    for (int64_t b = 0; b * LANES < length; b++)
        for (int j = 0; j < size; j++) {
            vf v = {0};
            for (int i = 0; i < LANES && b * LANES + i < length; i++)
                v[i] = factor * from[(b * LANES + i) * step + j];
            to[b * size + j] = v;
        }
}

INLINE void store_lanes(float *to, int64_t step, int64_t block, int64_t length, int size, const vf *from) {
    UNROLL for (int j = 0; j < size; j++)
        for (int i = 0; i < LANES && block * LANES + i < length; i++) to[(block * LANES + i) * step + j] = from[j][i];
}

INLINE vf dot(const vf *x, const float *row, int size) {
    vf sum = x[0] * row[0];
    UNROLL for (int j = 1; j < size; j++) sum += x[j] * row[j];
    return sum;
}

/* Computes p times its sum, which is returned, for a block of queries. */
INLINE vf exponentials(const head *h, int64_t block, int size, vf *p) {
    vf q[MAX_SIZE], top = all(-INFINITY), sum = {0};
    UNROLL for (int j = 0; j < size; j++) q[j] = h->queries[block * size + j];
    for (int64_t m = 0; m < h->length; m++) {
        vf score = dot(q, h->keys + m * size, size);
        p[m] = score;
        top = choose(score > top, score, top);
    }
    for (int64_t m = 0; m < h->length; m++) sum += p[m] = exp2_vector(p[m] - top);
    return sum;
}

INLINE void mix(const head *h, int size, float *mixed, int64_t step) {
    for (int64_t b = 0; b < h->blocks; b++) {
        vf sum = exponentials(h, b, size, h->scores), out[MAX_SIZE];
        UNROLL for (int j = 0; j < size; j++) out[j] = (vf){0};
        for (int64_t m = 0; m < h->length; m++)
            UNROLL for (int j = 0; j < size; j++) out[j] += h->scores[m] * h->values[m * size + j];
        UNROLL for (int j = 0; j < size; j++) out[j] /= sum;
        store_lanes(mixed, step, b, h->length, size, out);
    }
}

/* Sums over lanes, LANES of them at a time. */
typedef struct {
    vf terms[LANES];
    float *to[LANES];
    int count;
} sums;

INLINE void finish(sums *s) {
    transpose(s->terms);
    vf sum = s->terms[0];
    UNROLL for (int i = 1; i < LANES; i++) sum += s->terms[i];
    for (int i = 0; i < s->count; i++) *s->to[i] = sum[i];
    s->count = 0;
}

INLINE void add(sums *s, vf terms, float *to) {
    s->terms[s->count] = terms;
    s->to[s->count++] = to;
    if (s->count == LANES) finish(s);
}

/* With g the gradient of `mixed`:  dp = g v^T,  ds = p (dp - p . dp),  dq = ds k,  dk = ds^T q,  dv = p^T g. */
INLINE void differentiate(const head *h, int size, float *mixed, int64_t mixed_step, float *grad, int64_t part) {
    for (int64_t b = 0; b < h->blocks; b++) {
        vf *p = h->scores + b * h->length, *slope = h->slopes + b * h->length;
        vf over = 1.0f / exponentials(h, b, size, p), mean = {0}, g[MAX_SIZE], out[MAX_SIZE], grad_q[MAX_SIZE];
        UNROLL for (int j = 0; j < size; j++) {
            g[j] = h->grads[b * size + j];
            out[j] = grad_q[j] = (vf){0};
        }
        for (int64_t m = 0; m < h->length; m++) {
            const float *value = h->values + m * size;
            vf weight = p[m] * over, of_weight = dot(g, value, size);
            p[m] = weight;
            slope[m] = of_weight;
            mean += weight * of_weight;
            UNROLL for (int j = 0; j < size; j++) out[j] += weight * value[j];
        }
        for (int64_t m = 0; m < h->length; m++) {
            vf of_score = p[m] * (slope[m] - mean);
            slope[m] = of_score;
            UNROLL for (int j = 0; j < size; j++) grad_q[j] += of_score * h->keys[m * size + j];
        }
        UNROLL for (int j = 0; j < size; j++) grad_q[j] *= h->scale / LOG2E;
        store_lanes(mixed, mixed_step, b, h->length, size, out);
        store_lanes(grad, h->step, b, h->length, size, grad_q);
    }
    sums pending = {.count = 0};
    for (int64_t m = 0; m < h->length; m++) {
        float *row = grad + m * h->step;
        UNROLL for (int j = 0; j < size; j++) {
            vf of_key = {0}, of_value = {0};
            for (int64_t b = 0; b < h->blocks; b++) {
                of_key += h->slopes[b * h->length + m] * h->queries[b * size + j];
                of_value += h->scores[b * h->length + m] * h->grads[b * size + j];
            }
            add(&pending, of_key * (1 / LOG2E), row + part + j);
            add(&pending, of_value, row + 2 * part + j);
        }
    }
    finish(&pending);
}

INLINE void one_head(const attention *a, head *h, int64_t sequence, int64_t number, int size, int backwards) {
    int64_t outer = sequence / a->inner, inner = sequence % a->inner, part = a->heads * size, mixed_step = h->step / 3;
    int64_t token = outer * a->length * a->inner + inner;
    const float *from = a->projected + token * 3 * part + number * size;
    int64_t of_mixed = token * part + number * size;
    load_lanes(from, h->step, a->length, size, h->scale, h->queries);
    load_rows(from + part, h->step, a->length, size, h->keys);
    load_rows(from + 2 * part, h->step, a->length, size, h->values);
    if (backwards) {
        load_lanes(a->grad_mixed + of_mixed, mixed_step, a->length, size, 1.0f, h->grads);
        float *grad = a->grad_projected + (from - a->projected);
        differentiate(h, size, a->mixed + of_mixed, mixed_step, grad, part);
    } else {
        mix(h, size, a->mixed + of_mixed, mixed_step);
    }
}

/* Head sizes of axes of 24 to 128 voxels are constants for the compiler. */
static void any_head(const attention *a, head *h, int64_t sequence, int64_t number, int backwards) {
#define SIZE(size) case size: one_head(a, h, sequence, number, size, backwards); break
    switch (a->size) {
        SIZE(2);
        SIZE(3);
        SIZE(4);
        SIZE(5);
        SIZE(6);
        SIZE(7);
        SIZE(8);
    default: one_head(a, h, sequence, number, (int)a->size, backwards);
    }
#undef SIZE
}

static int run(const attention *a, int backwards) {
    int64_t sequences = a->outer * a->inner;
    int failed = 0;
#pragma omp parallel num_threads(a->threads) reduction(| : failed)
    {
        size_t bytes = (size_t)work_size(a, backwards) * sizeof(vf);
        vf *memory = aligned_alloc(64, (bytes + 63) / 64 * 64);
        failed = !memory;
        head h = divide(a, memory, backwards);
#pragma omp for schedule(static)
        for (int64_t i = 0; i < sequences; i++)
            for (int64_t number = 0; memory && number < a->heads; number++) any_head(a, &h, i, number, backwards);
        free(memory);
    }
    return failed;
}

/* Both return 0, or 1 without memory for the work space. Backward also recomputes `mixed`. */
int axial_attention_forward(const attention *a) { return run(a, 0); }
int axial_attention_backward(const attention *a) { return run(a, 1); }
