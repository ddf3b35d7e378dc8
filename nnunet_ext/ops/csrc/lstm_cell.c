/* The element-wise part of a ConvLSTM's step, forward and backward, in one pass.

     i, f, o, g = gates + before;  c' = sigmoid(f) c + sigmoid(i) tanh(g);  h' = sigmoid(o) tanh(c')

   Maps are (batch, rows, channels) with channels beside each other; gates have i, f, o and g behind each other. Without
   `c` (c = 0) it is the first step of a sequence, where the forget gate does not matter. */
#include "vector.h"

typedef struct {
    float *data; /* null: not given, or not wanted */
    int64_t batch, row;
} map;

typedef struct {
    int64_t batch, rows, channels;
    int32_t threads;
    map gates, before, c; /* read by forward; backward reads c, and gates if there are no states */
    map state_i, state_f, state_o, state_g;     /* sigmoid or tanh of i, f, o, g: all four or none */
    map next_c, h;
    map grad_c, grad_f, grad_g, grad_h;         /* gradients of next_c, state_f, state_g and h */
    map grad_gates, grad_before, grad_c_before; /* the first two are the same values */
} cell;

enum { I, F, O, G, GATES };

#define STATES(a) {&(a)->state_i, &(a)->state_f, &(a)->state_o, &(a)->state_g}

INLINE float *at(const map *m, int64_t batch, int64_t row, int64_t channel) {
    return m->data + batch * m->batch + row * m->row + channel;
}

INLINE vf read(const map *m, int64_t batch, int64_t row, int64_t channel, int lanes) {
    return m->data ? load_some(at(m, batch, row, channel), lanes) : (vf){0};
}

INLINE void write(const map *m, int64_t batch, int64_t row, int64_t channel, vf v, int lanes) {
    if (m->data) store_some(at(m, batch, row, channel), v, lanes);
}

/* Sigmoid or tanh of i, f, o and g. */
INLINE void activate(const cell *a, int64_t batch, int64_t row, int64_t channel, int lanes, vf *s) {
    UNROLL for (int j = 0; j < GATES; j++) {
        if (j == F && !a->c.data) {
            s[j] = (vf){0};
            continue;
        }
        int64_t from = j * a->channels + channel;
        vf x = read(&a->gates, batch, row, from, lanes) + read(&a->before, batch, row, from, lanes);
        s[j] = j == G ? tanh_vector(x) : sigmoid(x);
    }
}

INLINE void forward(const cell *a, int64_t batch, int64_t row, int64_t channel, int lanes) {
    vf s[GATES];
    const map *states[GATES] = STATES(a);
    activate(a, batch, row, channel, lanes, s);
    vf c = s[F] * read(&a->c, batch, row, channel, lanes) + s[I] * s[G];
    UNROLL for (int j = 0; j < GATES; j++) write(states[j], batch, row, channel, s[j], lanes);
    write(&a->next_c, batch, row, channel, c, lanes);
    write(&a->h, batch, row, channel, s[O] * tanh_vector(c), lanes);
}

INLINE void backward(const cell *a, int64_t batch, int64_t row, int64_t channel, int lanes) {
    vf s[GATES], grad[GATES];
    const map *states[GATES] = STATES(a);
    if (a->state_i.data) {
        UNROLL for (int j = 0; j < GATES; j++) s[j] = read(states[j], batch, row, channel, lanes);
    } else {
        activate(a, batch, row, channel, lanes, s);
    }
    vf c = read(&a->c, batch, row, channel, lanes), of_h = read(&a->grad_h, batch, row, channel, lanes);
    vf bent = tanh_vector(s[F] * c + s[I] * s[G]);
    vf of_c = read(&a->grad_c, batch, row, channel, lanes) + of_h * s[O] * (1.0f - bent * bent);
    grad[I] = of_c * s[G] * s[I] * (1.0f - s[I]);
    grad[F] = (of_c * c + read(&a->grad_f, batch, row, channel, lanes)) * s[F] * (1.0f - s[F]);
    grad[O] = of_h * bent * s[O] * (1.0f - s[O]);
    grad[G] = (of_c * s[I] + read(&a->grad_g, batch, row, channel, lanes)) * (1.0f - s[G] * s[G]);
    UNROLL for (int j = 0; j < GATES; j++) {
        write(&a->grad_gates, batch, row, j * a->channels + channel, grad[j], lanes);
        write(&a->grad_before, batch, row, j * a->channels + channel, grad[j], lanes);
    }
    write(&a->grad_c_before, batch, row, channel, of_c * s[F], lanes);
}

#define OVER_ROWS(step)                                                                                          \
    int lstm_cell_##step(const cell *a) {                                                                        \
        int64_t rows = a->batch * a->rows;                                                                       \
        _Pragma("omp parallel for schedule(static) num_threads(a->threads)") for (int64_t i = 0; i < rows; i++) { \
            int64_t channel = 0;                                                                                 \
            for (; channel + LANES <= a->channels; channel += LANES)                                             \
                step(a, i / a->rows, i % a->rows, channel, LANES);                                               \
            if (channel < a->channels) step(a, i / a->rows, i % a->rows, channel, (int)(a->channels - channel)); \
        }                                                                                                        \
        return 0;                                                                                                \
    }

/* Both return 0. */
OVER_ROWS(forward)
OVER_ROWS(backward)
