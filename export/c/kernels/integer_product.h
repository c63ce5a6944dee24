/* 16 neighbouring int8 weights as floats, which is exact. Compilers take many steps and shuffles where a
 * few instructions do it, so these are named. */
#if STATEGATE_LANES == 1
/* named by nobody */
#elif defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__) && defined(__ARM_NEON)
#include <arm_neon.h>
#endif
enum { STATEGATE_SIXTEEN = 16 / STATEGATE_LANES }; /* vectors */
STATEGATE_INLINE void stategate_widen(const int8_t *w, stategate_vector *wide)
{
#if STATEGATE_LANES == 1
    STATEGATE_UNROLL for (int32_t i = 0; i < 16; ++i) {
        wide[i] = (float)w[i];
    }
#elif defined(__AVX512F__)
    wide[0] = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const void *)w)));
#elif defined(__AVX2__)
    wide[0] = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const void *)w)));
    wide[1] = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const void *)(w + 8))));
#elif defined(__SSE2__) && !defined(__AVX__)
    /* Each byte four times over; the shift leaves the one with the sign. */
    const __m128i all = _mm_loadu_si128((const void *)w);
    const __m128i low = _mm_unpacklo_epi8(all, all), high = _mm_unpackhi_epi8(all, all);
    wide[0] = _mm_cvtepi32_ps(_mm_srai_epi32(_mm_unpacklo_epi16(low, low), 24));
    wide[1] = _mm_cvtepi32_ps(_mm_srai_epi32(_mm_unpackhi_epi16(low, low), 24));
    wide[2] = _mm_cvtepi32_ps(_mm_srai_epi32(_mm_unpacklo_epi16(high, high), 24));
    wide[3] = _mm_cvtepi32_ps(_mm_srai_epi32(_mm_unpackhi_epi16(high, high), 24));
#elif defined(__aarch64__) && defined(__ARM_NEON)
    const int16x8_t low = vmovl_s8(vld1_s8(w)), high = vmovl_s8(vld1_s8(w + 8));
    wide[0] = (stategate_vector)vcvtq_f32_s32(vmovl_s16(vget_low_s16(low)));
    wide[1] = (stategate_vector)vcvtq_f32_s32(vmovl_s16(vget_high_s16(low)));
    wide[2] = (stategate_vector)vcvtq_f32_s32(vmovl_s16(vget_low_s16(high)));
    wide[3] = (stategate_vector)vcvtq_f32_s32(vmovl_s16(vget_high_s16(high)));
#else
    STATEGATE_UNROLL for (int32_t i = 0; i < 16; ++i) {
        wide[i / STATEGATE_LANES][i % STATEGATE_LANES] = (float)w[i];
    }
#endif
}

/* Sums of columns of int8 weights, before their scales. */
STATEGATE_INLINE void stategate_integer_columns(
    int32_t vectors, int32_t tile, const int8_t *w, int32_t rows, const float *x, float *out)
{
    stategate_vector sums[STATEGATE_MOST_VECTORS];
    STATEGATE_UNROLL for (int32_t v = 0; v < vectors; ++v) {
        sums[v] = (stategate_vector){0};
    }
    for (int32_t k = 0; k < rows; ++k) {
        const float factor = x[k];
        STATEGATE_UNROLL for (int32_t v = 0; v < vectors; v += STATEGATE_SIXTEEN) {
            stategate_vector wide[STATEGATE_SIXTEEN];
            stategate_widen(w + k * tile + v * STATEGATE_LANES, wide);
            STATEGATE_UNROLL for (int32_t i = 0; i < STATEGATE_SIXTEEN; ++i) {
                sums[v + i] += wide[i] * factor;
            }
        }
    }
    STATEGATE_UNROLL for (int32_t v = 0; v < vectors; ++v) {
        *(stategate_vector *)(out + v * STATEGATE_LANES) = sums[v];
    }
}

STATEGATE_INLINE void stategate_integer_tile(
    int32_t tile, const int8_t *w, int32_t rows, const float *x, const float *scales,
    const float *init, float *out)
{
    /* Weights are widened sixteen at a time: fewer sums than that would be read past their end. */
    const int32_t most = STATEGATE_SUMS > STATEGATE_SIXTEEN ? STATEGATE_SUMS : STATEGATE_SIXTEEN;
    const int32_t pass = most * STATEGATE_LANES, whole = tile - tile % pass;
    for (int32_t n = 0; n < whole; n += pass) {
        stategate_integer_columns(most, tile, w + n, rows, x, out + n);
    }
#if STATEGATE_LANES > 1
    if (whole < tile) {
        const int32_t rest = (tile - whole) / STATEGATE_LANES;
        stategate_integer_columns(rest, tile, w + whole, rows, x, out + whole);
    }
#endif
    for (int32_t n = 0; n < tile; ++n) {
        float value = out[n] * scales[n];
        /* The sum can pass the largest float where the scaled result does not, from inputs of some
         * 1e36 on: then every weight is scaled first, as the graph says. */
        if (!(fabsf(value) <= FLT_MAX)) {
            value = 0.0f;
            for (int32_t k = 0; k < rows; ++k) {
                value += x[k] * ((float)w[k * tile + n] * scales[n]);
            }
        }
        out[n] = init[n] + value;
    }
}

/* The product of a row with int8 weights in tiles: each column's sum times its scale. */
STATEGATE_INLINE void stategate_integer_product(
    int32_t columns, const int8_t *w, int32_t rows, const float *x, const float *scales,
    const float *init, float *out)
{
    const int32_t whole = columns - columns % STATEGATE_TILE;
    for (int32_t n = 0; n < whole; n += STATEGATE_TILE) {
        stategate_integer_tile(
            STATEGATE_TILE, w + n * rows, rows, x, scales + n, init + n, out + n);
    }
    if (whole < columns) {
        stategate_integer_tile(
            columns - whole, w + whole * rows, rows, x, scales + whole, init + whole, out + whole);
    }
}

#ifdef STATEGATE_TWINS
static void plain_integer_product(
    int32_t columns, const int8_t (*w)[STATEGATE_TWINS], int32_t rows, const float *x,
    const float *scales, const float *init, float *out)
{
    for (int32_t n = 0; n < columns; ++n) {
        float sum = 0.0f;
        for (int32_t k = 0; k < rows; ++k) {
            sum += (float)w[k][n] * x[k];
        }
        out[n] = init[n] + sum * scales[n];
    }
}
#endif
