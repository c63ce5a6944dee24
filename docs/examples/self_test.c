/* A bundle's C tests itself, on the machine and with the compiler that will run it.
 *
 *   cc -std=gnu11 -O3 -ffp-contract=off -fwrapv -fno-trapping-math -fno-math-errno \
 *      -I BUNDLE/native -Wa,-I,BUNDLE/native docs/examples/self_test.c BUNDLE/native/[a-z]*.c -lm -o self_test
 *   ./self_test < inputs.bin
 *
 * Inputs are the golden episode's, as for digest.c. It steps them, then again without the right to
 * write, puts faults into inputs and memory, saves, restores, and makes every mistake that the header
 * names. A line says what went wrong; the last one counts the checks, and it ends with 1 where one failed.
 */
#include <float.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "stategate.h"
#include "stategate_chain.h"
#include "stategate_model.h"

#define MODEL stategate_this_model

static stategate_session session, spare;
static stategate_inputs in, zeros;
static stategate_outputs out;
static unsigned char saved[STATEGATE_SAVED_BYTES], altered[STATEGATE_SAVED_BYTES];
static long checks, failures;

static void check(bool good, const char *what)
{
    checks += 1;
    if (!good) {
        failures += 1;
        (void)printf("wrong: %s\n", what);
    }
}

static bool never(void *user)
{
    (void)user;
    return false;
}

static bool adds_up(void)
{
    const stategate_counters *c = &session.counters;
    return c->steps == c->writes + c->quiet_steps + c->suppressed_writes;
}

static uint32_t sum_of(const unsigned char *data, size_t bytes)
{
    uint32_t crc = 0xFFFFFFFFu;
    for (size_t i = 0; i < bytes; ++i) {
        crc ^= data[i];
        for (int bit = 0; bit < 8; ++bit) {
            crc = (crc >> 1) ^ (0xEDB88320u & (0u - (crc & 1u)));
        }
    }
    return ~crc;
}

/* What a session says to the save with some bytes replaced, and a checksum that is right again. */
static stategate_result with_bytes(size_t at, const void *bytes, size_t count)
{
    (void)memcpy(altered, saved, sizeof saved);
    (void)memcpy(altered + at, bytes, count);
    const uint32_t sum = sum_of(altered, sizeof altered - 4u);
    (void)memcpy(altered + sizeof altered - 4u, &sum, sizeof sum);
    return stategate_load(&session, altered, sizeof altered);
}

static void mistakes(void)
{
    const void *odd = (const char *)&spare + 1;
    stategate_session *none = NULL, *crooked = (stategate_session *)(uintptr_t)odd;
    (void)memset(&spare, 0, sizeof spare);
    check(stategate_init(none) == STATEGATE_NO_POINTER, "init of NULL");
    check(stategate_init(crooked) == STATEGATE_UNALIGNED, "init of an odd address");
    check(stategate_init_as(&spare, STATEGATE_LAYOUT + 1u) == STATEGATE_OTHER_MODEL, "init as another");
    check(stategate_step(none, &in, &out) == STATEGATE_NO_POINTER, "step of NULL");
    check(stategate_step(&spare, &in, &out) == STATEGATE_NOT_READY, "step before init");
    check(stategate_reset(&spare) == STATEGATE_NOT_READY, "reset before init");
    check(stategate_save(&spare, saved, sizeof saved) == 0u, "save before init");
    check(stategate_load(&spare, saved, sizeof saved) == STATEGATE_NOT_READY, "load before init");
    check(stategate_chain(&spare, 7u) == 7u, "chain before init");
    check(stategate_step(&session, NULL, &out) == STATEGATE_NO_POINTER, "step without inputs");
    check(stategate_step(&session, &in, NULL) == STATEGATE_NO_POINTER, "step without outputs");
    check(stategate_step(&session, (const stategate_inputs *)odd, &out) == STATEGATE_UNALIGNED,
        "step of inputs at an odd address");
    check(stategate_save(&session, NULL, sizeof saved) == 0u, "save to NULL");
    check(stategate_save(&session, saved, sizeof saved - 1u) == 0u, "save into too little");
    check(stategate_load(&session, NULL, sizeof saved) == STATEGATE_NO_POINTER, "load of NULL");
    check(stategate_state_bytes() == STATEGATE_STATE_BYTES, "bytes of the states");
    check(strcmp(stategate_tag(), STATEGATE_TAG) == 0, "the tag");
    check(stategate_finite("\x7F", 1u, STATEGATE_OTHER), "integers are finite");
}

