/* The exponential of generated code, written so that a compiler can turn loops of it into vector
 * instructions, and so that every machine and C library computes the same.
 *
 * exp(x) = 2^n exp(r), n = round(x / ln 2), |r| <= ln(2) / 2; exp(r) by its Taylor series up to
 * r^7 / 7!, whose remainder r^8 / 8! is below 6e-9. ln 2 is split so that n times its first part
 * is exact (W. J. Cody, W. Waite, Software Manual for the Elementary Functions, 1980, ch. 6).
 *
 * No branch is taken: too large overflows to infinity and too small to zero by itself, once x is
 * within what n can hold, and NaN stays NaN.
 */
#ifndef STATEGATE_MATH_H
#define STATEGATE_MATH_H

#include <math.h>
#include <stdint.h>
#include <string.h>

/* Where temporaries go that are too large for a stack. */
#if defined(__linux__) || defined(__APPLE__)
#define STATEGATE_TEMPORARY static __thread
#else
#define STATEGATE_TEMPORARY static
#endif

/* Where such an array begins. What is of one thread is found by a call, which a compiler that knows
 * the address to stay the same would rather repeat in inner loops than keep it. */
#define STATEGATE_ONCE(array)                     \
    ({                                            \
        __typeof__(&(array)[0]) place_ = (array); \
        __asm__("" : "+r"(place_));               \
        place_;                                   \
    })

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

#define expf stategate_expf

#if defined(__AVX2__) && defined(__FMA__)
#include <immintrin.h>
#endif

/* Sum of x[i] * w[i]. What compilers make of a plain loop widens the integers in three steps, two of
 * which are shuffles; where one instruction does it, it is named here. Four sums are under way at
 * the same time, because an addition takes four cycles. */
static inline __attribute__((unused)) float stategate_dot(const float *x, const int8_t *w, int32_t n)
{
    float sum = 0.0f;
    int32_t i = 0;
#if defined(__AVX512F__)
    __m512 sums[4] = {_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps()};
    for (; i + 64 <= n; i += 64) {
        for (int32_t j = 0; j < 4; ++j) {
            const __m128i bytes = _mm_loadu_si128((const void *)(w + i + 16 * j));
            const __m512 wide = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
            sums[j] = _mm512_fmadd_ps(wide, _mm512_loadu_ps(x + i + 16 * j), sums[j]);
        }
    }
    sums[0] = _mm512_add_ps(_mm512_add_ps(sums[0], sums[1]), _mm512_add_ps(sums[2], sums[3]));
    sum = _mm512_reduce_add_ps(sums[0]);
#elif defined(__AVX2__) && defined(__FMA__)
    __m256 sums[4] = {_mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps()};
    for (; i + 32 <= n; i += 32) {
        for (int32_t j = 0; j < 4; ++j) {
            const __m128i bytes = _mm_loadl_epi64((const void *)(w + i + 8 * j));
            const __m256 wide = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
            sums[j] = _mm256_fmadd_ps(wide, _mm256_loadu_ps(x + i + 8 * j), sums[j]);
        }
    }
    sums[0] = _mm256_add_ps(_mm256_add_ps(sums[0], sums[1]), _mm256_add_ps(sums[2], sums[3]));
    for (int32_t j = 0; j < 8; ++j) {
        sum += sums[0][j];
    }
#else
    float sums[64] = {0};
    for (; i + 64 <= n; i += 64) {
        for (int32_t j = 0; j < 64; ++j) {
            sums[j] += x[i + j] * (float)w[i + j];
        }
    }
    for (int32_t j = 0; j < 64; ++j) {
        sum += sums[j];
    }
#endif
    for (; i < n; ++i) {
        sum += x[i] * (float)w[i];
    }
    return sum;
}

#endif
