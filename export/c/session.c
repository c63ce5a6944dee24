/* A session in C: two banks, guards against NaN, counters, a budget hook, save and restore. */
#include "stategate.h"

#include <float.h>
#include <string.h>

#include "stategate_chain.h"
#include "stategate_model.h"

#define MODEL stategate_this_model

/* What no part of a model asks for is not compiled: the header says what there is. So tools see no code
 * that cannot run. The self-test steps by a function of its own, which puts faults into what is computed. */
#ifdef STATEGATE_SELF_TEST
int stategate_compute_with_faults(void *const *in, void *const *out);
#define COMPUTE stategate_compute_with_faults
#else
#define COMPUTE stategate_compute
#endif

static const char tag[] = STATEGATE_TAG;

static char *bank(stategate_session *s, const stategate_tensor *state, bool next)
{
    const bool live = (s->parity >> state->group) & 1u;
    return (char *)&s->bank[live != next] + state->offset;
}

static const char *live_bank(const stategate_session *s, const stategate_tensor *state)
{
    return (const char *)&s->bank[(s->parity >> state->group) & 1u] + state->offset;
}

const char *stategate_tag(void) { return tag; }

size_t stategate_state_bytes(void) { return STATEGATE_STATE_BYTES; }

/* Where an object may lie: behind one byte, it lies at its alignment. */
typedef struct { char before; stategate_session at; } placed_session;
typedef struct { char before; stategate_inputs at; } placed_inputs;
typedef struct { char before; stategate_outputs at; } placed_outputs;

/* Why a pointer cannot be used, or STATEGATE_OK. */
static stategate_result usable(const void *pointer, size_t alignment)
{
    if (pointer == NULL) {
        return STATEGATE_NO_POINTER;
    }
    return (uintptr_t)pointer % alignment != 0u ? STATEGATE_UNALIGNED : STATEGATE_OK;
}

/* The same of a session that is to be used. */
static stategate_result ready(const stategate_session *s)
{
    const stategate_result found = usable(s, offsetof(placed_session, at));
    return found == STATEGATE_OK && s->ready != STATEGATE_LAYOUT ? STATEGATE_NOT_READY : found;
}

stategate_result stategate_init_as(stategate_session *s, uint64_t layout)
{
    const stategate_result found = usable(s, offsetof(placed_session, at));
    if (found != STATEGATE_OK) {
        return found;
    }
    if (layout != STATEGATE_LAYOUT) {
        s->ready = 0u; /* and no more: its size may be another */
        return STATEGATE_OTHER_MODEL;
    }
    (void)memset(s, 0, sizeof *s);
    (void)memcpy(&s->constants, MODEL.constant_values, sizeof s->constants);
    s->ready = STATEGATE_LAYOUT;
    (void)stategate_reset(s);
    s->counters.resets = 0u;
    return STATEGATE_OK;
}

stategate_result stategate_reset(stategate_session *s)
{
    const stategate_result found = ready(s);
    if (found != STATEGATE_OK) {
        return found;
    }
    for (uint32_t i = 0; i < MODEL.n_states; ++i) {
        const stategate_tensor *state = &MODEL.states[i];
        (void)memset(bank(s, state, false), 0, state->bytes);
#if STATEGATE_INITIAL_STATES > 0
        if (state->initial != NULL) {
            (void)memcpy(bank(s, state, false), state->initial, state->bytes);
        }
#endif
    }
    s->kept_steps = 0u;
    s->counters.resets += 1u;
    return STATEGATE_OK;
}

#include "stategate_rings.h"

#if STATEGATE_GATES > 0
/* What each gate is compared with in this step; a write that may not be closes every gate. */
static void show_thresholds(stategate_session *s, bool allowed)
{
    for (uint32_t i = 0; i < MODEL.n_gates; ++i) {
        const stategate_gate *gate = &MODEL.gates[i];
#if STATEGATE_FIXED_GATES > 0
        if (gate->threshold_offset < 0) {
            continue;
        }
#endif
        const float shown = allowed ? gate->threshold : FLT_MAX;
        (void)memcpy((char *)&s->constants + gate->threshold_offset, &shown, sizeof shown);
    }
}
#endif

static int compute(stategate_session *s, const stategate_inputs *in, stategate_outputs *out)
{
    void *takes[STATEGATE_TAKES], *gives[STATEGATE_GIVES];
    uint32_t t = 0, g = 0;
    for (uint32_t i = 0; i < MODEL.n_inputs; ++i) {
        takes[t++] = (char *)(uintptr_t)in + MODEL.inputs[i].offset; /* only read */
    }
#if STATEGATE_CONSTANTS > 0
    for (uint32_t i = 0; i < MODEL.n_constants; ++i) {
        takes[t++] = (char *)&s->constants + MODEL.constants[i].offset;
    }
#endif
    for (uint32_t i = 0; i < MODEL.n_outputs; ++i) {
        gives[g++] = (char *)out + MODEL.outputs[i].offset;
    }
    for (uint32_t i = 0; i < MODEL.n_states; ++i) {
        takes[t++] = bank(s, &MODEL.states[i], false);
        gives[g++] = bank(s, &MODEL.states[i], true);
    }
    return COMPUTE(takes, gives);
}

