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

#ifdef STATEGATE_TWINS
static void plain_mix(
    int32_t columns, int32_t rows, const float *a, int32_t step, const float *b, int32_t stride,
    float *out)
{
    for (int32_t n = 0; n < columns; ++n) {
        out[n] = 0.0f;
        for (int32_t k = 0; k < rows; ++k) {
            out[n] += b[k * stride + n] * a[k * step];
        }
    }
}
#endif
