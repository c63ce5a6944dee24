/* Steps a bundle over inputs of stdin where the kernel permits nothing but read, write and exit, and
 * counts calls of an allocator. stdout says how many steps, and how many calls there were. */
#define _GNU_SOURCE
#include <linux/seccomp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "stategate.h"

static stategate_session session;
static stategate_outputs out;
static unsigned char saved[STATEGATE_SAVED_BYTES];
static unsigned long calls;

void *__real_malloc(size_t bytes);
void *__real_calloc(size_t count, size_t bytes);
void *__real_realloc(void *old, size_t bytes);
void *__wrap_malloc(size_t bytes) { calls += 1; return __real_malloc(bytes); }
void *__wrap_calloc(size_t count, size_t bytes) { calls += 1; return __real_calloc(count, bytes); }
void *__wrap_realloc(void *old, size_t bytes) { calls += 1; return __real_realloc(old, bytes); }

int main(void)
{
    static char text[64];
    size_t room = 1 << 20, used = 0, got;
    stategate_inputs *inputs = aligned_alloc(64, room);
    while ((got = fread((char *)inputs + used, 1, room - used, stdin)) > 0) {
        used += got;
    }
    const size_t steps = used / sizeof *inputs;
    stategate_init(&session);
    if (steps == 0 || prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT) != 0) {
        return 2;
    }
    const unsigned long before = calls;
    for (size_t step = 0; step < steps; ++step) {
        if (stategate_step(&session, &inputs[step], &out) < 0) {
            syscall(SYS_exit, 3);
        }
        if (stategate_save(&session, saved, sizeof saved) != sizeof saved) {
            syscall(SYS_exit, 4);
        }
    }
    if (stategate_load(&session, saved, sizeof saved) < 0 || stategate_reset(&session) < 0) {
        syscall(SYS_exit, 4);
    }
    const unsigned long during = calls - before;
    const int length = snprintf(text, sizeof text, "%zu steps, %lu calls\n", steps, during);
    syscall(SYS_write, 1, text, (size_t)length);
    syscall(SYS_exit, 0);
}
