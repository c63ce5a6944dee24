/* A bundle's C tests itself, on the machine and with the compiler that will run it.
 *
 *   cc -std=gnu11 -O2 -ffp-contract=off -fwrapv -DSTATEGATE_SELF_TEST -Inative -Wa,-Inative native/[a-z]*.c -lm
 *   ./a.out < golden.bin
 *
 * `stategate certify` writes golden.bin: the golden episode's digest, the states it starts from if it has
 * any, and its inputs. They are stepped, then again without the right to write; faults are put into inputs,
 * states and what is computed; memory is saved and restored; and every mistake is made that the header
 * names. A line says what went wrong; the last one counts the checks. It ends with 1 where one failed.
 * Where golden.bin asks to show each step, nothing but the episode is run, and stdout has the numbers of
 * each: its result (int32), the chain (uint64), outputs. Without -DSTATEGATE_SELF_TEST this file is empty. */
#include "stategate.h"

#ifdef STATEGATE_SELF_TEST
#include <float.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "stategate_chain.h"
#include "stategate_math.h"
#include "stategate_model.h"

#define MODEL stategate_this_model

static stategate_session session, spare;
static stategate_inputs in, zeros;
static stategate_outputs out;
static unsigned char saved[STATEGATE_SAVED_BYTES], altered[STATEGATE_SAVED_BYTES];
static long checks, failures;

int stategate_check_kernels(void);
int stategate_compute_with_faults(void *const *in, void *const *out);

/* What is put into a step: a value into every gate, and no number into one result. */
static struct {
    bool gates, result, first_alone;
    float gate;
    uint32_t place; /* among outputs, then states */
} put;

int stategate_compute_with_faults(void *const *in, void *const *out)
{
    const int result = stategate_compute(in, out);
    for (uint32_t i = 0; put.gates && i < MODEL.n_states; ++i) { /* a gate that is forced computed none */
        (void)memset(out[MODEL.n_outputs + i], 0, MODEL.states[i].next_bytes);
    }
    for (uint32_t i = 0; put.gates && i < MODEL.n_gates; ++i) {
        const stategate_gate *gate = &MODEL.gates[i];
        for (uint32_t j = 0; j < MODEL.n_outputs; ++j) {
            float *value = out[j];
            for (size_t k = 0; MODEL.outputs[j].offset == gate->offset && k < gate->elements; ++k) {
                value[k] = k == 0u || !put.first_alone ? put.gate : -FLT_MAX;
            }
        }
    }
    if (put.result) {
        const bool is_state = put.place >= MODEL.n_outputs;
        const stategate_tensor *tensor
            = is_state ? &MODEL.states[put.place - MODEL.n_outputs] : &MODEL.outputs[put.place];
        (void)memset(out[put.place], 0xFF, is_state ? tensor->next_bytes : tensor->bytes);
    }
    return result;
}

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

