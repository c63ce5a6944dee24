/* Numbers of one vector, vectors whose sums are under way at the same time for one row, and for several
 * rows, which share what they read. */
#if defined(STATEGATE_PORTABLE)
#define STATEGATE_LANES 1
#elif defined(__AVX512F__)
#define STATEGATE_LANES 16
#elif defined(__AVX__)
#define STATEGATE_LANES 8
#elif defined(__SSE2__) || defined(__ARM_NEON) || defined(__ALTIVEC__)
#define STATEGATE_LANES 4
#else
#define STATEGATE_LANES 1 /* compilers keep vectors of nobody's instructions in memory */
#endif
#if defined(__aarch64__) && defined(__ARM_NEON)
#define STATEGATE_SUMS 16
#else
#define STATEGATE_SUMS 8
#endif
#if defined(__AVX512F__) || defined(__aarch64__)
#define STATEGATE_BLOCK 16
#else
#define STATEGATE_BLOCK 8
#endif
#define STATEGATE_TILE 128
#define STATEGATE_MOST_VECTORS (STATEGATE_TILE / STATEGATE_LANES)

#if defined(STATEGATE_PORTABLE)
#define STATEGATE_UNROLL
#elif defined(__clang__)
#define STATEGATE_UNROLL _Pragma("clang loop unroll(full)")
#else
#define STATEGATE_UNROLL _Pragma("GCC unroll 32")
#endif

#if STATEGATE_LANES == 1
typedef float stategate_vector;
#else
typedef float stategate_vector
    __attribute__((vector_size(4 * STATEGATE_LANES), may_alias, aligned(4)));
#endif
#ifndef STATEGATE_PORTABLE
/* What every CPU has, for what is shorter. */
typedef float stategate_four __attribute__((vector_size(16), may_alias, aligned(4)));
typedef int32_t stategate_places __attribute__((vector_size(16)));
#if defined(__clang__)
#define STATEGATE_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define STATEGATE_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (stategate_places){__VA_ARGS__})
#endif
#endif
