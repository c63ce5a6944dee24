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

#ifdef STATEGATE_TWINS
static float plain_dot(int32_t n, const float *a, const float *b)
{
    const int32_t count = n < 128 ? 16 : 64;
    float lanes[64] = {0};
    for (int32_t i = 0; i < n; ++i) {
        lanes[i % count] += a[i] * b[i];
    }
    for (int32_t half = count / 2; half > 0; half /= 2) {
        for (int32_t lane = 0; lane < half; ++lane) {
            lanes[lane] += lanes[lane + half];
        }
    }
    return lanes[0];
}
#endif
