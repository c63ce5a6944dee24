/* Steps a bundle over inputs of stdin, and shows an emulator where its steps begin and end.
 *
 * stdout has a line a counted step: its result, and the deepest byte of stack that it wrote. The
 * last line has the bytes of a session, inputs and outputs. stderr has a line a call of `mark`: the
 * instructions so far. An emulator's plugin prints them; with TRAP, a trap after each instruction
 * counts them, for x86-64 that no emulator knows.
 */
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "stategate.h"

#define APART __attribute__((noinline, noclone))
#ifndef EACH
#define EACH 5 /* steps of a kind that are counted */
#endif
#define PAINTED (256 * 1024)
#define PAINT 0xA5

void mark(void);

#ifdef TRAP
#include <signal.h>
#include <ucontext.h>

static uint64_t instructions, last;
static bool counting;

/* At the same place again is an instruction that repeats itself: one, as QEMU counts. */
static void trapped(int signal, siginfo_t *info, void *context)
{
    (void)signal, (void)info;
    ucontext_t *at = context;
    const uint64_t place = (uint64_t)at->uc_mcontext.gregs[REG_RIP];
    instructions += place != last;
    last = place;
}

static void set_up(void)
{
    static char stack[1 << 16];
    const stack_t apart = {.ss_sp = stack, .ss_size = sizeof stack};
    const struct sigaction action = {.sa_sigaction = trapped, .sa_flags = SA_SIGINFO | SA_ONSTACK};
    if (sigaltstack(&apart, NULL) != 0 || sigaction(SIGTRAP, &action, NULL) != 0) {
        exit(2);
    }
}

APART void mark(void)
{
    if (counting) {
        __asm__ volatile("pushfq\nandq $~0x100, (%%rsp)\npopfq" ::: "memory", "cc");
    }
    fprintf(stderr, "%llu\n", (unsigned long long)instructions);
    counting = !counting;
    if (counting) {
        __asm__ volatile("pushfq\norq $0x100, (%%rsp)\npopfq" ::: "memory", "cc");
    }
}
#else
static void set_up(void)
{
}

APART void mark(void)
{
    __asm__ volatile("");
}
#endif

static stategate_session session, trial;
static stategate_inputs in;
static stategate_outputs out;
static uintptr_t bottom, top;

static APART void paint(void)
{
    volatile unsigned char area[PAINTED];
    bottom = (uintptr_t)area;
    for (size_t i = 0; i < sizeof area; ++i) {
        area[i] = PAINT;
    }
}

static APART stategate_result step(stategate_session *s)
{
    top = (uintptr_t)__builtin_frame_address(0);
    return stategate_step(s, &in, &out);
}

static APART size_t stack_used(void)
{
    const volatile unsigned char *at = (const volatile unsigned char *)bottom;
    while ((uintptr_t)at < top && *at == PAINT) {
        ++at;
    }
    return top - (uintptr_t)at;
}

int main(void)
{
    /* What a step leaves out to align its arrays must not depend on the environment above. */
    volatile unsigned char *pad = __builtin_alloca((uintptr_t)__builtin_frame_address(0) % 64 + 16);
    unsigned counted[3] = {0};
    pad[0] = 0;
    set_up();
    if (stategate_init(&session) != STATEGATE_OK) {
        return 1;
    }
    while (fread(&in, sizeof in, 1, stdin) == 1) {
        trial = session;
        paint();
        const stategate_result result = step(&trial);
        const size_t stack = stack_used();
        if (result < 0) {
            fprintf(stderr, "a step was refused: %d\n", (int)result);
            return 1;
        }
        if (counted[result]++ >= EACH) {
            (void)step(&session);
            continue;
        }
        mark();
        (void)step(&session);
        mark();
        printf("%d %lu\n", (int)result, (unsigned long)stack);
    }
    printf("%lu\n", (unsigned long)(sizeof session + sizeof in + sizeof out));
    return 0;
}