/* Next states of some groups, a bit each, that hold NaN or infinity. */
static uint32_t bad_states(stategate_session *s, uint64_t groups)
{
    uint32_t bad = 0;
    for (uint32_t i = 0; i < MODEL.n_states; ++i) {
        const stategate_tensor *state = &MODEL.states[i];
        const size_t bytes = (size_t)((groups >> state->group) & 1u) * state->next_bytes;
        bad += stategate_finite(bank(s, state, true), bytes, state->type) ? 0u : 1u;
    }
    return bad;
}

/* Outputs that do, gates among them. */
static uint32_t bad_outputs(const stategate_outputs *out)
{
    uint32_t bad = 0;
    for (uint32_t i = 0; i < MODEL.n_outputs; ++i) {
        const stategate_tensor *output = &MODEL.outputs[i];
        bad += stategate_finite((const char *)out + output->offset, output->bytes, output->type) ? 0u : 1u;
    }
    return bad;
}

/* The outputs that the manifest declares safe, if it does, in place of what is no answer. */
static void answer_safely(stategate_outputs *out)
{
#if STATEGATE_SAFE_OUTPUTS > 0
    for (uint32_t i = 0; i < MODEL.n_outputs; ++i) {
        const stategate_tensor *output = &MODEL.outputs[i];
        if (output->initial != NULL) {
            (void)memcpy((char *)out + output->offset, output->initial, output->bytes);
        }
    }
#else
    (void)out;
#endif
}

stategate_result stategate_step(
    stategate_session *s, const stategate_inputs *in, stategate_outputs *out)
{
    stategate_result found = ready(s);
    found = found == STATEGATE_OK ? usable(in, offsetof(placed_inputs, at)) : found;
    found = found == STATEGATE_OK ? usable(out, offsetof(placed_outputs, at)) : found;
    if (found != STATEGATE_OK) {
        return found;
    }
    const bool allowed = s->may_write == NULL || s->may_write(s->user);
    uint64_t groups = UINT64_C(1) << MODEL.n_gates; /* states of which have a next value: ungated ones */
    uint32_t bad = 0;
#if STATEGATE_ROWS > 0
    uint32_t appends = 0;
#endif
#if STATEGATE_GATES > 0
    show_thresholds(s, allowed);
#endif
    if (compute(s, in, out) != 0) {
        return STATEGATE_BAD_INPUT;
    }
#if STATEGATE_GATES > 0
    uint64_t swaps = 0, open[STATEGATE_GATES];
    uint32_t wanted = 0;
    for (uint32_t i = 0; i < MODEL.n_gates; ++i) {
        const stategate_gate *gate = &MODEL.gates[i];
        const float *value = (const float *)(const void *)((const char *)out + gate->offset);
        bad += stategate_finite(value, gate->elements * sizeof *value, STATEGATE_FLOAT32) ? 0u : 1u;
        open[i] = 0;
        for (size_t j = 0; j < gate->elements; ++j) {
            open[i] += value[j] > gate->threshold ? 1u : 0u;
        }
        if (open[i] > 0u) {
            wanted += 1u;
            groups |= (allowed ? UINT64_C(1) : UINT64_C(0)) << i;
#if STATEGATE_ROWS > 0
            appends += gate->appends ? 1u : 0u;
            swaps |= (gate->appends ? UINT64_C(0) : UINT64_C(1)) << i;
#else
            swaps |= UINT64_C(1) << i;
#endif
        }
        open[i] = open[i] < gate->most ? open[i] : gate->most;
    }
#endif
    bad += bad_states(s, groups);
    const uint32_t unanswered = bad_outputs(out);
    s->counters.steps += 1u;
    if (bad > 0u || unanswered > 0u) {
        s->counters.suppressed_writes += 1u;
        s->counters.faults += 1u;
        answer_safely(out);
#ifdef STATEGATE_RESET_ON_FAULT
        (void)stategate_reset(s);
#endif
        return bad > 0u ? STATEGATE_FAULT : STATEGATE_BAD_OUTPUT;
    }
#if STATEGATE_ROWS > 0
    lay_rows(s, appends > 0u && allowed); /* before the banks are swapped */
#endif
#if STATEGATE_GATES > 0
#if STATEGATE_UNGATED > 0
    s->counters.ungated_writes += 1u;
    s->parity ^= UINT64_C(1) << MODEL.n_gates;
#endif
    if (wanted == 0u) {
        s->counters.quiet_steps += 1u;
        return STATEGATE_QUIET;
    }
#endif
    if (!allowed) {
        s->counters.suppressed_writes += 1u;
        return STATEGATE_HELD;
    }
#if STATEGATE_GATES > 0
    s->parity ^= swaps;
    for (uint32_t i = 0; i < MODEL.n_gates; ++i) {
        s->counters.openings[i] += open[i];
    }
#elif STATEGATE_UNGATED > 0
    s->counters.ungated_writes += 1u;
    s->parity ^= 1u;
#endif
    s->counters.writes += 1u;
    return STATEGATE_WROTE;
}

