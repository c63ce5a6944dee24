/* The product of a row with at most 16 columns, in a row of 16: row k goes to sum k modulo 4, because
 * one sum for each would wait for itself; the four meet in pairs. */
STATEGATE_INLINE void stategate_narrow_product(
    const float *w, int32_t rows, const float *x, const float *init, float *out)
{
    enum { MOST = STATEGATE_SUMS / 4, ALL = 16 / STATEGATE_LANES, PASS = MOST < ALL ? MOST : ALL };
    const int32_t whole = rows - rows % 4;
    for (int32_t n = 0; n < 16; n += PASS * STATEGATE_LANES) {
        stategate_vector sums[4][PASS];
        STATEGATE_UNROLL for (int32_t v = 0; v < PASS; ++v) {
            sums[0][v] = *(const stategate_vector *)(init + n + v * STATEGATE_LANES);
            sums[1][v] = sums[2][v] = sums[3][v] = (stategate_vector){0};
        }
        for (int32_t k = 0; k < whole; k += 4) {
            STATEGATE_UNROLL for (int32_t chain = 0; chain < 4; ++chain) {
                STATEGATE_UNROLL for (int32_t v = 0; v < PASS; ++v) {
                    const float *at = w + (k + chain) * 16 + n + v * STATEGATE_LANES;
                    sums[chain][v] += *(const stategate_vector *)at * x[k + chain];
                }
            }
        }
        STATEGATE_UNROLL for (int32_t chain = 0; chain < rows - whole; ++chain) {
            STATEGATE_UNROLL for (int32_t v = 0; v < PASS; ++v) {
                const float *at = w + (whole + chain) * 16 + n + v * STATEGATE_LANES;
                sums[chain][v] += *(const stategate_vector *)at * x[whole + chain];
            }
        }
        STATEGATE_UNROLL for (int32_t v = 0; v < PASS; ++v) {
            *(stategate_vector *)(out + n + v * STATEGATE_LANES) =
                (sums[0][v] + sums[1][v]) + (sums[2][v] + sums[3][v]);
        }
    }
}

#ifdef STATEGATE_TWINS
static void plain_narrow_product(
    const float (*w)[STATEGATE_TWINS], int32_t rows, const float *x, const float *init, float *out)
{
    for (int32_t n = 0; n < 16; ++n) {
        float sums[4] = {init[n], 0.0f, 0.0f, 0.0f};
        for (int32_t k = 0; k < rows; ++k) {
            sums[k % 4] += w[k][n] * x[k];
        }
        out[n] = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    }
}
#endif
