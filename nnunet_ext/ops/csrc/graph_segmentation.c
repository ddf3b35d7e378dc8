/* Felzenszwalb and Huttenlocher's graph segmentation ("Efficient Graph-Based Image Segmentation", IJCV 2004) on a grid.

   Edges in the order of weight w (ties: of their ids) join the components A and B of their ends where

     w <= min(Int(A) + scale / |A|, Int(B) + scale / |B|),  Int = largest weight that a component was joined by;

   then, in the same order, where A or B has fewer than min_size voxels. One thread: each step needs the one before. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define DIGIT 11
#define BINS (1 << DIGIT)
#define PASSES 3

typedef struct {
    int64_t voxels, edges, min_size;
    double scale;
    const int64_t *steps;   /* an edge of id o * voxels + p joins the voxels p and p + steps[o] */
    uint32_t *weights, *ids; /* (edges), by ascending id; the weights' float32 bits; used as work space */
    int32_t *root;          /* (voxels), written: a voxel of the component */
} graph;

/* Stable sort by the bits, which for non-negative floats sort as the values do. An odd number of passes leaves the
   result in to. */
static void sort_edges(int64_t n, uint32_t *keys, uint32_t *ids, uint32_t *to_keys, uint32_t *to_ids) {
    for (int pass = 0; pass < PASSES; pass++) {
        int64_t next[BINS] = {0}, total = 0;
        int shift = pass * DIGIT;
        for (int64_t i = 0; i < n; i++) next[keys[i] >> shift & (BINS - 1)]++;
        for (int bin = 0; bin < BINS; bin++) {
            int64_t count = next[bin];
            next[bin] = total;
            total += count;
        }
        for (int64_t i = 0; i < n; i++) {
            int64_t place = next[keys[i] >> shift & (BINS - 1)]++;
            to_keys[place] = keys[i];
            to_ids[place] = ids[i];
        }
        uint32_t *swap = keys;
        keys = to_keys, to_keys = swap;
        swap = ids;
        ids = to_ids, to_ids = swap;
    }
}

static inline int32_t find(int32_t *root, int32_t p) {
    while (root[p] != p) p = root[p] = root[root[p]];
    return p;
}

/* Returns the larger component's root, which is now the root of both. */
static inline int32_t join(int32_t *root, int32_t *size, int32_t a, int32_t b) {
    if (size[a] < size[b]) {
        int32_t swap = a;
        a = b, b = swap;
    }
    root[b] = a;
    size[a] += size[b];
    return a;
}

/* Returns 0, or 1 if there is no memory for the work space. */
int graph_segmentation(const graph *g) {
    int64_t n = g->edges, kept = 0;
    int32_t *root = g->root;
    int32_t *size = malloc((size_t)g->voxels * sizeof *size);
    double *limit = malloc((size_t)g->voxels * sizeof *limit);
    uint32_t *keys = malloc((size_t)(n + 1) * sizeof *keys), *ids = malloc((size_t)(n + 1) * sizeof *ids);
    if (!size || !limit || !keys || !ids) {
        free(size), free(limit), free(keys), free(ids);
        return 1;
    }
    sort_edges(n, g->weights, g->ids, keys, ids);
    for (int64_t p = 0; p < g->voxels; p++) root[p] = (int32_t)p, size[p] = 1, limit[p] = g->scale;
    for (int64_t i = 0; i < n; i++) {
        float w;
        memcpy(&w, &keys[i], sizeof w);
        int64_t p = ids[i] % g->voxels;
        int32_t a = find(root, (int32_t)p), b = find(root, (int32_t)(p + g->steps[ids[i] / g->voxels]));
        if (a == b) continue;
        if (w <= limit[a] && w <= limit[b]) {
            a = join(root, size, a, b);
            limit[a] = w + g->scale / size[a];
        } else {
            ids[kept++] = ids[i];
        }
    }
    for (int64_t i = 0; i < kept; i++) {
        int64_t p = ids[i] % g->voxels;
        int32_t a = find(root, (int32_t)p), b = find(root, (int32_t)(p + g->steps[ids[i] / g->voxels]));
        if (a != b && (size[a] < g->min_size || size[b] < g->min_size)) join(root, size, a, b);
    }
    for (int64_t p = 0; p < g->voxels; p++) root[p] = find(root, (int32_t)p);
    free(size), free(limit), free(keys), free(ids);
    return 0;
}