uint64_t stategate_chain(const stategate_session *s, uint64_t chain)
{
    if (ready(s) != STATEGATE_OK) {
        return chain;
    }
    clear_rest(s);
    for (uint32_t i = 0; i < MODEL.n_states; ++i) {
        chain = stategate_chained(chain, live_bank(s, &MODEL.states[i]), MODEL.states[i].bytes);
    }
    return chain;
}

/* A saved session: tag, counters, live states one after the other, checksum of all before it. */

static uint32_t checksum(const unsigned char *data, size_t bytes)
{
    uint32_t crc = 0xFFFFFFFFu; /* CRC-32 of ISO-HDLC, as in zlib */
    for (size_t i = 0; i < bytes; ++i) {
        crc ^= data[i];
        for (int bit = 0; bit < 8; ++bit) {
            crc = (crc >> 1) ^ (0xEDB88320u & (0u - (crc & 1u)));
        }
    }
    return ~crc;
}

size_t stategate_save(const stategate_session *s, void *buffer, size_t bytes)
{
    unsigned char *at = buffer;
    if (ready(s) != STATEGATE_OK || buffer == NULL || bytes < STATEGATE_SAVED_BYTES) {
        return 0;
    }
    clear_rest(s);
    (void)memcpy(at, tag, sizeof tag);
    at += sizeof tag;
    (void)memcpy(at, &s->counters, sizeof s->counters);
    at += sizeof s->counters;
    for (uint32_t i = 0; i < MODEL.n_states; ++i) {
        (void)memcpy(at, live_bank(s, &MODEL.states[i]), MODEL.states[i].bytes);
        at += MODEL.states[i].bytes;
    }
    const uint32_t sum = checksum(buffer, STATEGATE_SAVED_BYTES - sizeof sum);
    (void)memcpy(at, &sum, sizeof sum);
    return STATEGATE_SAVED_BYTES;
}

/* Whether a session can have counted so. */
static bool possible(const stategate_counters *c)
{
    if (c->writes > c->steps || c->quiet_steps > c->steps - c->writes
        || c->suppressed_writes != c->steps - c->writes - c->quiet_steps
        || c->appends > c->writes || c->faults > c->suppressed_writes || c->ungated_writes > c->steps) {
        return false;
    }
#if STATEGATE_GATES > 0
    for (uint32_t i = 0; i < MODEL.n_gates; ++i) {
        const uint64_t most = MODEL.gates[i].most, rest = c->openings[i] % most;
        const uint64_t writes = c->openings[i] / most + (rest + most - 1u) / most; /* at least */
        if (writes > c->writes) {
            return false;
        }
    }
#endif
    return true;
}

stategate_result stategate_load(stategate_session *s, const void *buffer, size_t bytes)
{
    const unsigned char *at = buffer;
    stategate_counters counters;
    uint32_t sum;
    const stategate_result found = ready(s);
    if (found != STATEGATE_OK || buffer == NULL) {
        return found != STATEGATE_OK ? found : STATEGATE_NO_POINTER;
    }
    if (bytes >= sizeof tag && memcmp(at, tag, sizeof tag) != 0) {
        return STATEGATE_OTHER_MODEL;
    }
    if (bytes != STATEGATE_SAVED_BYTES) {
        return STATEGATE_DAMAGED;
    }
    (void)memcpy(&sum, at + bytes - sizeof sum, sizeof sum);
    if (checksum(at, bytes - sizeof sum) != sum) {
        return STATEGATE_DAMAGED;
    }
    at += sizeof tag;
    (void)memcpy(&counters, at, sizeof counters);
    at += sizeof counters;
    uint32_t bad = possible(&counters) ? 0u : 1u;
    for (uint32_t i = 0; i < MODEL.n_states; ++i) {
        const stategate_tensor *state = &MODEL.states[i];
        char *spare = bank(s, state, true);
        (void)memcpy(spare, at, state->bytes);
        bad += stategate_finite(spare, state->bytes, state->type) ? 0u : 1u;
        at += state->bytes;
    }
    if (bad > 0u) {
        return STATEGATE_IMPOSSIBLE;
    }
    s->parity = ~s->parity; /* every spare bank is live now */
#if STATEGATE_ROWS > 0
    if (!rows_fit(s)) {
        s->parity = ~s->parity;
        return STATEGATE_IMPOSSIBLE;
    }
#endif
    s->kept_steps = 0u;
    s->counters = counters;
#ifdef STATEGATE_RESET_ON_RESTORE
    return stategate_reset(s);
#else
    return STATEGATE_OK;
#endif
}
