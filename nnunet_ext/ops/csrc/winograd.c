/* 5x5 convolutions of stride 1 with zeros around the map, by Winograd's minimal filtering F(4x4, 5x5), and the gradient
   of their kernel.

     Y = A^T [sum over input channels of (G w G^T) * (B^T X B)] A

   for each tile of 4x4 results Y, which reads 8x8 inputs X; the products * are element-wise: 64 for 16 results, instead
   of 400. Points of the interpolation are 0, 1, -1, 2, -2, 1/2, -1/2 and infinity. Kernels come as G w G^T, and their
   gradient is that of G w G^T; ops/winograd.py transforms them.

   Some tiles at a time are transformed, multiplied and transformed back, so that what lies between stays in the cache:
   for each of the 64 points, a product of two small matrices, tiles x input channels and input x output channels.
   Channels are handled in slices of SLICE, the last filled up with zeros. */
#include "vector.h"

#include <stdlib.h>

#define EDGE 4
#define SIDE 8
#define POINTS (SIDE * SIDE)
#define MARGIN 2
#define SLICE 32 /* as in ops/winograd.py */

/* Vectors of a slice that a product computes at once, and its rows: as many as the registers hold. */
#define COLUMNS 2
#if defined(__AVX512F__) || defined(__aarch64__)
#define ROWS 12
#else
#define ROWS 6
#endif
#define KERNEL_ROWS 8
/* Tiles worked on at once: a multiple of ROWS, such that their transforms take about this much memory. */
#define WORK_BYTES (384 << 10)
#define MAX_TILES 96

typedef struct {
    int64_t images, height, width, inputs, outputs;
    int32_t threads;
    const float *x;      /* (images, height, width, inputs) */
    const float *kernel; /* (slices of outputs, POINTS, slices of inputs, SLICE, SLICE): inputs x outputs */
    const float *bias;   /* (outputs,), or null */
    float *y;            /* (images, height, width, outputs) */
    const float *grad_y; /* like y */
    float *grad_kernel;  /* like kernel */
    float *grad_bias;    /* (slices of outputs, SLICE) */
} winograd;

typedef struct {
    int64_t image, top, left; /* of its results */
} place;

/* A thread's work space: transforms of some tiles, [point][slice][tile][SLICE]. */
typedef struct {
    int64_t tiles, point; /* tiles; distance of points in `inputs`, in floats */
    int64_t of_slice;     /* distance of points in `results` */
    float *inputs, *results;
} work;

static int64_t slices(int64_t channels) { return (channels + SLICE - 1) / SLICE; }
static int64_t along(int64_t size) { return (size + EDGE - 1) / EDGE; }
static int64_t all_tiles(const winograd *a) { return a->images * along(a->height) * along(a->width); }

static place place_of(const winograd *a, int64_t tile) {
    int64_t across = along(a->width), down = along(a->height);
    return (place){tile / (across * down), tile / across % down * EDGE, tile % across * EDGE};
}

/* Rows or columns of a tile's inputs that are in the map: those from first to last. */
INLINE int64_t first(int64_t start) { return start < 0 ? -start : 0; }
INLINE int64_t last(int64_t start, int64_t size, int64_t count) { return size - start < count ? size - start : count; }

/* B^T d. */
INLINE void transform_inputs(const vf *d, vf *t) {
    vf a = d[2] + d[6] - 4.25f * d[4], b = d[1] + d[5] - 4.25f * d[3];
    t[0] = d[0] - d[6] + 5.25f * (d[4] - d[2]);
    t[1] = a + b;
    t[2] = a - b;
    a = d[6] + 0.25f * d[2] - 1.25f * d[4], b = 0.5f * d[1] - 2.5f * d[3] + 2.0f * d[5];
    t[3] = a + b;
    t[4] = a - b;
    a = d[6] + 4.0f * d[2] - 5.0f * d[4], b = 2.0f * d[1] - 2.5f * d[3] + 0.5f * d[5];
    t[5] = a + b;
    t[6] = a - b;
    t[7] = d[7] - d[1] + 5.25f * (d[3] - d[5]);
}

