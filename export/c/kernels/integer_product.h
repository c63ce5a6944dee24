/* Neighbouring int8 weights as floats, which is exact. Compilers take three steps and shuffles where
 * one instruction does it, so it is named. */
#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif
STATEGATE_INLINE stategate_vector stategate_widened(const int8_t *w)
{
#if defined(__AVX512F__)
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const void *)w)));
#elif defined(__AVX2__)
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const void *)w)));
#else
    stategate_vector wide;
    STATEGATE_UNROLL for (int32_t i = 0; i < STATEGATE_LANES; ++i) {
        wide[i] = (float)w[i];
    }
    return wide;
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
    for (int32_t k = 0; k < rows; ++k, w += tile) {
        const float factor = x[k];
        STATEGATE_UNROLL for (int32_t v = 0; v < vectors; ++v) {
            sums[v] += stategate_widened(w + v * STATEGATE_LANES) * factor;
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
    const int32_t pass = STATEGATE_SUMS * STATEGATE_LANES, whole = tile - tile % pass;
    for (int32_t n = 0; n < whole; n += pass) {
        stategate_integer_columns(STATEGATE_SUMS, tile, w + n, rows, x, out + n);
    }
    if (whole < tile) {
        const int32_t rest = (tile - whole) / STATEGATE_LANES;
        stategate_integer_columns(rest, tile, w + whole, rows, x, out + whole);
    }
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