/* A NaN in each input: nothing is done or counted. */
static void bad_inputs(void)
{
    for (uint32_t i = 0; i < MODEL.n_inputs; ++i) {
        const stategate_tensor *input = &MODEL.inputs[i];
        if (input->type == STATEGATE_FLOAT32 || input->type == STATEGATE_FLOAT64) {
            const stategate_counters before = session.counters;
            const uint64_t chain = stategate_chain(&session, 1u);
            in = zeros;
            (void)memset((char *)&in + input->offset, 0xFF, input->bytes);
            check(stategate_step(&session, &in, &out) == STATEGATE_BAD_INPUT, "a step of NaN");
            check(memcmp(&before, &session.counters, sizeof before) == 0, "NaN was counted");
            check(chain == stategate_chain(&session, 1u), "NaN changed the memory");
        }
    }
    in = zeros;
}

/* What is no answer is counted as a fault, and writes nothing. */
static void after_fault(stategate_result result, const stategate_counters *before)
{
    check(result >= 0 || result == STATEGATE_FAULT || result == STATEGATE_BAD_OUTPUT, "a fault");
    check(result >= 0 || session.counters.faults == before->faults + 1u, "a fault was not counted");
    check(result > 0 || session.counters.writes == before->writes, "a fault wrote");
}

/* NaN in each state, then numbers so large that sums of them are none. */
static void faults(void)
{
    for (uint32_t i = 0; i < MODEL.n_states; ++i) {
        const stategate_tensor *state = &MODEL.states[i];
        if (state->type == STATEGATE_FLOAT32) {
            for (int large = 0; large < 3; ++large) {
                (void)stategate_reset(&session);
                char *at = (char *)&session.bank[(session.parity >> state->group) & 1u] + state->offset;
                (void)memset(at, 0xFF, state->bytes);
                for (size_t j = 0; large > 0 && j < state->bytes / sizeof(float); ++j) {
                    const float value = large == 1 || j % 2u == 0u ? 3e38f : -3e38f;
                    (void)memcpy(at + j * sizeof value, &value, sizeof value);
                }
                const stategate_counters before = session.counters;
                after_fault(stategate_step(&session, &in, &out), &before);
            }
        }
    }
    (void)stategate_reset(&session);
    check(adds_up(), "counters after faults");
}

static void saves(void)
{
    const size_t counters = sizeof STATEGATE_TAG, states = counters + sizeof(stategate_counters);
    const uint64_t chain = stategate_chain(&session, 1u);
    const stategate_counters before = session.counters;
    check(stategate_save(&session, saved, sizeof saved) == sizeof saved, "save");
    (void)stategate_step(&session, &in, &out);
    (void)stategate_reset(&session);
    check(stategate_load(&session, saved, sizeof saved) == STATEGATE_OK, "load");
    check(memcmp(&before, &session.counters, sizeof before) == 0, "counters of a load");
#ifndef STATEGATE_RESET_ON_RESTORE
    check(chain == stategate_chain(&session, 1u), "memory of a load");
#endif
    check(stategate_load(&session, saved, 3u) == STATEGATE_DAMAGED, "load of three bytes");
    check(stategate_load(&session, saved, sizeof saved - 1u) == STATEGATE_DAMAGED, "load cut short");
    for (size_t at = 0; at < sizeof saved; at += 1u + at / 64u) {
        (void)memcpy(altered, saved, sizeof saved);
        altered[at] ^= 1u;
        const stategate_result result = stategate_load(&session, altered, sizeof altered);
        check(result == (at < counters ? STATEGATE_OTHER_MODEL : STATEGATE_DAMAGED), "a changed byte");
    }
    for (uint32_t i = 0; i < MODEL.n_states; ++i) {
        const stategate_tensor *state = &MODEL.states[i];
        size_t at = states;
        for (uint32_t j = 0; j < i; ++j) {
            at += MODEL.states[j].bytes;
        }
        if (state->type != STATEGATE_OTHER) {
            static const unsigned char ones[8] = {255, 255, 255, 255, 255, 255, 255, 255};
            const size_t count = state->bytes < 8u ? state->bytes : 8u;
            check(with_bytes(at, ones, count) == STATEGATE_IMPOSSIBLE, "load of a state of NaN");
        }
    }
    /* Counters that no session can have, one clause after the other. */
    stategate_counters c[8];
    for (size_t i = 0; i < 8u; ++i) {
        (void)memset(&c[i], 0, sizeof c[i]);
        c[i].steps = 10u;
        c[i].quiet_steps = 10u;
    }
    c[0].writes = 11u;
    c[1].quiet_steps = 11u;
    c[2].quiet_steps = 9u;
    c[3].appends = 1u;
    c[4].faults = 1u;
    c[5].ungated_writes = 11u;
    c[6].openings[0] = UINT64_MAX;
    for (size_t i = 0; i < (STATEGATE_GATES > 0u ? 7u : 6u); ++i) {
        check(with_bytes(counters, &c[i], sizeof c[i]) == STATEGATE_IMPOSSIBLE, "impossible counters");
    }
    c[7].quiet_steps = 9u;
    c[7].writes = 1u;
    c[7].openings[0] = STATEGATE_GATES > 0u ? 1u : 0u;
    check(with_bytes(counters, &c[7], sizeof c[7]) == STATEGATE_OK, "possible counters");
    check(stategate_load(&session, saved, sizeof saved) == STATEGATE_OK, "load again");
}

