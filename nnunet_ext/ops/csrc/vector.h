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

#if defined(__AVX512F__)
/* 2^(j/16) for j < 16. */
static const float EXP2_STEPS[16] = {1.0f,        1.04427373f, 1.09050775f, 1.13878858f, 1.18920708f, 1.24185777f,
                                     1.29683959f, 1.35425556f, 1.41421354f, 1.47682619f, 1.54221082f, 1.61049032f,
                                     1.68179286f, 1.75625217f, 1.8340081f,  1.91520655f};
#endif

/* 2^x, x = a b, with errors below 2 units in the last place (2.1 without fused multiplications).
   With AVX-512: x = k + f, k a multiple of 1/16 and |f| <= 1/32; 2^x = 2^floor(k) (T + T q(f)) with T = 2^(k - floor(k))
   from a table and the polynomial q of degree 3 with q(0) = 0, whose error is 2e-9. Adding 1.5 * 2^19 rounds x to a
   multiple of 1/16, and leaves its last four bits lowest, which choose from the table. If |x| is over 1e20, the result
   may be NaN.
   Otherwise: x = k + f with whole k and |f| <= 1/2; 2^f by the minimax polynomial of degree 5 with p(0) = 1, 2^k by the
   exponent; the result is within 2^-126 and 2^126. */
INLINE vf exp2_product(vf a, vf b) {
#if defined(__AVX512F__)
    vf shifted = a * b + 786432.0f, k = shifted - 786432.0f, f = a * b - k;
    vf T = _mm512_permutexvar_ps((__m512i)shifted, load(EXP2_STEPS));
    vf q = (f * 0.0555041097f + 0.240234286f) * f + 0.693147182f;
    return _mm512_scalef_ps(T * f * q + T, k);
#else
    /* Adding 1.5 * 2^23 rounds to the nearest whole number, which then stands in the low bits. */
    vf x = at_most(at_least(a * b, -126.0f), 126.0f);
    vf shifted = x + 12582912.0f, f = x - (shifted - 12582912.0f);
    vf p = f * 1.322570733e-03f + 9.671762910e-03f;
    p = p * f + 5.550891439e-02f;
    p = p * f + 2.402223704e-01f;
    p = p * f + 6.931468292e-01f;
    p = p * f + 1.0f;
    return (vf)((vi)p + ((vi)shifted << 23));
#endif
}

INLINE vf exp2_vector(vf x) { return exp2_product(x, all(1.0f)); }

#define LOG2E 1.4426950408889634f

/* e^x for |x| <= 87; beyond, e^-87 or e^87. */
INLINE vf exp_vector(vf x) { return exp2_product(at_most(at_least(x, -87.0f), 87.0f), all(LOG2E)); }

/* 1/x for normal x with normal 1/x. On most processors, dividing sixteen numbers takes as long as ten other operations. */
INLINE vf reciprocal(vf x) {
#if defined(__AVX512F__)
    vf r = _mm512_rcp14_ps(x);
    return r + r * (1.0f - x * r);
#else
    return 1.0f / x;
#endif
}

INLINE vf sigmoid(vf x) { return reciprocal(1.0f + exp_vector(-x)); }

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
    return x * p * reciprocal(r);
}

/* log(1 + e^x) = max(x, 0) + log(1 + e), e = e^-|x|, and log(1 + e) = e p(e) with the minimax polynomial of degree 8
   on 0 <= e <= 1 (3e-8 of the value). `slope`, unless null, is the derivative, the sigmoid: 1 / (1 + e), times e for
   negative x. */
INLINE vf softplus(vf x, vf *slope) {
    vf e = exp_vector(minus_absolute(x));
    if (slope) {
        vf r = reciprocal(1.0f + e);
        *slope = choose(x < 0.0f, e * r, r);
    }
    vf p = e * 5.232690027e-03f - 2.950521992e-02f;
    p = p * e + 7.822591751e-02f;
    p = p * e - 1.366324250e-01f;
    p = p * e + 1.910600499e-01f;
    p = p * e - 2.484298169e-01f;
    p = p * e + 3.331909673e-01f;
    p = p * e - 4.999949314e-01f;
    p = p * e + 1.0f;
    return at_least(x, 0.0f) + e * p;
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
