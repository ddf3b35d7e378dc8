/* Strided tensors (batch, group, row, time), and tiles of them: TILE steps of LANES rows, one vector per step. */
#pragma once

#include "vector.h"

#define TILE 32

/* Strides in elements. Of `row` and `time` one is 1: rows are channels (or states) beside each other in memory
   ("channels last"), or each row is contiguous in time. */
typedef struct {
    float *data;
    int64_t batch, group, row, time;
} tensor;

INLINE float *at(const tensor *x, int64_t batch, int64_t group, int64_t row, int64_t time) {
    return x->data + batch * x->batch + group * x->group + row * x->row + time * x->time;
}

/* Cache lines that are needed soon, at a stride, each with the one `second` elements after it, unless that is 0. */
typedef struct {
    const float *first;
    int64_t stride, second;
} ahead;

/* The lines of a tile. Processors do not foresee its strided rows, and all of them at once would fill their queue;
   a few are therefore prefetched in every step of the tile before it. In rows that are contiguous in time the steps
   go beyond this block's rows to those of the next ones, which is harmless and measured faster than stopping. */
INLINE ahead look_ahead(const tensor *x, const float *p) {
    return x->row == 1 ? (ahead){p, x->time, 0} : (ahead){p, x->row, 16};
}

INLINE void prefetch(const ahead *x, int step) {
    __builtin_prefetch(x->first + step * x->stride);
    if (x->second) __builtin_prefetch(x->first + step * x->stride + x->second);
}

/* steps x rows values at p -> tile[t], t < TILE; missing rows and steps are 0. */
INLINE void load_tile(const float *p, const tensor *x, int rows, int steps, vf *tile) {
    if (x->row == 1) {
        if (rows == LANES)
            for (int t = 0; t < steps; t++) tile[t] = load(p + t * x->time);
        else
            for (int t = 0; t < steps; t++) tile[t] = load_some(p + t * x->time, rows);
        for (int t = steps; t < TILE; t++) tile[t] = (vf){0};
        return;
    }
    for (int t = 0; t < TILE; t += LANES) {
        vf r[LANES];
        int count = steps - t < LANES ? (steps > t ? steps - t : 0) : LANES;
        if (rows == LANES && count == LANES) {
            UNROLL for (int i = 0; i < LANES; i++) r[i] = load(p + i * x->row + t);
        } else {
            for (int i = 0; i < LANES; i++) r[i] = i < rows ? load_some(p + i * x->row + t, count) : (vf){0};
        }
        transpose(r);
        UNROLL for (int i = 0; i < LANES; i++) tile[t + i] = r[i];
    }
}

INLINE void store_tile(float *p, const tensor *x, int rows, int steps, const vf *tile) {
    if (x->row == 1) {
        if (rows == LANES)
            for (int t = 0; t < steps; t++) store(p + t * x->time, tile[t]);
        else
            for (int t = 0; t < steps; t++) store_some(p + t * x->time, tile[t], rows);
        return;
    }
    for (int t = 0; t < steps; t += LANES) {
        vf r[LANES];
        int count = steps - t < LANES ? steps - t : LANES;
        UNROLL for (int i = 0; i < LANES; i++) r[i] = tile[t + i];
        transpose(r);
        if (rows == LANES && count == LANES) {
            UNROLL for (int i = 0; i < LANES; i++) store(p + i * x->row + t, r[i]);
        } else {
            for (int i = 0; i < rows; i++) store_some(p + i * x->row + t, r[i], count);
        }
    }
}
