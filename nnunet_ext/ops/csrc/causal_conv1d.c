/* Causal depthwise convolution over time, with SiLU, on (batch, time, channels) memory, forward and backward.

     p_t = bias + sum_j w_j x_{t - width + 1 + j},  y_t = silu(p_t) or p_t

   Channels are the lanes. A reversed convolution is the same with data at the last step and a negative time stride.
   Work is cut into chunks of steps; the backward pass makes the gradient of p for a chunk and the steps behind it that
   the chunk's inputs reach. */
#include "tile.h"

#include <stdlib.h>

#define CHUNK 128

typedef struct {
    int64_t batch, channels, length, width;
    int32_t silu, threads;
    tensor x, y, grad_y, grad_x;  /* row (channel) stride 1 */
    const float *weight, *bias;   /* (width, channels); (channels) or null */
    float *sums;                  /* (chunks, width + 1, channels): gradients of the weight and, last, of the bias */
} convolution;

INLINE int64_t chunks(const convolution *c) { return (c->length + CHUNK - 1) / CHUNK; }

/* p_t of `lanes` channels, starting at `channel`. */
INLINE vf response(const convolution *c, int64_t batch, int64_t channel, int64_t t, int lanes) {
    vf p = c->bias ? load_some(c->bias + channel, lanes) : (vf){0};
    int64_t first = t - c->width + 1;
    for (int64_t j = first < 0 ? -first : 0; j < c->width; j++)
        p += load_some(c->weight + j * c->channels + channel, lanes) *
             load_some(at(&c->x, batch, 0, channel, first + j), lanes);
    return p;
}

static void forward(const convolution *c, int64_t batch, int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; t++) {
        for (int64_t channel = 0; channel < c->channels; channel += LANES) {
            int lanes = c->channels - channel < LANES ? (int)(c->channels - channel) : LANES;
            vf p = response(c, batch, channel, t, lanes);
            store_some(at(&c->y, batch, 0, channel, t), c->silu ? p * sigmoid(p) : p, lanes);
        }
    }
}

static int backward(const convolution *c, int64_t batch, int64_t begin, int64_t end, float *sums) {
    int64_t reach = end + c->width - 1 < c->length ? end + c->width - 1 : c->length;
    vf *slope = aligned_alloc(64, (size_t)(CHUNK + c->width) * 64);
    if (!slope) return 1;
    for (int64_t channel = 0; channel < c->channels; channel += LANES) {
        int lanes = c->channels - channel < LANES ? (int)(c->channels - channel) : LANES;
        vf bias = {0};
        for (int64_t t = begin; t < reach; t++) {
            vf g = load_some(at(&c->grad_y, batch, 0, channel, t), lanes);
            if (c->silu) {
                vf p = response(c, batch, channel, t, lanes), gate = sigmoid(p);
                g *= gate + p * gate * (1.0f - gate);
            }
            slope[t - begin] = g;
            if (t < end) bias += g;
        }
        for (int64_t t = begin; t < end; t++) {
            vf g = {0};
            for (int64_t j = c->width - 1, s = t; j >= 0 && s < reach; j--, s++)
                g += load_some(c->weight + j * c->channels + channel, lanes) * slope[s - begin];
            store_some(at(&c->grad_x, batch, 0, channel, t), g, lanes);
        }
        for (int64_t j = 0; j < c->width; j++) {
            vf sum = {0};
            for (int64_t t = begin; t < end; t++) {
                int64_t from = t - c->width + 1 + j;
                if (from >= 0) sum += slope[t - begin] * load_some(at(&c->x, batch, 0, channel, from), lanes);
            }
            store_some(sums + j * c->channels + channel, sum, lanes);
        }
        store_some(sums + c->width * c->channels + channel, bias, lanes);
    }
    free(slope);
    return 0;
}

/* Number of partial sums that backward writes. */
int64_t causal_conv1d_sums(const convolution *c) { return c->batch * chunks(c); }

static int run(const convolution *c, int backwards) {
    int64_t tasks = c->batch * chunks(c);
    int failed = 0;
#pragma omp parallel for schedule(static) num_threads(c->threads) reduction(| : failed)
    for (int64_t i = 0; i < tasks; i++) {
        int64_t batch = i / chunks(c), begin = i % chunks(c) * CHUNK;
        int64_t end = begin + CHUNK < c->length ? begin + CHUNK : c->length;
        if (backwards)
            failed |= backward(c, batch, begin, end, c->sums + i * (c->width + 1) * c->channels);
        else
            forward(c, batch, begin, end);
    }
    return failed;
}

/* Both return 0, or 1 if there is no memory for the work space. */
int causal_conv1d_forward(const convolution *c) { return run(c, 0); }
int causal_conv1d_backward(const convolution *c) { return run(c, 1); }
