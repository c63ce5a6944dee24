/* The exponential of generated code, written so that a compiler can turn loops of it into vector
 * instructions, and so that every machine and C library computes the same.
 *
 * exp(x) = 2^n exp(r), n = round(x / ln 2), |r| <= ln(2) / 2; exp(r) by its Taylor series up to
 * r^7 / 7!, whose remainder r^8 / 8! is below 6e-9. ln 2 is split so that n times its first part
 * is exact (W. J. Cody, W. Waite, Software Manual for the Elementary Functions, 1980, ch. 6).
 */
#ifndef STATEGATE_MATH_H
#define STATEGATE_MATH_H

#include <math.h>
#include <stdint.h>
#include <string.h>

/* a - n * b. Fused where that is one instruction: compilers may not reorder it then. */
#ifdef __FP_FAST_FMAF
#define STATEGATE_MINUS(a, n, b) __builtin_fmaf(-(n), (b), (a))
#else
#define STATEGATE_MINUS(a, n, b) ((a) - (n) * (b))
#endif

static inline __attribute__((unused)) float stategate_expf(float x)
{
    /* Beyond these the result is 0 or infinity; NaN becomes 0 here and comes back at the end. */
    const float low = x > -87.3f ? x : -87.3f;
    const float y = low < 88.7f ? low : 88.7f;
    const float scaled = y * 1.44269504f;
    const int32_t n = (int32_t)(scaled + (scaled < 0.0f ? -0.5f : 0.5f));
    const float whole = (float)n;
    const float r = STATEGATE_MINUS(STATEGATE_MINUS(y, whole, 0.693359375f), whole, -2.12194440e-4f);
    float series = 1.98412698e-4f;
    series = series * r + 1.38888889e-3f;
    series = series * r + 8.33333333e-3f;
    series = series * r + 4.16666667e-2f;
    series = series * r + 1.66666667e-1f;
    series = series * r + 0.5f;
    series = series * r + 1.0f;
    series = series * r + 1.0f;
    /* 2^n in two factors: 2^128 is no float, though its product with the series may be one. */
    const int32_t half = n >> 1;
    const uint32_t bits[2] = {(uint32_t)(half + 127) << 23, (uint32_t)(n - half + 127) << 23};
    float power[2];
    memcpy(power, bits, sizeof power);
    const float inside = series * power[0] * power[1];
    const float bounded = x > 88.72283f ? INFINITY : (x < -87.3f ? 0.0f : inside);
    return x == x ? bounded : x;
}

#define expf stategate_expf

#endif
