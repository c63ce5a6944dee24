/* Products of several rows with a matrix in tiles: weights that are read once serve some rows. A row is
 * walked as a convolution walks a picture: lines of it lie apart, and of each some taps are taken. */

#define STATEGATE_MOST_ROWS 8                 /* at most, at the same time */
#define STATEGATE_VECTORS (STATEGATE_BLOCK / 4) /* of columns beside four rows */

/* Sums of m rows and some vectors of columns, from zero on where init is NULL. */
STATEGATE_INLINE void stategate_block(
    int32_t m, int32_t vectors, int32_t tile, const float *w, int32_t lines, int32_t line,
    int32_t taps, int32_t dilation, const float *x, int32_t step, const float *init, float *out,
    int32_t stride)
{
    stategate_vector sums[STATEGATE_MOST_ROWS][STATEGATE_SUMS];
    STATEGATE_UNROLL for (int32_t row = 0; row < m; ++row) {
        STATEGATE_UNROLL for (int32_t v = 0; v < vectors; ++v) {
            sums[row][v] = (stategate_vector){0};
            if (init != NULL) {
                sums[row][v] = *(const stategate_vector *)(init + v * STATEGATE_LANES);
            }
        }
    }
    for (int32_t l = 0; l < lines; ++l) {
        for (int32_t t = 0; t < taps; ++t) {
            const float *at = x + l * line + t * dilation, *from = w + (l * taps + t) * tile;
            stategate_vector weights[STATEGATE_SUMS];
            STATEGATE_UNROLL for (int32_t v = 0; v < vectors; ++v) {
                weights[v] = *(const stategate_vector *)(from + v * STATEGATE_LANES);
            }
            STATEGATE_UNROLL for (int32_t row = 0; row < m; ++row) {
                STATEGATE_UNROLL for (int32_t v = 0; v < vectors; ++v) {
                    sums[row][v] += weights[v] * at[row * step];
                }
            }
        }
    }
    STATEGATE_UNROLL for (int32_t row = 0; row < m; ++row) {
        STATEGATE_UNROLL for (int32_t v = 0; v < vectors; ++v) {
            *(stategate_vector *)(out + row * stride + v * STATEGATE_LANES) = sums[row][v];
        }
    }
}

/* All rows for some vectors of columns. */
STATEGATE_INLINE void stategate_blocks(
    int32_t m, int32_t vectors, int32_t tile, const float *w, int32_t lines, int32_t line,
    int32_t taps, int32_t dilation, const float *x, int32_t step, const float *init, float *out,
    int32_t stride)
{
    int32_t block = STATEGATE_MOST_ROWS;
    if (STATEGATE_BLOCK / vectors < STATEGATE_MOST_ROWS) {
        block = 4;
    }
    const int32_t whole = m - m % block;
    for (int32_t row = 0; row < whole; row += block) {
        stategate_block(block, vectors, tile, w, lines, line, taps, dilation, x + row * step, step,
            init, out + row * stride, stride);
    }
    if (whole < m) {
        stategate_block(m - whole, vectors, tile, w, lines, line, taps, dilation, x + whole * step,
            step, init, out + whole * stride, stride);
    }
}

STATEGATE_INLINE void stategate_tile_of_rows(
    int32_t m, int32_t tile, const float *w, int32_t lines, int32_t line, int32_t taps,
    int32_t dilation, const float *x, int32_t step, const float *init, float *out, int32_t stride)
{
    const int32_t pass = STATEGATE_VECTORS * STATEGATE_LANES, whole = tile - tile % pass;
    for (int32_t n = 0; n < whole; n += pass) {
        stategate_blocks(m, STATEGATE_VECTORS, tile, w + n, lines, line, taps, dilation, x, step,
            init + n, out + n, stride);
    }
#if STATEGATE_LANES > 1
    if (whole < tile) {
        stategate_blocks(m, (tile - whole) / STATEGATE_LANES, tile, w + whole, lines, line, taps,
            dilation, x, step, init + whole, out + whole, stride);
    }
#endif
}

/* out[row][n] = init[n] + the sum over lines l and taps t, k = l taps + t, of
 * w[k][n] x[row step + l line + t dilation]; columns are a multiple of 16. */
STATEGATE_INLINE void stategate_rows(
    int32_t m, int32_t columns, const float *w, int32_t lines, int32_t line, int32_t taps,
    int32_t dilation, const float *x, int32_t step, const float *init, float *out)
{
    const int32_t whole = columns - columns % STATEGATE_TILE;
    for (int32_t n = 0; n < whole; n += STATEGATE_TILE) {
        stategate_tile_of_rows(m, STATEGATE_TILE, w + n * lines * taps, lines, line, taps,
            dilation, x, step, init + n, out + n, columns);
    }
    if (whole < columns) {
        stategate_tile_of_rows(m, columns - whole, w + whole * lines * taps, lines, line, taps,
            dilation, x, step, init + whole, out + whole, columns);
    }
}

#ifdef STATEGATE_TWINS
static void plain_rows(
    int32_t m, int32_t columns, const float (*w)[STATEGATE_TWINS], int32_t lines, int32_t line,
    int32_t taps, int32_t dilation, const float *x, int32_t step, const float *init, float *out)
{
    for (int32_t row = 0; row < m; ++row) {
        for (int32_t n = 0; n < columns; ++n) {
            float sum = init[n];
            for (int32_t k = 0; k < lines * taps; ++k) {
                sum += w[k][n] * x[row * step + k / taps * line + k % taps * dilation];
            }
            out[row * columns + n] = sum;
        }
    }
}
#endif