/* A^T m. */
INLINE void transform_results(const vf *m, vf *y) {
    vf a = m[1] + m[2], b = m[3] + m[4], c = m[5] + m[6];
    y[0] = m[0] + a + b + c;
    y[2] = a + 4.0f * b + 0.25f * c;
    a = m[1] - m[2], b = m[3] - m[4], c = m[5] - m[6];
    y[1] = a + 2.0f * b + 0.5f * c;
    y[3] = a + 8.0f * b + 0.125f * c + m[7];
}

/* A y, the transpose. */
INLINE void transform_gradients(const vf *y, vf *m) {
    m[0] = y[0];
    vf a = y[0] + y[2], b = y[1] + y[3];
    m[1] = a + b;
    m[2] = a - b;
    a = y[0] + 4.0f * y[2], b = 2.0f * y[1] + 8.0f * y[3];
    m[3] = a + b;
    m[4] = a - b;
    a = y[0] + 0.25f * y[2], b = 0.5f * y[1] + 0.125f * y[3];
    m[5] = a + b;
    m[6] = a - b;
    m[7] = y[3];
}

/* Reads size x size values of a map from (top, left), zeros outside, and writes their transforms. */
INLINE void read_some(
    const float *image, int64_t height, int64_t width, int64_t channels, int64_t top, int64_t left, int lanes, int size,
    float *to, int64_t point
) {
    static const float nothing[LANES];
    vf half[SIDE * SIDE];
    const float *row[SIDE];
    int64_t step[SIDE], begin = first(left), end = last(left, width, size);
    for (int i = 0; i < size; i++) {
        int there = top + i >= 0 && top + i < height;
        row[i] = there ? image + ((top + i) * width + left + begin) * channels : nothing;
        step[i] = there ? channels : 0;
    }
    for (int j = 0; j < size; j++) {
        vf d[SIDE], t[SIDE];
        int there = j >= begin && j < end;
        UNROLL for (int i = 0; i < size; i++) {
            d[i] = there ? load_some(row[i], lanes) : (vf){0};
            __builtin_prefetch(row[i] + LANES); /* the next channels, which are read after the whole tile */
            row[i] += there ? step[i] : 0;
        }
        if (size == SIDE)
            transform_inputs(d, t);
        else
            transform_gradients(d, t);
        UNROLL for (int i = 0; i < SIDE; i++) half[i * SIDE + j] = t[i];
    }
    for (int i = 0; i < SIDE; i++) {
        vf t[SIDE];
        if (size == SIDE)
            transform_inputs(half + i * SIDE, t);
        else
            transform_gradients(half + i * SIDE, t);
        UNROLL for (int j = 0; j < SIDE; j++) store(to + (i * SIDE + j) * point, t[j]);
    }
}

/* Transforms of a slice's channels of a tile, of 8x8 inputs or of 4x4 gradients. */
INLINE void read_slice(
    const winograd *a, const float *map, int64_t channels, place p, int64_t channel, int size, float *to, int64_t point
) {
    int64_t margin = size == SIDE ? MARGIN : 0, top = p.top - margin, left = p.left - margin;
    const float *image = map + p.image * a->height * a->width * channels;
    for (int64_t end = channel + SLICE; channel < end && channel < channels; channel += LANES, to += LANES) {
        const float *from = image + channel;
        if (channel + LANES <= channels)
            read_some(from, a->height, a->width, channels, top, left, LANES, size, to, point);
        else
            read_some(
                from, a->height, a->width, channels, top, left, (int)(channels - channel), size, to, point
            );
    }
}

static void read_inputs(const winograd *a, const work *w, int64_t tile, int64_t count) {
    for (int64_t t = 0; t < count; t++) {
        place p = place_of(a, tile + t);
        for (int64_t s = 0; s < slices(a->inputs); s++)
            read_slice(a, a->x, a->inputs, p, s * SLICE, SIDE, w->inputs + (s * w->tiles + t) * SLICE, w->point);
    }
}

static void read_gradients(const winograd *a, const work *w, int64_t tile, int64_t count, int64_t slice) {
    for (int64_t t = 0; t < count; t++)
        read_slice(
            a, a->grad_y, a->outputs, place_of(a, tile + t), slice * SLICE, EDGE, w->results + t * SLICE, w->of_slice
        );
}

