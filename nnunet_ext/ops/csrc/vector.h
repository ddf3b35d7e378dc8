/* Vectors of LANES floats, in GCC's and clang's common vector extensions, so that one source serves every processor.

   LANES is 16 with AVX-512, 8 with AVX2, 4 otherwise (SSE2, NEON). */
#pragma once

#include <stdint.h>
#include <string.h>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define LANES 16
#define ZIP_LOW 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define ZIP_HIGH 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
#elif defined(__AVX2__)
#define LANES 8
#define ZIP_LOW 0, 8, 1, 9, 2, 10, 3, 11
#define ZIP_HIGH 4, 12, 5, 13, 6, 14, 7, 15
#else
#define LANES 4
#define ZIP_LOW 0, 4, 1, 5
#define ZIP_HIGH 2, 6, 3, 7
#endif

typedef float vf __attribute__((vector_size(LANES * 4)));
typedef int32_t vi __attribute__((vector_size(LANES * 4)));

#define INLINE static inline __attribute__((always_inline))

/* Loops over vectors that live in registers must be unrolled whole. */
#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define UNROLL _Pragma("GCC unroll 16")
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (vi){__VA_ARGS__})
#endif

INLINE vf load(const float *p) {
    vf v;
    memcpy(&v, p, sizeof v);
    return v;
}

INLINE void store(float *p, vf v) { memcpy(p, &v, sizeof v); }

/* The first n lanes; the others are 0. */
INLINE vf load_some(const float *p, int n) {
    vf v = {0};
    if (n == LANES) return load(p);
    for (int i = 0; i < n; i++) v[i] = p[i];
    return v;
}

INLINE void store_some(float *p, vf v, int n) {
    if (n == LANES)
        store(p, v);
    else
        for (int i = 0; i < n; i++) p[i] = v[i];
}

INLINE vf all(float x) { return x - (vf){0}; }

/* a where mask is -1, b where it is 0. */
INLINE vf choose(vi mask, vf a, vf b) { return (vf)((mask & (vi)a) | (~mask & (vi)b)); }

/* A NaN in x passes through both: where an operand is NaN, the instructions return the second one. */
#if defined(__AVX512F__)
INLINE vf at_least(vf x, float low) { return _mm512_max_ps(all(low), x); }
INLINE vf at_most(vf x, float high) { return _mm512_min_ps(all(high), x); }
#elif defined(__AVX2__)
INLINE vf at_least(vf x, float low) { return _mm256_max_ps(all(low), x); }
INLINE vf at_most(vf x, float high) { return _mm256_min_ps(all(high), x); }
#else
INLINE vf at_least(vf x, float low) { return choose(x < low, all(low), x); }
INLINE vf at_most(vf x, float high) { return choose(x > high, all(high), x); }
#endif

INLINE vf minus_absolute(vf x) { return (vf)((vi)x | (vi)all(-0.0f)); }

/* exp2: x = k + f with whole k and |f| <= 1/2; 2^f by its minimax polynomial of degree 5 with p(0) = 1, 2^k
   by the exponent. Errors are below 2 units in the last place (2.1 without fused
   multiplications). With AVX-512, infinite x give NaN; otherwise the result
   is within 2^-126 and 2^126. */
INLINE vf exp2_vector(vf x) {
#if defined(__AVX512F__)
    vf k = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC), f = x - k;
#else
    /* Adding 1.5 * 2^23 rounds to the nearest whole number, which then stands in the low bits. */
    x = at_most(at_least(x, -126.0f), 126.0f);
    vf shifted = x + 12582912.0f, f = x - (shifted - 12582912.0f);
#endif
    vf p = f * 1.322570733e-03f + 9.671762910e-03f;
    p = p * f + 5.550891439e-02f;
    p = p * f + 2.402223704e-01f;
    p = p * f + 6.931468292e-01f;
    p = p * f + 1.0f;
#if defined(__AVX512F__)
    return _mm512_scalef_ps(p, k);
#else
    return (vf)((vi)p + ((vi)shifted << 23));
#endif
}

#define LOG2E 1.4426950408889634f

INLINE vf exp_vector(vf x) {
    x *= LOG2E;
#if defined(__AVX512F__)
    x = at_most(at_least(x, -126.0f), 126.0f);
#endif
    return exp2_vector(x);
}

INLINE vf sigmoid(vf x) { return 1.0f / (1.0f + exp_vector(-x)); }

/* tanh by a rational function, odd over even, of degrees 13 and 6 (3e-7 of the value); beyond 7.9 the result is 1 in
   single precision. The coefficients are those of Eigen's generic_fast_tanh_float (Eigen/src/Core/MathFunctionsImpl.h). */
INLINE vf tanh_vector(vf x) {
    x = at_most(at_least(x, -7.90531110763549805f), 7.90531110763549805f);
    vf q = x * x;
    vf p = q * -2.76076847742355e-16f + 2.00018790482477e-13f;
    p = p * q + -8.60467152213735e-11f;
    p = p * q + 5.12229709037114e-08f;
    p = p * q + 1.48572235717979e-05f;
    p = p * q + 6.37261928875436e-04f;
    p = p * q + 4.89352455891786e-03f;
    vf r = q * 1.19825839466702e-06f + 1.18534705686654e-04f;
    r = r * q + 2.26843463243900e-03f;
    r = r * q + 4.89352518554385e-03f;
    return x * p / r;
}

/* log(1 + e^x) = max(x, 0) + log(1 + e), e = e^-|x|, and log(1 + e) = 2 artanh(e / (2 + e)), an odd series in
   s <= 1/3 (next term: 1e-9). */
INLINE vf softplus(vf x) {
    vf e = exp_vector(minus_absolute(x));
    vf s = e / (2.0f + e), q = s * s;
    vf p = q * (1.0f / 15) + 1.0f / 13;
    p = p * q + 1.0f / 11;
    p = p * q + 1.0f / 9;
    p = p * q + 1.0f / 7;
    p = p * q + 1.0f / 5;
    p = p * q + 1.0f / 3;
    p = p * q + 1.0f;
    return at_least(x, 0.0f) + 2.0f * s * p;
}

/* Transpose of LANES rows of LANES lanes: each round interleaves the rows of one half with those of the other. */
INLINE void transpose(vf *r) {
    for (int round = 1; round < LANES; round *= 2) {
        vf next[LANES];
        UNROLL for (int i = 0; i < LANES / 2; i++) {
            next[2 * i] = SHUFFLE(r[i], r[i + LANES / 2], ZIP_LOW);
            next[2 * i + 1] = SHUFFLE(r[i], r[i + LANES / 2], ZIP_HIGH);
        }
        UNROLL for (int i = 0; i < LANES; i++) r[i] = next[i];
    }
}
