/* Instance norm and leaky ReLU on (batch, voxels, channels) memory, forward and backward, two passes over it each.

     n = (x - mean) scale, scale = 1 / sqrt(var + eps);  y = leaky(w n + b)

   Channels are the lanes. Work is cut into chunks of voxels that stay in the cache; moments of chunks are merged in
   double precision (Chan, Golub, LeVeque 1983), so a large mean costs no digits. Without w and b, y tells n, as the
   leaky ReLU has an inverse: y may then lie in the memory of x, and the backward pass gets y for x. */
#include "vector.h"

#include <stdlib.h>

#define CHUNK_BYTES (128 * 1024)

/* Number of vectors of a row that are processed together, with their sums in registers. */
#define WIDE 4

typedef struct {
    int64_t batch, voxels, channels;
    int32_t threads;
    float eps, slope;
    const float *weight, *bias; /* (channels), both or neither */
    const float *x;             /* (batch, voxels, channels), as all maps; backward without weight: y */
    const float *grad_y;
    float *out;          /* y, or the gradient of x */
    float *mean, *scale; /* (batch, channels), made by forward */
    float *sums;         /* (batch, 2, channels), made by backward: of g and of g n, g the gradient of w n + b */
    double *partial;     /* (batch, chunks, 2, channels) */
} norm;

static int64_t chunk_voxels(const norm *a) {
    int64_t n = CHUNK_BYTES / (int64_t)sizeof(float) / a->channels;
    return n < 1 ? 1 : n;
}

static int64_t chunks(const norm *a) { return (a->voxels + chunk_voxels(a) - 1) / chunk_voxels(a); }

typedef struct {
    int64_t batch, offset, voxels; /* of the maps, in floats; of the chunk */
    double *partial;
} chunk;

static chunk chunk_of(const norm *a, int64_t task) {
    int64_t batch = task / chunks(a), first = task % chunks(a) * chunk_voxels(a);
    int64_t left = a->voxels - first;
    return (chunk){batch, (batch * a->voxels + first) * a->channels, left < chunk_voxels(a) ? left : chunk_voxels(a),
                   a->partial + task * 2 * a->channels};
}

/* `count` vectors from p on, the last of them of `lanes` values. */
INLINE void load_row(const float *p, int count, int lanes, vf *v) {
    UNROLL for (int i = 0; i < count; i++) v[i] = i + 1 < count ? load(p + i * LANES) : load_some(p + i * LANES, lanes);
}

INLINE void store_row(float *p, int count, int lanes, const vf *v) {
    UNROLL for (int i = 0; i < count; i++) {
        if (i + 1 < count)
            store(p + i * LANES, v[i]);
        else
            store_some(p + i * LANES, v[i], lanes);
    }
}

INLINE void store_doubles(double *p, int count, int lanes, const vf *v) {
    for (int i = 0; i < count; i++)
        for (int j = 0; j < (i + 1 < count ? LANES : lanes); j++) p[i * LANES + j] = v[i][j];
}

/* Mean and sum of squared differences from it, of the channels from `from` on. */
INLINE void moments(const norm *a, const chunk *k, int64_t from, int count, int lanes) {
    const float *x = a->x + k->offset + from;
    vf mean[WIDE] = {{0}}, squares[WIDE] = {{0}}, v[WIDE];
    for (int64_t t = 0; t < k->voxels; t++) {
        load_row(x + t * a->channels, count, lanes, v);
        UNROLL for (int i = 0; i < count; i++) mean[i] += v[i];
    }
    UNROLL for (int i = 0; i < count; i++) mean[i] /= (float)k->voxels;
    for (int64_t t = 0; t < k->voxels; t++) {
        load_row(x + t * a->channels, count, lanes, v);
        UNROLL for (int i = 0; i < count; i++) {
            vf d = v[i] - mean[i];
            squares[i] += d * d;
        }
    }
    store_doubles(k->partial + from, count, lanes, mean);
    store_doubles(k->partial + a->channels + from, count, lanes, squares);
}