/* c[r][column] = (add ? c : 0) + sum_k a[r * row + k * step] b[k][column], for some columns of a slice. */
INLINE void product(
    const float *a, int64_t row, int64_t step, const float *b, int64_t depth, int rows, int add, float *c
) {
    vf sum[ROWS > KERNEL_ROWS ? ROWS : KERNEL_ROWS][COLUMNS];
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int v = 0; v < COLUMNS; v++) sum[r][v] = (vf){0};
    for (int64_t k = 0; k < depth; k++) {
        vf factor[COLUMNS];
        UNROLL for (int v = 0; v < COLUMNS; v++) factor[v] = load(b + k * SLICE + v * LANES);
        UNROLL for (int r = 0; r < rows; r++)
            UNROLL for (int v = 0; v < COLUMNS; v++) sum[r][v] += a[r * row + k * step] * factor[v];
    }
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int v = 0; v < COLUMNS; v++) {
            float *at = c + r * SLICE + v * LANES;
            store(at, add ? load(at) + sum[r][v] : sum[r][v]);
        }
}

/* Products of the transforms of some tiles with a slice of the kernel. */
static void multiply(const winograd *a, const work *w, int64_t count, int64_t slice) {
    int64_t depth = slices(a->inputs) * SLICE;
    for (int64_t point = 0; point < POINTS; point++) {
        const float *kernel = a->kernel + (slice * POINTS + point) * depth * SLICE;
        for (int64_t t = 0; t < count; t += ROWS)
            for (int column = 0; column < SLICE; column += COLUMNS * LANES)
                for (int64_t s = 0; s < slices(a->inputs); s++) {
                    const float *inputs = w->inputs + point * w->point + (s * w->tiles + t) * SLICE;
                    float *to = w->results + point * w->of_slice + t * SLICE + column;
                    const float *factors = kernel + s * SLICE * SLICE + column;
                    if (s)
                        product(inputs, SLICE, 1, factors, SLICE, ROWS, 1, to);
                    else
                        product(inputs, SLICE, 1, factors, SLICE, ROWS, 0, to);
                }
    }
}

INLINE void write_some(
    const winograd *a, place p, int64_t channel, int lanes, const float *from, int64_t point
) {
    vf half[EDGE * SIDE], bias = a->bias ? load_some(a->bias + channel, lanes) : (vf){0};
    float *image = a->y + p.image * a->height * a->width * a->outputs + channel;
    int64_t bottom = last(p.top, a->height, EDGE), right = last(p.left, a->width, EDGE);
    for (int j = 0; j < SIDE; j++) {
        vf m[SIDE], y[EDGE];
        UNROLL for (int i = 0; i < SIDE; i++) m[i] = load(from + (i * SIDE + j) * point);
        transform_results(m, y);
        UNROLL for (int i = 0; i < EDGE; i++) half[i * SIDE + j] = y[i];
    }
    for (int i = 0; i < bottom; i++) {
        vf y[EDGE];
        transform_results(half + i * SIDE, y);
        UNROLL for (int j = 0; j < EDGE; j++)
            if (j < right) store_some(image + ((p.top + i) * a->width + p.left + j) * a->outputs, y[j] + bias, lanes);
    }
}

static void write_results(const winograd *a, const work *w, int64_t tile, int64_t count, int64_t slice) {
    for (int64_t t = 0; t < count; t++) {
        place p = place_of(a, tile + t);
        for (int64_t channel = slice * SLICE, v = 0; v < SLICE && channel < a->outputs; v += LANES, channel += LANES) {
            const float *from = w->results + t * SLICE + v;
            if (channel + LANES <= a->outputs)
                write_some(a, p, channel, LANES, from, w->of_slice);
            else
                write_some(a, p, channel, (int)(a->outputs - channel), from, w->of_slice);
        }
    }
}