#if STATEGATE_ROWS > 0
static unsigned char kept[STATEGATE_KEPT_BYTES];

static void rewinds(void)
{
    check(stategate_rewind(&session, 1u) == STATEGATE_NOT_KEPT, "rewind of what is not kept");
    check(stategate_keep_steps(&spare, kept, sizeof kept) == STATEGATE_NOT_READY, "keep before init");
    check(stategate_rewind(&spare, 1u) == STATEGATE_NOT_READY, "rewind before init");
    check(stategate_keep_steps(&session, kept, 1u) == STATEGATE_NOT_KEPT, "keep in one byte");
    check(stategate_keep_steps(&session, kept, sizeof kept) == STATEGATE_OK, "keep");
    (void)stategate_reset(&session);
    for (uint32_t step = 0; step < 2u * STATEGATE_ROWS + 1u; ++step) {
        const uint64_t chain = stategate_chain(&session, 1u);
        const uint32_t held = session.kept_steps;
        (void)stategate_step(&session, &in, &out);
        if (session.kept_steps > held) { /* it was no fold */
            check(stategate_rewind(&session, 1u) == STATEGATE_OK, "rewind");
            check(chain == stategate_chain(&session, 1u), "memory after rewinding");
            (void)stategate_step(&session, &in, &out);
        }
        check(stategate_rewind(&session, 0u) == STATEGATE_NOT_KEPT, "rewind of no step");
        check(stategate_rewind(&session, STATEGATE_ROWS + 1u) == STATEGATE_NOT_KEPT, "rewind too far");
    }
    check(stategate_keep_steps(&session, NULL, 0u) == STATEGATE_OK, "keep nothing");
}
#endif

int main(void)
{
    uint64_t chain = 0u;
    check(stategate_init(&session) == STATEGATE_OK, "init");
    mistakes();
    (void)stategate_init(&spare);
    spare.may_write = never;
    while (fread(&in, sizeof in, 1, stdin) == 1u) {
        const stategate_result result = stategate_step(&session, &in, &out);
        check(result >= 0, "a golden step was refused");
        chain = stategate_chain(&session, chain);
        check(adds_up(), "counters");
        const stategate_result held = stategate_step(&spare, &in, &out);
        check(held == STATEGATE_QUIET || held == STATEGATE_HELD, "a write that may not be");
        check(spare.counters.writes == 0u, "a write that was forbidden");
    }
    check(session.counters.steps > 0u, "no inputs");
    const stategate_inputs last = in;
    saves();
    bad_inputs();
    in = last;
    faults();
    in = last;
#if STATEGATE_ROWS > 0
    (void)memset(&spare, 0, sizeof spare);
    rewinds();
#endif
    (void)printf("chain %08lx%08lx\n", (unsigned long)(chain >> 32), (unsigned long)(chain & 0xFFFFFFFFu));
    (void)printf("%ld checks, %ld wrong\n", checks, failures);
    return failures == 0 ? 0 : 1;
}