static bool always(void *user)
{
    (void)user;
    return true;
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

/* What a step answers and counts where `put` says what is computed. */
static void step_with_faults(bool has_fault)
{
    const stategate_counters before = session.counters;
    const stategate_result result = stategate_step(&session, &in, &out);
    const stategate_counters *c = &session.counters;
    check(c->steps == before.steps + 1u && adds_up(), "a step was not counted");
    check((result == STATEGATE_FAULT || result == STATEGATE_BAD_OUTPUT) == has_fault, "a fault");
    check(c->faults == before.faults + (has_fault ? 1u : 0u), "a fault was not counted");
    check((c->writes == before.writes + 1u) == (result == STATEGATE_WROTE), "a write was not counted");
}

/* Faults of all that a step computes, gates open or closed, with a hook that says yes, no, or is none. */
static void faults(void)
{
    bool (*const hooks[])(void *) = {NULL, always, never};
    for (size_t hook = 0; hook < 3u; ++hook) {
        for (int gate = 0; gate < 4; ++gate) {
            const float values[] = {-FLT_MAX, FLT_MAX, FLT_MAX, NAN};
            session.may_write = hooks[hook];
            put.gates = true;
            put.gate = values[gate];
            put.first_alone = gate == 2;
            step_with_faults(gate == 3 && MODEL.n_gates > 0u);
            for (uint32_t i = 0; gate < 2 && i < MODEL.n_outputs + MODEL.n_states; ++i) {
                const bool is_state = i >= MODEL.n_outputs;
                const stategate_tensor *one
                    = is_state ? &MODEL.states[i - MODEL.n_outputs] : &MODEL.outputs[i];
                /* A state behind a gate that stays closed has no next value. */
                const bool is_read = !is_state || one->group == MODEL.n_gates || (gate == 1 && hook < 2u);
                put.result = true;
                put.place = i;
                step_with_faults(is_read && one->type != STATEGATE_OTHER);
                put.result = false;
            }
            (void)stategate_reset(&session);
        }
    }
    put.gates = false;
    session.may_write = NULL;
}

/* Numbers so large that sums of them are none, and none at all, in the memory itself. */
static void spoilt_memory(void)
{
    for (uint32_t i = 0; i < MODEL.n_states; ++i) {
        const stategate_tensor *state = &MODEL.states[i];
        for (int large = 0; state->type == STATEGATE_FLOAT32 && large < 3; ++large) {
            (void)stategate_reset(&session);
            char *at = (char *)&session.bank[(session.parity >> state->group) & 1u] + state->offset;
            (void)memset(at, 0xFF, state->bytes);
            for (size_t j = 0; large > 0 && j < state->bytes / sizeof(float); ++j) {
                const float value = large == 1 || j % 2u == 0u ? 3e38f : -3e38f;
                (void)memcpy(at + j * sizeof value, &value, sizeof value);
            }
            (void)stategate_step(&session, &in, &out);
            check(adds_up(), "counters after a spoilt memory");
        }
    }
    (void)stategate_reset(&session);
}

static uint32_t seed = 1u;

static float drawn(void)
{
    seed = seed * 1664525u + 1013904223u;
    return (float)(seed >> 8) / 8388608.0f - 1.0f;
}

static void draw(void *to, size_t bytes, float size)
{
    for (size_t i = 0; i < bytes / sizeof size; ++i) {
        const float value = size * drawn();
        (void)memcpy((char *)to + i * sizeof value, &value, sizeof value);
    }
}

/* Any floats in inputs and memory, from tiny to huge: each step is answered, or is a fault. */
static void any_numbers(void)
{
    for (uint32_t step = 0; step < 120u; ++step) {
        const float size = powf(10.0f, (float)(step % 40u) - 20.0f);
        for (uint32_t i = 0; i < MODEL.n_inputs; ++i) {
            if (MODEL.inputs[i].type == STATEGATE_FLOAT32) {
                draw((char *)&in + MODEL.inputs[i].offset, MODEL.inputs[i].bytes, size);
            }
        }
        for (uint32_t i = 0; step >= 40u && i < MODEL.n_states; ++i) {
            const stategate_tensor *state = &MODEL.states[i];
            if (state->type == STATEGATE_FLOAT32) {
                char *at = (char *)&session.bank[(session.parity >> state->group) & 1u] + state->offset;
                draw(at, state->bytes, step < 80u ? size : 0.0f);
            }
        }
        const stategate_counters before = session.counters;
        const stategate_result result = stategate_step(&session, &in, &out);
        check(adds_up() && session.counters.steps == before.steps + 1u, "a step of any numbers");
        check((result < 0) == (session.counters.faults > before.faults), "a fault of any numbers");
    }
    (void)stategate_reset(&session);
}

static bool near(float found, double right)
{
    return fabs((double)found - right) <= 2e-6 * (fabs(right) > 1.0 ? fabs(right) : 1.0);
}

/* Functions of generated code, beside those of the C library and at their ends. */
static void functions(void)
{
    static unsigned char bytes[2600];
    const float small = 1e-35f;
    const double smaller = 1e-300;
    float f[2] = {small, 1.0f}, threshold = 0.5f;
    double d[2] = {smaller, 1.0};
    uint16_t half[2] = {0x3C00u, 0x7C00u};
    uint8_t truth[2] = {1u, 2u};
    stategate_flush(f, sizeof f, STATEGATE_FLOAT32);
    stategate_flush(d, sizeof d, STATEGATE_FLOAT64);
    stategate_flush(truth, sizeof truth, STATEGATE_OTHER);
    check(f[0] == 0.0f && f[1] == 1.0f && d[0] == 0.0 && d[1] == 1.0, "what is small becomes zero");
    check(stategate_is_open(f, 2u, &threshold) && !stategate_is_open(f, 1u, &threshold), "a gate");
    f[0] = INFINITY;
    d[0] = NAN;
    check(stategate_finite(&f[1], 4u, STATEGATE_FLOAT32) && !stategate_finite(f, 8u, STATEGATE_FLOAT32), "float");
    check(stategate_finite(&d[1], 8u, STATEGATE_FLOAT64) && !stategate_finite(d, 16u, STATEGATE_FLOAT64), "double");
    check(stategate_finite(half, 2u, STATEGATE_FLOAT16) && !stategate_finite(half, 4u, STATEGATE_FLOAT16), "half");
    check(stategate_finite(truth, 1u, STATEGATE_BOOL) && !stategate_finite(truth, 2u, STATEGATE_BOOL), "truth");
    check(stategate_finite("\x7F", 1u, STATEGATE_OTHER), "integers are finite");
    check(stategate_chained(3u, bytes, 0u) == 3u, "a chain of no bytes");
    for (size_t i = 0; i < sizeof bytes; i += 1u + i / 64u) {
        bytes[i] = 1u;
        check(stategate_chained(3u, bytes, sizeof bytes) != stategate_chained(3u, bytes, i), "a chain");
        bytes[i] = 0u;
    }
    for (int i = -1000; i <= 1000; i += 3) {
        const float x = (float)i / 10.0f, tiny = x * 1e-40f;
        const double exact = (double)x, power = exp(exact);
        check(fabsf(x) > 87.3f || fabs((double)stategate_expf(x) / power - 1.0) < 1e-6, "exp");
        check(near(stategate_tanhf(x), tanh(exact)) && near(stategate_erff(x), erf(exact)), "tanh, erf");
        check(near(stategate_sigmoidf(x), 1.0 / (1.0 + exp(-exact))), "sigmoid");
        check(near(stategate_softplusf(x), exact > 30.0 ? exact : log1p(power)), "softplus");
        check(near(stategate_sinf(x), sin(exact)) && near(stategate_cosf(x), cos(exact)), "sin, cos");
        check(x <= 0.0f || near(stategate_logf(x), log(exact)), "log");
        check(x <= 0.0f || near(stategate_log1pf(x), log1p(exact)), "log1p");
        check(tiny <= 0.0f || near(stategate_logf(tiny), log((double)tiny)), "log of subnormal numbers");
        check(x < 0.0f || fabs((double)stategate_powf(x, 2.5f) - pow(exact, 2.5)) <= 1e-6 * pow(exact, 2.5), "pow");
        check(near(stategate_powf(x, 2.0f) / (x * x > 0.0f ? x * x : 1.0f), x * x > 0.0f ? 1.0 : 0.0), "square");
    }
    check(isinf(stategate_logf(0.0f)) && isnan(stategate_logf(-1.0f)) && isnan(stategate_logf(NAN)), "log at its ends");
    check(isinf(stategate_log1pf(INFINITY)) && isnan(stategate_log1pf(NAN)) && stategate_log1pf(1e-30f) > 0.0f, "log1p at its ends");
    check(isinf(stategate_expf(100.0f)) && stategate_expf(-100.0f) <= 0.0f && isnan(stategate_expf(NAN)), "exp at its ends");
    check(stategate_logistic(-100.0f) > 1e37f && near(stategate_logistic(100.0f), 1.0), "logistic at its ends");
    check(isnan(stategate_erff(NAN)) && isnan(stategate_tanhf(NAN)) && isnan(stategate_sigmoidf(NAN)), "NaN stays");
    check(near(stategate_powf(-2.0f, 3.0f), -8.0) && isnan(stategate_powf(-2.0f, 0.5f)) && isinf(stategate_powf(2.0f, 500.0f)), "pow of signs");
    check(near(stategate_powf(5.0f, 0.0f), 1.0) && near(stategate_powf(1.0f, NAN), 1.0), "pow that is one");
    check(stategate_powf(2.0f, -500.0f) <= 0.0f && isnan(stategate_powf(NAN, 2.0f)) && isnan(stategate_powf(2.0f, NAN)) && stategate_powf(0.0f, 2.0f) <= 0.0f, "pow at its ends");
    check(stategate_int32(1e10) == INT32_MIN && stategate_int32(-1e10) == INT32_MIN && stategate_int32(-7.5) == -7, "int32");
    check(stategate_int64(1e30) == INT64_MIN && stategate_int64(-1e30) == INT64_MIN && stategate_int64(7.5) == 7, "int64");
    check(near(stategate_within(3.0f, 0.0f, 1.0f), 1.0) && near(stategate_within(NAN, 0.5f, 1.0f), 0.5) && near(stategate_within(0.7f, 0.5f, 1.0f), 0.7), "within");
    check(near(stategate_between(3.0f, 0.0f, 1.0f), 1.0) && near(stategate_between(0.2f, 0.5f, 1.0f), 0.5) && isnan(stategate_between(NAN, 0.0f, 1.0f)), "between");
    check(stategate_chosen(true, 1.0f, 2.0f) < stategate_chosen(false, 1.0f, 2.0f), "chosen");
    check(near(stategate_larger(1.0f, 2.0f), 2.0) && near(stategate_larger(2.0f, 1.0f), 2.0) && isnan(stategate_larger(NAN, 1.0f)) && isnan(stategate_larger(1.0f, NAN)), "larger");
    check(near(stategate_smaller(1.0f, 2.0f), 1.0) && near(stategate_smaller(2.0f, 1.0f), 1.0) && isnan(stategate_smaller(NAN, 1.0f)) && isnan(stategate_smaller(1.0f, NAN)), "smaller");
#if STATEGATE_MAY_FAIL > 0
    check(stategate_place(-1, 3) == 2 && stategate_place(2, 3) == 2 && stategate_outside == 0u, "a place");
    check(stategate_place(3, 3) == 0 && stategate_outside == 1u && stategate_place(-4, 3) == 0, "no place");
    check(stategate_quotient(7, -2) == -3 && stategate_quotient(7, 0) == 0 && stategate_quotient(INT64_MIN, -1) == INT64_MIN, "quotient");
    check(stategate_rest(-7, 2, false) == 1 && stategate_rest(-7, 2, true) == -1 && stategate_rest(6, 2, false) == 0, "rest");
    check(stategate_rest(7, 2, false) == 1 && stategate_rest(7, 0, false) == 0 && stategate_rest(7, -1, false) == 0, "rest of nothing");
#endif
    check(stategate_check_kernels() == 0, "a kernel parts from its plain loop");
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
    for (size_t i = 0; i < (MODEL.n_gates > 0u ? 7u : 6u); ++i) {
        check(with_bytes(counters, &c[i], sizeof c[i]) == STATEGATE_IMPOSSIBLE, "impossible counters");
    }
    c[7].quiet_steps = 9u;
    c[7].writes = 1u;
#if STATEGATE_GATES > 0
    c[7].openings[0] = 1u;
#endif
    check(with_bytes(counters, &c[7], sizeof c[7]) == STATEGATE_OK, "possible counters");
#if STATEGATE_ROWS > 0
    size_t cursor = states;
    for (const stategate_tensor *state = MODEL.states; state != MODEL.cursor; ++state) {
        cursor += state->bytes;
    }
    const int32_t rows[2] = {INT32_MAX, -1};
    check(with_bytes(cursor, &rows[0], 4u) == STATEGATE_IMPOSSIBLE, "more rows than a ring holds");
    check(with_bytes(cursor, &rows[1], 4u) == STATEGATE_IMPOSSIBLE, "rows below zero");
#endif
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

/* What golden.bin begins with, and how a step's inputs follow: one after the other, without gaps. */
typedef struct {
    uint64_t digest, state_bytes, shows_steps;
} episode_head;

static bool read_inputs(void)
{
    bool good = MODEL.n_inputs > 0u;
    for (uint32_t i = 0; i < MODEL.n_inputs; ++i) {
        const stategate_tensor *input = &MODEL.inputs[i];
        good = good && fread((char *)&in + input->offset, input->bytes, 1, stdin) == 1u;
    }
    return good;
}

static void show(stategate_result result, uint64_t chain)
{
    const int32_t number = (int32_t)result;
    (void)fwrite(&number, sizeof number, 1, stdout);
    (void)fwrite(&chain, sizeof chain, 1, stdout);
    for (uint32_t i = 0; i < MODEL.n_outputs; ++i) {
        (void)fwrite((const char *)&out + MODEL.outputs[i].offset, MODEL.outputs[i].bytes, 1, stdout);
    }
}

/* The chain of hashes after a step: outputs, gates among them, and states. */
static uint64_t after_step(uint64_t chain)
{
    for (uint32_t i = 0; i < MODEL.n_outputs; ++i) {
        chain = stategate_chained(chain, (const char *)&out + MODEL.outputs[i].offset, MODEL.outputs[i].bytes);
    }
    (void)stategate_chain(&session, 0u); /* zeros behind the rows that rings hold */
    for (uint32_t i = 0; i < MODEL.n_states; ++i) {
        const stategate_tensor *state = &MODEL.states[i];
        const void *bank = &session.bank[(session.parity >> state->group) & 1u];
        chain = stategate_chained(chain, (const char *)bank + state->offset, state->bytes);
    }
    return chain;
}

int main(void)
{
    uint64_t chain = 0u;
    episode_head head = {0u, 0u, 0u};
    check(fread(&head, sizeof head, 1, stdin) == 1u, "no golden.bin on stdin");
    check(stategate_init(&session) == STATEGATE_OK, "init");
    for (uint32_t i = 0; head.state_bytes > 0u && i < MODEL.n_states; ++i) {
        const stategate_tensor *state = &MODEL.states[i];
        check(fread((char *)&session.bank[0] + state->offset, state->bytes, 1, stdin) == 1u, "no states");
    }
    (void)stategate_init(&spare);
    spare.may_write = never;
    while (read_inputs()) {
        const stategate_result result = stategate_step(&session, &in, &out);
        check(result >= 0, "a golden step was refused");
        chain = after_step(chain);
        check(adds_up(), "counters");
        if (head.shows_steps != 0u) {
            show(result, chain);
            continue;
        }
        const stategate_result held = stategate_step(&spare, &in, &out);
        check(held == STATEGATE_QUIET || held == STATEGATE_HELD, "a write that may not be");
        check(spare.counters.writes == 0u, "a write that was forbidden");
    }
    if (head.shows_steps != 0u) {
        return failures == 0 ? 0 : 1;
    }
    check(session.counters.steps > 0u, "no inputs");
    check(head.digest == 0u || head.digest == chain, "the digest is not the promised one");
    const stategate_inputs last = in;
    mistakes();
    saves();
    bad_inputs();
    in = last;
    faults();
    spoilt_memory();
    any_numbers();
    in = last;
#if STATEGATE_ROWS > 0
    (void)memset(&spare, 0, sizeof spare);
    rewinds();
#endif
    functions();
    (void)printf("chain %08lx%08lx\n", (unsigned long)(chain >> 32), (unsigned long)(chain & 0xFFFFFFFFu));
    (void)printf("%ld checks, %ld wrong\n", checks, failures);
    return failures == 0 ? 0 : 1;
}
#endif