/* Adds the products of the transforms of some tiles' inputs and gradients to the kernel's gradient. */
static void multiply_gradients(const winograd *a, const work *w, int64_t count, int64_t slice, float *sums) {
    int64_t depth = slices(a->inputs) * SLICE;
    for (int64_t point = 0; point < POINTS; point++)
        for (int64_t channel = 0; channel < depth; channel += KERNEL_ROWS)
            for (int column = 0; column < SLICE; column += COLUMNS * LANES) {
                const float *inputs = w->inputs + point * w->point + channel / SLICE * w->tiles * SLICE + channel % SLICE;
                const float *gradients = w->results + point * w->of_slice + column;
                float *to = sums + ((slice * POINTS + point) * depth + channel) * SLICE + column;
                product(inputs, 1, SLICE, gradients, count, KERNEL_ROWS, 1, to);
            }
}

/* The transform of gradients at point (1, 1) is their sum over the tile. */
static void add_bias(const work *w, int64_t count, float *sums) {
    const float *from = w->results + (SIDE + 1) * w->of_slice;
    for (int64_t t = 0; t < count; t++)
        for (int v = 0; v < SLICE; v += LANES) store(sums + v, load(sums + v) + load(from + t * SLICE + v));
}

static float *allocate(int64_t floats) {
    size_t bytes = ((size_t)floats * sizeof(float) + 63) / 64 * 64;
    float *p = aligned_alloc(64, bytes);
    if (p) memset(p, 0, bytes);
    return p;
}

static work plan(const winograd *a) {
    int64_t tile = POINTS * SLICE * (slices(a->inputs) + 1), tiles = WORK_BYTES / (tile * (int64_t)sizeof(float));
    if (tiles > MAX_TILES) tiles = MAX_TILES;
    if (tiles > all_tiles(a)) tiles = all_tiles(a);
    tiles = (tiles + ROWS - 1) / ROWS * ROWS;
    /* Not a power of two apart, so that points do not share the same sets of the cache. */
    return (work){.tiles = tiles, .point = slices(a->inputs) * tiles * SLICE + 16, .of_slice = tiles * SLICE + 16};
}

/* Both return 0, or 1 if there is no memory for the work space. */
int winograd_forward(const winograd *a) {
    work shared = plan(a);
    int64_t tiles = all_tiles(a);
    int failed = 0;
#pragma omp parallel num_threads(a->threads) reduction(| : failed)
    {
        work w = shared;
        w.inputs = allocate(POINTS * (w.point + w.of_slice));
        failed = !w.inputs;
        if (!failed) w.results = w.inputs + POINTS * w.point;
#pragma omp for schedule(static)
        for (int64_t tile = 0; tile < tiles; tile += shared.tiles) {
            int64_t count = tiles - tile < w.tiles ? tiles - tile : w.tiles;
            if (!w.inputs) continue;
            read_inputs(a, &w, tile, count);
            for (int64_t slice = 0; slice < slices(a->outputs); slice++) {
                multiply(a, &w, count, slice);
                write_results(a, &w, tile, count, slice);
            }
        }
        free(w.inputs);
    }
    return failed;
}

int winograd_backward(const winograd *a) {
    work shared = plan(a);
    int64_t tiles = all_tiles(a), out = slices(a->outputs), weights = out * POINTS * slices(a->inputs) * SLICE * SLICE;
    int failed = 0;
#pragma omp parallel num_threads(a->threads) reduction(| : failed)
    {
        work w = shared;
        float *memory = allocate(POINTS * (w.point + w.of_slice) + weights + out * SLICE);
        float *sums = memory, *bias = memory + weights;
        failed = !memory;
        if (!failed) w.inputs = bias + out * SLICE, w.results = w.inputs + POINTS * w.point;
#pragma omp for schedule(static)
        for (int64_t tile = 0; tile < tiles; tile += shared.tiles) {
            int64_t count = tiles - tile < w.tiles ? tiles - tile : w.tiles;
            if (!memory) continue;
            read_inputs(a, &w, tile, count);
            for (int64_t slice = 0; slice < out; slice++) {
                read_gradients(a, &w, tile, count, slice);
                multiply_gradients(a, &w, count, slice, sums);
                add_bias(&w, count, bias + slice * SLICE);
            }
        }
#pragma omp critical
        if (memory) {
            for (int64_t i = 0; i < weights; i++) a->grad_kernel[i] += sums[i];
            for (int64_t i = 0; i < out * SLICE; i++) a->grad_bias[i] += bias[i];
        }
        free(memory);
    }
    return failed;
}