/* Values of a row that are the same for all voxels. */
typedef struct {
    vf mean[WIDE], factor[WIDE], shift[WIDE];
} row;

INLINE row row_of(const norm *a, int64_t batch, int64_t from, int count, int lanes) {
    row r;
    vf weight[WIDE];
    load_row(a->mean + batch * a->channels + from, count, lanes, r.mean);
    load_row(a->scale + batch * a->channels + from, count, lanes, r.factor);
    if (a->weight) {
        load_row(a->weight + from, count, lanes, weight);
        load_row(a->bias + from, count, lanes, r.shift);
        UNROLL for (int i = 0; i < count; i++) r.factor[i] *= weight[i];
    } else {
        UNROLL for (int i = 0; i < count; i++) r.shift[i] = (vf){0};
    }
    return r;
}

INLINE void apply(const norm *a, const chunk *k, int64_t from, int count, int lanes) {
    row r = row_of(a, k->batch, from, count, lanes);
    vf v[WIDE];
    for (int64_t t = 0; t < k->voxels; t++) {
        int64_t at = k->offset + from + t * a->channels;
        load_row(a->x + at, count, lanes, v);
        UNROLL for (int i = 0; i < count; i++) {
            vf y = (v[i] - r.mean[i]) * r.factor[i] + r.shift[i];
            v[i] = choose(y > 0.0f, y, y * a->slope);
        }
        store_row(a->out + at, count, lanes, v);
    }
}

/* n and g of one vector of a row. */
INLINE void differentiate(const norm *a, vf x, vf grad, vf mean, vf scale, vf factor, vf shift, vf *n, vf *g) {
    if (a->weight) {
        *n = (x - mean) * scale;
        *g = choose((x - mean) * factor + shift > 0.0f, grad, grad * a->slope);
    } else {
        *n = choose(x > 0.0f, x, x * (1.0f / a->slope));
        *g = choose(x > 0.0f, grad, grad * a->slope);
    }
}

INLINE void sum_gradients(const norm *a, const chunk *k, int64_t from, int count, int lanes) {
    row r = row_of(a, k->batch, from, count, lanes);
    vf scale[WIDE], x[WIDE], grad[WIDE], sum[WIDE] = {{0}}, product[WIDE] = {{0}};
    load_row(a->scale + k->batch * a->channels + from, count, lanes, scale);
    for (int64_t t = 0; t < k->voxels; t++) {
        int64_t at = k->offset + from + t * a->channels;
        load_row(a->x + at, count, lanes, x);
        load_row(a->grad_y + at, count, lanes, grad);
        UNROLL for (int i = 0; i < count; i++) {
            vf n, g;
            differentiate(a, x[i], grad[i], r.mean[i], scale[i], r.factor[i], r.shift[i], &n, &g);
            sum[i] += g;
            product[i] += g * n;
        }
    }
    store_doubles(k->partial + from, count, lanes, sum);
    store_doubles(k->partial + a->channels + from, count, lanes, product);
}

/* scale w (g - mean of g - n mean of g n) */
INLINE void apply_gradients(const norm *a, const chunk *k, int64_t from, int count, int lanes) {
    row r = row_of(a, k->batch, from, count, lanes);
    vf scale[WIDE], x[WIDE], grad[WIDE], sum[WIDE], product[WIDE];
    load_row(a->scale + k->batch * a->channels + from, count, lanes, scale);
    load_row(a->sums + 2 * k->batch * a->channels + from, count, lanes, sum);
    load_row(a->sums + (2 * k->batch + 1) * a->channels + from, count, lanes, product);
    UNROLL for (int i = 0; i < count; i++) {
        sum[i] /= (float)a->voxels;
        product[i] /= (float)a->voxels;
    }
    for (int64_t t = 0; t < k->voxels; t++) {
        int64_t at = k->offset + from + t * a->channels;
        load_row(a->x + at, count, lanes, x);
        load_row(a->grad_y + at, count, lanes, grad);
        UNROLL for (int i = 0; i < count; i++) {
            vf n, g;
            differentiate(a, x[i], grad[i], r.mean[i], scale[i], r.factor[i], r.shift[i], &n, &g);
            grad[i] = r.factor[i] * (g - sum[i] - n * product[i]);
        }
        store_row(a->out + at, count, lanes, grad);
    }
}

