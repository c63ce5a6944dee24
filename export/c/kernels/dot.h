#ifdef STATEGATE_PORTABLE
/* The sum of 16 lanes, or 64: halves are added until one is left. */
STATEGATE_INLINE float stategate_halved(int32_t count, float *lanes)
{
    for (int32_t half = count / 2; half > 0; half /= 2) {
        for (int32_t lane = 0; lane < half; ++lane) {
            lanes[lane] += lanes[lane + half];
        }
    }
    return lanes[0];
}

STATEGATE_INLINE float stategate_sum_of_lanes(const float *lanes)
{
    float sums[16];
    (void)memcpy(sums, lanes, sizeof sums);
    return stategate_halved(16, sums);
}

/* The sum of a[i] b[i] in 16 lanes, lane i modulo 16, or in 64 where there are many. */
STATEGATE_INLINE float stategate_dot(int32_t n, const float *a, const float *b)
{
    float lanes[64] = {0};
    int32_t count = 64;
    if (n < 128) {
        count = 16;
    }
    for (int32_t i = 0; i < n; ++i) {
        lanes[i % count] += a[i] * b[i];
    }
    return stategate_halved(count, lanes);
}

/* out[j] = the same of a + j step and b + j stride. */
STATEGATE_INLINE void stategate_dots(
    int32_t m, int32_t n, const float *a, int32_t step, const float *b, int32_t stride, float *out)
{
    for (int32_t j = 0; j < m; ++j) {
        out[j] = stategate_dot(n, a + j * step, b + j * stride);
    }
}
#else
/* The sum of 16 lanes: halves are added until one is left. */
STATEGATE_INLINE float stategate_sum_of_lanes(const float *lanes)
{
    const stategate_four *four = (const stategate_four *)lanes;
    const stategate_four sum = (four[0] + four[2]) + (four[1] + four[3]);
    return (sum[0] + sum[2]) + (sum[1] + sum[3]);
}

/* The sums of a[i] b[i] in 16 lanes, lane i modulo 16, or in 64 where there are many; halves are added
 * until four are left. */
STATEGATE_INLINE stategate_four stategate_dot_in_four(int32_t n, const float *a, const float *b)
{
    union {
        stategate_vector wide[64 / STATEGATE_LANES];
        stategate_four four[16];
    } sums;
    const int32_t count = n < 128 ? 16 : 64, vectors = count / STATEGATE_LANES;
    STATEGATE_UNROLL for (int32_t v = 0; v < vectors; ++v) {
        sums.wide[v] = (stategate_vector){0};
    }
    const int32_t whole = n - n % count;
    for (int32_t i = 0; i < whole; i += count) {
        STATEGATE_UNROLL for (int32_t v = 0; v < vectors; ++v) {
            const int32_t at = i + v * STATEGATE_LANES;
            sums.wide[v] +=
                *(const stategate_vector *)(a + at) * *(const stategate_vector *)(b + at);
        }
    }
    const int32_t fours = (n - whole) / 4;
    STATEGATE_UNROLL for (int32_t v = 0; v < fours; ++v) {
        const int32_t at = whole + v * 4;
        sums.four[v] += *(const stategate_four *)(a + at) * *(const stategate_four *)(b + at);
    }
    STATEGATE_UNROLL for (int32_t lane = 0; lane < n % 4; ++lane) {
        sums.four[fours][lane] += a[n - n % 4 + lane] * b[n - n % 4 + lane];
    }
    if (count == 64) {
        STATEGATE_UNROLL for (int32_t v = 0; v < 8; ++v) {
            sums.four[v] += sums.four[v + 8];
        }
        STATEGATE_UNROLL for (int32_t v = 0; v < 4; ++v) {
            sums.four[v] += sums.four[v + 4];
        }
    }
    return (sums.four[0] + sums.four[2]) + (sums.four[1] + sums.four[3]);
}

STATEGATE_INLINE float stategate_dot(int32_t n, const float *a, const float *b)
{
    const stategate_four sum = stategate_dot_in_four(n, a, b);
    return (sum[0] + sum[2]) + (sum[1] + sum[3]);
}

/* out[j] = the same of a + j step and b + j stride, for four j at a time. */
STATEGATE_INLINE void stategate_dots(
    int32_t m, int32_t n, const float *a, int32_t step, const float *b, int32_t stride, float *out)
{
    for (int32_t j = 0; j + 4 <= m; j += 4) {
        stategate_four sums[4];
        STATEGATE_UNROLL for (int32_t i = 0; i < 4; ++i) {
            sums[i] = stategate_dot_in_four(n, a + (j + i) * step, b + (j + i) * stride);
        }
        const stategate_four left = STATEGATE_SHUFFLE(sums[0], sums[1], 0, 4, 1, 5) +
            STATEGATE_SHUFFLE(sums[0], sums[1], 2, 6, 3, 7);
        const stategate_four right = STATEGATE_SHUFFLE(sums[2], sums[3], 0, 4, 1, 5) +
            STATEGATE_SHUFFLE(sums[2], sums[3], 2, 6, 3, 7);
        *(stategate_four *)(out + j) = STATEGATE_SHUFFLE(left, right, 0, 1, 4, 5) +
            STATEGATE_SHUFFLE(left, right, 2, 3, 6, 7);
    }
    STATEGATE_UNROLL for (int32_t j = m - m % 4; j < m; ++j) {
        out[j] = stategate_dot(n, a + j * step, b + j * stride);
    }
}
#endif

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
