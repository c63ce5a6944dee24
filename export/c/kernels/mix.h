/* out[i][j] = a[i][0] b[0][j] + a[i][1] b[1][j] + ..., of rows that a step has computed. From one number
 * of a to the next it is a step, and a stride from row to row of all three. */
STATEGATE_INLINE void stategate_mix(
    int32_t m, int32_t columns, int32_t rows, const float *a, int32_t step, int32_t next,
    const float *b, int32_t stride, float *out)
{
    int32_t most = STATEGATE_VECTORS;
    if (m == 1) {
        most = STATEGATE_SUMS;
    }
    const int32_t pass = most * STATEGATE_LANES, whole = columns - columns % pass;
    const int32_t wide = columns - columns % STATEGATE_LANES;
    for (int32_t n = 0; n < whole; n += pass) {
        stategate_blocks(m, most, stride, b + n, 1, 0, rows, step, a, next, NULL, out + n, columns);
    }
    if (whole < wide) {
        stategate_blocks(m, (wide - whole) / STATEGATE_LANES, stride, b + whole, 1, 0, rows, step, a,
            next, NULL, out + whole, columns);
    }
#if STATEGATE_LANES > 1
    const int32_t fours = columns - columns % 4;
    for (int32_t i = 0; wide < columns && i < m; ++i) {
        stategate_four sums[STATEGATE_LANES / 4];
        STATEGATE_UNROLL for (int32_t v = 0; v < (fours - wide) / 4; ++v) {
            sums[v] = (stategate_four){0};
        }
        for (int32_t k = 0; k < rows; ++k) {
            STATEGATE_UNROLL for (int32_t v = 0; v < (fours - wide) / 4; ++v) {
                const float *at = b + k * stride + wide + v * 4;
                sums[v] += *(const stategate_four *)at * a[i * next + k * step];
            }
        }
        STATEGATE_UNROLL for (int32_t v = 0; v < (fours - wide) / 4; ++v) {
            *(stategate_four *)(out + i * columns + wide + v * 4) = sums[v];
        }
        for (int32_t n = fours; n < columns; ++n) {
            float sum = 0.0f;
            for (int32_t k = 0; k < rows; ++k) {
                sum += b[k * stride + n] * a[i * next + k * step];
            }
            out[i * columns + n] = sum;
        }
    }
#endif
}

#ifdef STATEGATE_TWINS
static void plain_mix(
    int32_t m, int32_t columns, int32_t rows, const float *a, int32_t step, int32_t next,
    const float *b, int32_t stride, float *out)
{
    for (int32_t i = 0; i < m; ++i) {
        for (int32_t n = 0; n < columns; ++n) {
            float sum = 0.0f;
            for (int32_t k = 0; k < rows; ++k) {
                sum += b[k * stride + n] * a[i * next + k * step];
            }
            out[i * columns + n] = sum;
        }
    }
}
#endif