/* Calls a step for the channels of a chunk, WIDE vectors at a time: with constant counts, which unroll. */
#define OVER_CHANNELS(step)                                                                                      \
    static void step##_chunk(const norm *a, const chunk *k) {                                                    \
        for (int64_t from = 0; from < a->channels;) {                                                            \
            int64_t left = a->channels - from;                                                                   \
            int lanes = left < LANES ? (int)left : LANES;                                                        \
            if (left >= 4 * LANES) {                                                                             \
                step(a, k, from, 4, LANES);                                                                      \
                from += 4 * LANES;                                                                               \
            } else if (left >= 3 * LANES) {                                                                      \
                step(a, k, from, 3, LANES);                                                                      \
                from += 3 * LANES;                                                                               \
            } else if (left >= 2 * LANES) {                                                                      \
                step(a, k, from, 2, LANES);                                                                      \
                from += 2 * LANES;                                                                               \
            } else {                                                                                             \
                step(a, k, from, 1, lanes);                                                                      \
                from += lanes;                                                                                   \
            }                                                                                                    \
        }                                                                                                        \
    }                                                                                                            \
    static void step##_all(const norm *a) {                                                                      \
        int64_t tasks = a->batch * chunks(a);                                                                    \
        _Pragma("omp parallel for schedule(static) num_threads(a->threads)") for (int64_t i = 0; i < tasks; i++) { \
            chunk k = chunk_of(a, i);                                                                            \
            step##_chunk(a, &k);                                                                                 \
        }                                                                                                        \
    }

OVER_CHANNELS(moments)
OVER_CHANNELS(apply)
OVER_CHANNELS(sum_gradients)
OVER_CHANNELS(apply_gradients)

static int allocate(norm *a) {
    a->partial = malloc((size_t)(a->batch * chunks(a) * 2 * a->channels) * sizeof(double));
    return !a->partial;
}

/* Both return 0, or 1 if there is no memory for the work space. */
int instance_norm_forward(norm *a) {
    if (allocate(a)) return 1;
    moments_all(a);
    for (int64_t b = 0; b < a->batch; b++) {
        for (int64_t c = 0; c < a->channels; c++) {
            double mean = 0, squares = 0, count = 0;
            for (int64_t i = b * chunks(a); i < (b + 1) * chunks(a); i++) {
                chunk k = chunk_of(a, i);
                double n = (double)k.voxels, d = k.partial[c] - mean;
                squares += k.partial[a->channels + c] + d * d * count * n / (count + n);
                count += n;
                mean += d * n / count;
            }
            a->mean[b * a->channels + c] = (float)mean;
            a->scale[b * a->channels + c] = (float)(1.0 / __builtin_sqrt(squares / count + a->eps));
        }
    }
    apply_all(a);
    free(a->partial);
    return 0;
}

int instance_norm_backward(norm *a) {
    if (allocate(a)) return 1;
    sum_gradients_all(a);
    for (int64_t b = 0; b < a->batch; b++) {
        for (int64_t c = 0; c < 2 * a->channels; c++) {
            double sum = 0;
            for (int64_t i = b * chunks(a); i < (b + 1) * chunks(a); i++) sum += a->partial[i * 2 * a->channels + c];
            a->sums[2 * b * a->channels + c] = (float)sum;
        }
    }
    apply_gradients_all(a);
    free(a->partial);
    return 0;
}
