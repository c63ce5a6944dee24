/* Products of generated code: sums whose order is in the source, and not in a compiler's hands.
 *
 * A step multiplies vectors with matrices, so it costs what reading the weights costs. They lie in
 * tiles of 128 columns, row after row (export/c/weights.py), and each column is summed in the order of
 * its rows. A vector of the CPU holds neighbouring columns, which never meet: wider vectors take more
 * columns at a time, and change no bit. The plain loops at the end say what each kernel computes.
 */
#ifndef STATEGATE_KERNELS_H
#define STATEGATE_KERNELS_H

#include "stategate_math.h"

/* Numbers of one vector, and vectors whose sums fit into the registers at the same time. */
#if defined(__AVX512F__)
#define STATEGATE_LANES 16
#elif defined(__AVX__)
#define STATEGATE_LANES 8
#else
#define STATEGATE_LANES 4
#endif
#if defined(__aarch64__)
#define STATEGATE_SUMS 16
#else
#define STATEGATE_SUMS 8
#endif
#define STATEGATE_TILE 128
#define STATEGATE_MOST_VECTORS (STATEGATE_TILE / STATEGATE_LANES)

#if defined(__clang__)
#define STATEGATE_UNROLL _Pragma("clang loop unroll(full)")
#else
#define STATEGATE_UNROLL _Pragma("GCC unroll 32")
#endif

typedef float stategate_vector
    __attribute__((vector_size(4 * STATEGATE_LANES), may_alias, aligned(4)));

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

/* out[n] = init[n] + x[0] w[0][n] + x[1] w[1][n] + ... + y[0] w[n_x][n] + ..., for some vectors of
 * columns of a tile. */
STATEGATE_INLINE void stategate_columns(
    int32_t vectors, int32_t tile, const float *w, int32_t n_x, const float *x, int32_t n_y,
    const float *y, const float *init, float *out)
{
    stategate_vector sums[STATEGATE_MOST_VECTORS];
    STATEGATE_UNROLL for (int32_t v = 0; v < vectors; ++v) {
        sums[v] = *(const stategate_vector *)(init + v * STATEGATE_LANES);
    }
    for (int32_t part = 0; part < (n_y > 0 ? 2 : 1); ++part) {
        const float *from = part == 0 ? x : y;
        const int32_t rows = part == 0 ? n_x : n_y;
        for (int32_t k = 0; k < rows; ++k, w += tile) {
            const float factor = from[k];
            STATEGATE_UNROLL for (int32_t v = 0; v < vectors; ++v) {
                sums[v] += *(const stategate_vector *)(w + v * STATEGATE_LANES) * factor;
            }
        }
    }
    STATEGATE_UNROLL for (int32_t v = 0; v < vectors; ++v) {
        *(stategate_vector *)(out + v * STATEGATE_LANES) = sums[v];
    }
}

STATEGATE_INLINE void stategate_tile(
    int32_t tile, const float *w, int32_t n_x, const float *x, int32_t n_y, const float *y,
    const float *init, float *out)
{
    const int32_t pass = STATEGATE_SUMS * STATEGATE_LANES, whole = tile - tile % pass;
    for (int32_t n = 0; n < whole; n += pass) {
        stategate_columns(STATEGATE_SUMS, tile, w + n, n_x, x, n_y, y, init + n, out + n);
    }
    if (whole < tile) {
        const int32_t rest = (tile - whole) / STATEGATE_LANES;
        stategate_columns(rest, tile, w + whole, n_x, x, n_y, y, init + whole, out + whole);
    }
}

/* The product of a row (x, y) with a matrix in tiles; columns are a multiple of 16. */
STATEGATE_INLINE void stategate_product(
    int32_t columns, const float *w, int32_t n_x, const float *x, int32_t n_y, const float *y,
    const float *init, float *out)
{
    const int32_t whole = columns - columns % STATEGATE_TILE;
    for (int32_t n = 0; n < whole; n += STATEGATE_TILE) {
        stategate_tile(STATEGATE_TILE, w + n * (n_x + n_y), n_x, x, n_y, y, init + n, out + n);
    }
    if (whole < columns) {
        const float *rest = w + whole * (n_x + n_y);
        stategate_tile(columns - whole, rest, n_x, x, n_y, y, init + whole, out + whole);
    }
}

