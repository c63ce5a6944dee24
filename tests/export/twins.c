/* Each kernel of stategate_kernels.h beside a plain loop that says what it computes: the same bits. */
#include <stdio.h>

#include "stategate_kernels.h"

enum { MOST = 320, ROWS = 150 };
static uint32_t seed = 1;
static uint64_t digest = 1469598103934665603ull; /* FNV-1a */
static int different;
static float tiled[MOST * ROWS] STATEGATE_CACHE_LINE, plain[ROWS][MOST], x[ROWS], y[ROWS];
static float init[MOST], scales[MOST], out[MOST], wanted[MOST];
static int8_t integers[MOST * ROWS] STATEGATE_CACHE_LINE, whole[ROWS][MOST];

static float drawn(void)
{
    seed = seed * 1664525u + 1013904223u;
    return (float)((int32_t)(seed >> 8) - 8388608) / 8388608.0f;
}

static void compare(const char *name, int columns)
{
    for (int n = 0; n < columns; ++n) {
        digest = (digest ^ stategate_bits(out[n])) * 1099511628211ull;
        if (stategate_bits(out[n]) != stategate_bits(wanted[n])) {
            printf("%s, %d columns: %a instead of %a in column %d\n", name, columns, (double)out[n],
                (double)wanted[n], n);
            different = 1;
            return;
        }
    }
}

static void fill(int columns, int rows)
{
    for (int n = 0; n < columns; ++n) {
        init[n] = drawn(), scales[n] = drawn();
        const int first = n - n % STATEGATE_TILE;
        const int tile = columns - first < STATEGATE_TILE ? columns - first : STATEGATE_TILE;
        for (int k = 0; k < rows; ++k) {
            const int at = first * rows + k * tile + n - first;
            plain[k][n] = tiled[at] = drawn();
            whole[k][n] = integers[at] = (int8_t)(drawn() * 127.0f);
        }
    }
    for (int k = 0; k < rows; ++k) {
        x[k] = drawn(), y[k] = drawn();
    }
}

static float dot(int n)
{
    const int count = n < 128 ? 16 : 64;
    float lanes[64] = {0};
    for (int i = 0; i < n; ++i) {
        lanes[i % count] += x[i] * y[i];
    }
    for (int half = count / 2; half > 0; half /= 2) {
        for (int lane = 0; lane < half; ++lane) {
            lanes[lane] += lanes[lane + half];
        }
    }
    return lanes[0];
}

#define CHECK(columns, rows)                                                                \
    do {                                                                                    \
        fill(columns, rows);                                                                \
        const int n_x = (rows) / 2 + 1, n_y = (rows)-n_x;                                   \
        stategate_product(columns, tiled, n_x, x, n_y, y, init, out);                       \
        for (int n = 0; n < (columns); ++n) {                                               \
            wanted[n] = init[n];                                                            \
            for (int k = 0; k < (rows); ++k) {                                              \
                wanted[n] += plain[k][n] * (k < n_x ? x[k] : y[k - n_x]);                   \
            }                                                                               \
        }                                                                                   \
        compare("product", columns);                                                        \
        stategate_integer_product(columns, integers, rows, x, scales, init, out);           \
        for (int n = 0; n < (columns); ++n) {                                               \
            float sum = 0.0f;                                                               \
            for (int k = 0; k < (rows); ++k) {                                              \
                sum += (float)whole[k][n] * x[k];                                           \
            }                                                                               \
            wanted[n] = init[n] + sum * scales[n];                                          \
        }                                                                                   \
        compare("integer product", columns);                                                \
        stategate_mix((columns)-3, rows, x, 1, &plain[0][0], MOST, out);                    \
        for (int n = 0; n < (columns)-3; ++n) {                                             \
            wanted[n] = 0.0f;                                                               \
            for (int k = 0; k < (rows); ++k) {                                              \
                wanted[n] += plain[k][n] * x[k];                                            \
            }                                                                               \
        }                                                                                   \
        compare("mix", (columns)-3);                                                        \
        out[0] = stategate_dot(rows, x, y), wanted[0] = dot(rows);                          \
        compare("dot", 1);                                                                  \
    } while (0)

#define NARROW(rows)                                                                        \
    do {                                                                                    \
        fill(16, rows);                                                                     \
        stategate_narrow_product(tiled, rows, x, init, out);                                \
        for (int n = 0; n < 16; ++n) {                                                      \
            float sums[4] = {init[n], 0.0f, 0.0f, 0.0f};                                    \
            for (int k = 0; k < (rows); ++k) {                                              \
                sums[k % 4] += plain[k][n] * x[k];                                          \
            }                                                                               \
            wanted[n] = (sums[0] + sums[1]) + (sums[2] + sums[3]);                          \
        }                                                                                   \
        compare("narrow product", 16);                                                      \
    } while (0)

int main(void)
{
    CHECK(16, 1);
    CHECK(48, 7);
    CHECK(112, 64);
    CHECK(128, 33);
    CHECK(144, 150);
    CHECK(320, 96);
    NARROW(1);
    NARROW(3);
    NARROW(64);
    NARROW(149);
    /* Functions of one number have no second form here: their bits go into the digest. */
    for (int i = 0; i < 20000; ++i) {
        const float size = drawn() * 30.0f;
        out[0] = stategate_expf(size), out[1] = stategate_tanhf(size), out[2] = stategate_logf(size);
        out[3] = stategate_sigmoidf(size), out[4] = stategate_softplusf(size);
        out[5] = stategate_erff(size), out[6] = stategate_sinf(size * 1e4f);
        out[7] = stategate_cosf(size), out[8] = stategate_powf(fabsf(size), drawn());
        for (int n = 0; n < 9; ++n) { /* NaN has many forms */
            out[n] = out[n] == out[n] ? out[n] : 0.0f;
            wanted[n] = out[n];
        }
        compare("function", 9);
    }
    printf("%016llx\n", (unsigned long long)digest);
    return different;
}
