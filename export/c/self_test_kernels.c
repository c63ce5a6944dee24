/* Each kernel beside its plain loop, which says what it computes: the same bits. A part of the
 * self-test; it is no code of a session. */
#include "stategate_math.h"

#ifdef STATEGATE_SELF_TEST
#include <stdio.h>

#define STATEGATE_TWINS MOST /* columns of their matrices, in a row */
enum { MOST = 320, ROWS = 150 };
#include "stategate_kernels.h"

/* TWINS */

static uint32_t seed = 1;
static uint64_t digest = 1469598103934665603ull; /* FNV-1a */
static int different;
static float tiled[MOST * ROWS] STATEGATE_CACHE_LINE, plain[ROWS][MOST], x[ROWS], y[ROWS];
static float init[MOST], scales[MOST], out[MOST * 15], wanted[MOST * 15], lines[4 * ROWS];
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
    for (int k = 0; k < 4 * ROWS; ++k) {
        lines[k] = drawn();
    }
}

STATEGATE_INLINE void mix(int m, int columns, int rows)
{
    stategate_mix(m, columns, rows, lines, 1, ROWS / 2, &plain[0][0], MOST, out);
    plain_mix(m, columns, rows, lines, 1, ROWS / 2, &plain[0][0], MOST, wanted);
    compare("mix", m * columns);
}

STATEGATE_INLINE void check(int columns, int rows)
{
    fill(columns, rows);
    const int n_x = rows / 2 + 1, n_y = rows - n_x;
    stategate_product(columns, tiled, n_x, x, n_y, y, init, out);
    plain_product(columns, plain, n_x, x, n_y, y, init, wanted);
    compare("product", columns);
    for (int n = 0; n < columns; ++n) {
        const int first = n - n % STATEGATE_GATE_TILE, left = columns - first;
        const int tile = left < STATEGATE_GATE_TILE ? left : STATEGATE_GATE_TILE;
        for (int k = 0; k < rows; ++k) {
            tiled[first * rows + k * tile + n - first] = plain[k][n];
        }
    }
    for (int backward = 0; backward < 2; ++backward) {
        stategate_gates(columns, tiled, n_x, x, n_y, y, init, out, backward != 0);
        compare("gates", columns);
    }
    stategate_integer_product(columns, integers, rows, x, scales, init, out);
    plain_integer_product(columns, whole, rows, x, scales, init, wanted);
    compare("integer product", columns);
    mix(1, columns, rows);
    mix(1, columns - 3, rows);
    mix(5, columns - 3, rows);
    stategate_dots(7, rows, lines, 1, y, 0, out);
    for (int j = 0; j < 7; ++j) {
        wanted[j] = plain_dot(rows, lines + j, y);
    }
    compare("dots", 7);
}

/* A sum of int8 weights that no float holds, though it does when each is scaled first. */
STATEGATE_INLINE void overflow(int columns, int rows)
{
    fill(columns, rows);
    for (int k = 0; k < rows; ++k) {
        x[k] = 1e37f;
    }
    for (int n = 0; n < columns; ++n) {
        float sum = 0.0f;
        scales[n] = 1e-5f;
        for (int k = 0; k < rows; ++k) {
            whole[k][n] = 100;
            sum += x[k] * (100.0f * scales[n]);
        }
        wanted[n] = init[n] + sum;
    }
    (void)memset(integers, 100, sizeof integers);
    stategate_integer_product(columns, integers, rows, x, scales, init, out);
    compare("integer product that is scaled first", columns);
}

STATEGATE_INLINE void narrow(int rows)
{
    fill(16, rows);
    stategate_narrow_product(tiled, rows, x, init, out);
    plain_narrow_product(plain, rows, x, init, wanted);
    compare("narrow product", 16);
}

/* Several rows: of a matrix, and as a convolution walks a picture. */
STATEGATE_INLINE void rows(int m, int columns, int taps, int step)
{
    fill(columns, 3 * taps);
    stategate_rows(m, columns, tiled, 3, ROWS, taps, 2, lines, step, init, out);
    plain_rows(m, columns, plain, 3, ROWS, taps, 2, lines, step, init, wanted);
    compare("rows", m * columns);
}

int stategate_check_kernels(void);
int stategate_check_kernels(void)
{
    check(16, 1);
    check(48, 7);
    check(112, 64);
    check(128, 33);
    check(144, 150);
    check(320, 96);
    overflow(48, 30);
    rows(2, 16, 1, 7);
    rows(8, 128, 2, 1);
    rows(15, 48, 3, 1);
    rows(9, 112, 50, 2);
    rows(4, 320, 5, 3);
    narrow(1);
    narrow(3);
    narrow(64);
    narrow(149);
    /* Functions of one number have no second form here: their bits go into the digest. */
    for (int i = 0; i < 4000; ++i) {
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
    return different;
}

#ifdef STATEGATE_KERNELS_ALONE
int main(void)
{
    const int result = stategate_check_kernels();
    printf("%016llx\n", (unsigned long long)digest);
    return result;
}
#endif
#endif