/* The same for at most 16 columns, in a row of 16: row k goes to sum k modulo 4, because one sum for
 * each would wait for itself; the four meet in pairs. */
STATEGATE_INLINE void stategate_narrow_product(
    const float *w, int32_t rows, const float *x, const float *init, float *out)
{
    enum { VECTORS = 16 / STATEGATE_LANES };
    stategate_vector sums[4][VECTORS];
    STATEGATE_UNROLL for (int32_t v = 0; v < VECTORS; ++v) {
        sums[0][v] = *(const stategate_vector *)(init + v * STATEGATE_LANES);
        sums[1][v] = sums[2][v] = sums[3][v] = (stategate_vector){0};
    }
    const int32_t whole = rows - rows % 4;
    for (int32_t k = 0; k < whole; k += 4) {
        STATEGATE_UNROLL for (int32_t chain = 0; chain < 4; ++chain) {
            STATEGATE_UNROLL for (int32_t v = 0; v < VECTORS; ++v) {
                const float *at = w + (k + chain) * 16 + v * STATEGATE_LANES;
                sums[chain][v] += *(const stategate_vector *)at * x[k + chain];
            }
        }
    }
    STATEGATE_UNROLL for (int32_t chain = 0; chain < rows - whole; ++chain) {
        STATEGATE_UNROLL for (int32_t v = 0; v < VECTORS; ++v) {
            const float *at = w + (whole + chain) * 16 + v * STATEGATE_LANES;
            sums[chain][v] += *(const stategate_vector *)at * x[whole + chain];
        }
    }
    STATEGATE_UNROLL for (int32_t v = 0; v < VECTORS; ++v) {
        *(stategate_vector *)(out + v * STATEGATE_LANES) =
            (sums[0][v] + sums[1][v]) + (sums[2][v] + sums[3][v]);
    }
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

STATEGATE_INLINE void stategate_mixed_columns(
    int32_t vectors, int32_t rows, const float *a, int32_t step, const float *b, int32_t stride,
    float *out)
{
    stategate_vector sums[STATEGATE_SUMS];
    STATEGATE_UNROLL for (int32_t v = 0; v < vectors; ++v) {
        sums[v] = (stategate_vector){0};
    }
    for (int32_t k = 0; k < rows; ++k) {
        const float factor = a[k * step];
        STATEGATE_UNROLL for (int32_t v = 0; v < vectors; ++v) {
            const float *at = b + k * stride + v * STATEGATE_LANES;
            sums[v] += *(const stategate_vector *)at * factor;
        }
    }
    STATEGATE_UNROLL for (int32_t v = 0; v < vectors; ++v) {
        *(stategate_vector *)(out + v * STATEGATE_LANES) = sums[v];
    }
}

/* out[j] = a[0] b[0][j] + a[1] b[1][j] + ..., of rows that a step has computed. */
STATEGATE_INLINE void stategate_mix(
    int32_t columns, int32_t rows, const float *a, int32_t step, const float *b, int32_t stride,
    float *out)
{
    const int32_t pass = STATEGATE_SUMS * STATEGATE_LANES, whole = columns - columns % pass;
    const int32_t wide = columns - columns % STATEGATE_LANES;
    for (int32_t n = 0; n < whole; n += pass) {
        stategate_mixed_columns(STATEGATE_SUMS, rows, a, step, b + n, stride, out + n);
    }
    if (whole < wide) {
        const int32_t rest = (wide - whole) / STATEGATE_LANES;
        stategate_mixed_columns(rest, rows, a, step, b + whole, stride, out + whole);
    }
    for (int32_t n = wide; n < columns; ++n) {
        float sum = 0.0f;
        for (int32_t k = 0; k < rows; ++k) {
            sum += a[k * step] * b[k * stride + n];
        }
        out[n] = sum;
    }
}

/* The sum of 16 lanes: halves are added until one is left. */
STATEGATE_INLINE float stategate_sum_of_lanes(const float *lanes)
{
    float eight[8], four[4];
    STATEGATE_UNROLL for (int32_t i = 0; i < 8; ++i) {
        eight[i] = lanes[i] + lanes[i + 8];
    }
    STATEGATE_UNROLL for (int32_t i = 0; i < 4; ++i) {
        four[i] = eight[i] + eight[i + 4];
    }
    return (four[0] + four[2]) + (four[1] + four[3]);
}

/* The sum of a[i] b[i] in 16 lanes, lane i modulo 16, or in 64 where there are many. */
STATEGATE_INLINE float stategate_dot(int32_t n, const float *a, const float *b)
{
    enum { MOST = 64 / STATEGATE_LANES };
    const int32_t count = n < 128 ? 16 : 64, vectors = count / STATEGATE_LANES;
    stategate_vector sums[MOST];
    STATEGATE_UNROLL for (int32_t v = 0; v < vectors; ++v) {
        sums[v] = (stategate_vector){0};
    }
    const int32_t whole = n - n % count;
    for (int32_t i = 0; i < whole; i += count) {
        STATEGATE_UNROLL for (int32_t v = 0; v < vectors; ++v) {
            const int32_t at = i + v * STATEGATE_LANES;
            sums[v] += *(const stategate_vector *)(a + at) * *(const stategate_vector *)(b + at);
        }
    }
    float lanes[64];
    STATEGATE_UNROLL for (int32_t v = 0; v < vectors; ++v) {
        *(stategate_vector *)(lanes + v * STATEGATE_LANES) = sums[v];
    }
    for (int32_t lane = 0; lane < n - whole; ++lane) {
        lanes[lane] += a[whole + lane] * b[whole + lane];
    }
    for (int32_t half = count / 2; half > 8; half /= 2) {
        for (int32_t lane = 0; lane < half; ++lane) {
            lanes[lane] += lanes[lane + half];
        }
    }
    return stategate_sum_of_lanes(lanes);
}

/* One step of an LSTM from the sums of its gates, input, output, forget, cell (ONNX's order). */
STATEGATE_INLINE void stategate_lstm(int32_t units, const float *sums, float *c, float *h)
{
    for (int32_t j = 0; j < units; ++j) {
        const float in = stategate_sigmoidf(sums[j]), out = stategate_sigmoidf(sums[units + j]);
        const float keep = stategate_sigmoidf(sums[2 * units + j]);
        const float cell = keep * c[j] + in * stategate_tanhf(sums[3 * units + j]);
        c[j] = cell;
        h[j] = out * stategate_tanhf(cell);
    }
}

/* One step of a plain recurrent unit. */
STATEGATE_INLINE void stategate_rnn(int32_t units, const float *sums, float *h)
{
    for (int32_t j = 0; j < units; ++j) {
        h[j] = stategate_tanhf(sums[j]);
    }
}

/* One step of a GRU from the sums of its update and reset gates and those of its new content. */
STATEGATE_INLINE void stategate_gru(
    int32_t units, const float *sums, const float *fresh, float *h)
{
    for (int32_t j = 0; j < units; ++j) {
        const float keep = stategate_sigmoidf(sums[j]), content = stategate_tanhf(fresh[j]);
        h[j] = (1.0f - keep) * content + keep * h[j];
    }
}

STATEGATE_INLINE void stategate_gru_reset(
    int32_t units, const float *sums, const float *h, float *reset)
{
    for (int32_t j = 0; j < units; ++j) {
        reset[j] = stategate_sigmoidf(sums[units + j]) * h[j];
    }
}

/* The same where the product with h is reset, and not h. */
STATEGATE_INLINE void stategate_gru_late(
    int32_t units, const float *sums, const float *given, const float *fresh, float *h)
{
    for (int32_t j = 0; j < units; ++j) {
        const float keep = stategate_sigmoidf(sums[j]), reset = stategate_sigmoidf(sums[units + j]);
        const float content = stategate_tanhf(given[j] + reset * fresh[j]);
        h[j] = (1.0f - keep) * content + keep * h[j];
    }
}

#endif
