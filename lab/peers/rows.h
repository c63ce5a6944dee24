/* What steps written by hand share: rows of products, and an exponential that is right also where
 * sums may be taken in any order, which that of the engine is not (it rounds by adding and
 * subtracting a large number).
 *
 * exp(x) = 2^n exp(r), n = round(x / ln 2), exp(r) by its Taylor series up to r^7 / 7!.
 */
#include <math.h>
#include <stddef.h>
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

static inline float sigmoid(float x) { return 1.0f / (1.0f + stategate_expf(-x)); }

#define ROW __attribute__((aligned(64)))
#define API __attribute__((visibility("default")))

/* out = w x + bias, a row of w at a time; the compiler may sum a row in any order. */
#define DENSE(rows, columns, w, x, bias, out) \
    for (int i_ = 0; i_ < (rows); ++i_) { \
        float sum_ = 0.0f; \
        for (int j_ = 0; j_ < (columns); ++j_) { \
            sum_ += (w)[i_][j_] * (x)[j_]; \
        } \
        (out)[i_] = sum_ + (bias); \
    }

/* What each of them keeps of its tensors, which come one after the other at multiples of 64 bytes. */
#define WEIGHTS(type) \
    static type w; \
    API size_t peer_weight_bytes(void) { return sizeof w; } \
    API void peer_open(const unsigned char *tensors) { memcpy(&w, tensors, sizeof w); }
