/* out[n] = init[n] + x[0] w[0][n] + x[1] w[1][n] + ... + y[0] w[n_x][n] + ..., for some vectors of
 * columns of a tile. */
STATEGATE_INLINE void stategate_add_rows(
    int32_t vectors, int32_t tile, const float *w, int32_t rows, const float *x,
    stategate_vector *sums)
{
    for (int32_t k = 0; k < rows; ++k) {
        const float factor = x[k];
        STATEGATE_UNROLL for (int32_t v = 0; v < vectors; ++v) {
            const float *at = w + k * tile + v * STATEGATE_LANES;
            sums[v] += *(const stategate_vector *)at * factor;
        }
    }
}

STATEGATE_INLINE void stategate_columns(
    int32_t vectors, int32_t tile, const float *w, int32_t n_x, const float *x, int32_t n_y,
    const float *y, const float *init, float *out)
{
    stategate_vector sums[STATEGATE_MOST_VECTORS];
    STATEGATE_UNROLL for (int32_t v = 0; v < vectors; ++v) {
        sums[v] = *(const stategate_vector *)(init + v * STATEGATE_LANES);
    }
    stategate_add_rows(vectors, tile, w, n_x, x, sums);
    if (n_y > 0) {
        stategate_add_rows(vectors, tile, w + n_x * tile, n_y, y, sums);
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
#if STATEGATE_LANES > 1 /* else a pass is no wider than the 16 that columns are a multiple of */
    if (whole < tile) {
        const int32_t rest = (tile - whole) / STATEGATE_LANES;
        stategate_columns(rest, tile, w + whole, n_x, x, n_y, y, init + whole, out + whole);
    }
#endif
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

#ifdef STATEGATE_TWINS
static void plain_product(
    int32_t columns, const float (*w)[STATEGATE_TWINS], int32_t n_x, const float *x, int32_t n_y,
    const float *y, const float *init, float *out)
{
    for (int32_t n = 0; n < columns; ++n) {
        out[n] = init[n];
        for (int32_t k = 0; k < n_x + n_y; ++k) {
            out[n] += w[k][n] * (k < n_x ? x[k] : y[k - n_x]);
        }
    }
}
#endif
