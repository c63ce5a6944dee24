/* The exponential of the step that is written by hand: right also where sums may be taken in any
 * order, which that of the engine is not (it rounds by adding and subtracting a large number).
 *
 * exp(x) = 2^n exp(r), n = round(x / ln 2), exp(r) by its Taylor series up to r^7 / 7!.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>

/* a - n * b. Fused where that is one instruction: compilers may not reorder it then. */
#ifdef __FP_FAST_FMAF
#define STATEGATE_MINUS(a, n, b) __builtin_fmaf(-(n), (b), (a))
#else
#define STATEGATE_MINUS(a, n, b) ((a) - (n) * (b))
#endif

/* 2^n for -126 <= n <= 127, as the exponent bits of a float. */
static inline __attribute__((unused)) float stategate_power(uint32_t n)
{
    const uint32_t bits = (n + 127u) << 23;
    float power;
    memcpy(&power, &bits, sizeof power);
    return power;
}

static inline __attribute__((unused)) float stategate_expf(float x)
{
    const float above = x < -104.0f ? -104.0f : x;
    const float y = above > 89.0f ? 89.0f : above;
    /* Adding 1.5 * 2^23 leaves the rounded integer in the low bits. */
    const float shifted = y * 1.44269504f + 12582912.0f;
    uint32_t bits;
    memcpy(&bits, &shifted, sizeof bits);
    const int32_t n = (int32_t)(bits - 0x4B400000u);
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
    /* Two factors: 2^128 is no float, though its product with the series may be one. */
    const int32_t half = n >> 1;
    return series * stategate_power((uint32_t)half) * stategate_power((uint32_t)(n - half));
}
