/* Steps of a compiled step in a loop of C, so that no interpreter is in the figure. */
#define _POSIX_C_SOURCE 199309L
#include <time.h>

typedef int (*compute)(void *const *in, void *const *out);

/* Nanoseconds of one step, over `steps` of them that take turns between two sets of tensors. */
__attribute__((visibility("default"))) double nanoseconds(
    compute step, void *const *const *in, void *const *const *out, int steps)
{
    struct timespec start, end;
    clock_gettime(CLOCK_MONOTONIC, &start);
    for (int i = 0; i < steps; ++i) {
        step(in[i & 1], out[i & 1]);
    }
    clock_gettime(CLOCK_MONOTONIC, &end);
    return ((double)(end.tv_sec - start.tv_sec) * 1e9 + (double)(end.tv_nsec - start.tv_nsec))
        / steps;
}
