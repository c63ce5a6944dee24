/* Counts what a process asks malloc for; loaded before the process with LD_PRELOAD.

   dlsym itself may allocate before the real functions are known: those few bytes come from a
   static buffer, which free and realloc must then recognise. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

static atomic_llong calls, bytes;
static _Alignas(16) char early[16384];
static atomic_size_t early_used;

static void *(*real_malloc)(size_t);
static void *(*real_calloc)(size_t, size_t);
static void *(*real_realloc)(void *, size_t);
static void *(*real_memalign)(size_t, size_t);
static void (*real_free)(void *);
static _Thread_local int looking;

static void look_up(void) {
    looking = 1;
    real_calloc = (void *(*)(size_t, size_t))dlsym(RTLD_NEXT, "calloc");
    real_realloc = (void *(*)(void *, size_t))dlsym(RTLD_NEXT, "realloc");
    real_memalign = (void *(*)(size_t, size_t))dlsym(RTLD_NEXT, "memalign");
    real_free = (void (*)(void *))dlsym(RTLD_NEXT, "free");
    real_malloc = (void *(*)(size_t))dlsym(RTLD_NEXT, "malloc");
    looking = 0;
}

static int is_early(const void *p) {
    return (uintptr_t)p >= (uintptr_t)early && (uintptr_t)p < (uintptr_t)early + sizeof early;
}

static void *from_early(size_t n) {
    size_t at = atomic_fetch_add(&early_used, (n + 15) & ~(size_t)15);
    return at + n <= sizeof early ? early + at : NULL;
}

static void count(size_t n) {
    atomic_fetch_add_explicit(&calls, 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&bytes, (long long)n, memory_order_relaxed);
}

void *malloc(size_t n) {
    if (!real_malloc) {
        if (looking) return from_early(n);
        look_up();
    }
    count(n);
    return real_malloc(n);
}

void *calloc(size_t n, size_t size) {
    if (!real_calloc) {
        if (looking) return from_early(n * size);
        look_up();
    }
    count(n * size);
    return real_calloc(n, size);
}

void *realloc(void *p, size_t n) {
    if (!real_realloc) look_up();
    count(n);
    if (!is_early(p)) return real_realloc(p, n);
    void *q = real_malloc(n);
    size_t rest = (size_t)(early + sizeof early - (char *)p);
    if (q) memcpy(q, p, n < rest ? n : rest);
    return q;
}

void free(void *p) {
    if (is_early(p)) return;
    if (!real_free) look_up();
    real_free(p);
}

void *memalign(size_t alignment, size_t n) {
    if (!real_memalign) look_up();
    count(n);
    return real_memalign(alignment, n);
}

void *aligned_alloc(size_t alignment, size_t n) { return memalign(alignment, n); }

int posix_memalign(void **out, size_t alignment, size_t n) {
    void *p = memalign(alignment, n);
    if (!p) return ENOMEM;
    *out = p;
    return 0;
}

void stategate_malloc_counts(int64_t out[2]) {
    out[0] = atomic_load(&calls);
    out[1] = atomic_load(&bytes);
}
