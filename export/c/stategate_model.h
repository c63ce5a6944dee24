/* What session.c needs to know of a model; filled by model.c, which is generated. */
#ifndef STATEGATE_MODEL_H
#define STATEGATE_MODEL_H

#if defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__ != 0
#error "-ffast-math and -ffinite-math-only take the look for NaN out of a session: leave them away"
#endif

#include <float.h>
#include <math.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum stategate_type {
    STATEGATE_OTHER, STATEGATE_FLOAT16, STATEGATE_FLOAT32, STATEGATE_FLOAT64, STATEGATE_BOOL
};

/* One tensor: where it lies in the struct of its kind. */
typedef struct {
    size_t offset;
    size_t bytes;
    enum stategate_type type;
    uint32_t group;      /* of a state: the gate that guards it, or the number of gates for none */
    const void *initial; /* of a state, or NULL for zeros; of an output what is safe, or NULL */
    size_t next_bytes;   /* of a state's next value: of one row where it is a ring */
} stategate_tensor;

/* One hard gate. */
typedef struct {
    size_t offset; /* in stategate_outputs */
    size_t elements;
    uint64_t most;            /* openings of one write: 1 where open anywhere counts as one */
    bool appends;             /* its states are rings: a write puts a row, and no bank is swapped */
    float threshold;
    ptrdiff_t threshold_offset; /* in stategate_constants, or -1 */
} stategate_gate;

typedef struct {
    const stategate_tensor *inputs, *constants, *outputs, *states;
    const stategate_gate *gates;
    uint32_t n_inputs, n_constants, n_outputs, n_states, n_gates;
    const void *constant_values; /* a stategate_constants */
    const stategate_tensor *cursor; /* state that counts the rows which rings hold, or NULL */
} stategate_model;

extern const stategate_model stategate_this_model;

/* A state that decays in silence comes among the subnormal numbers, and stays there; CPUs take up to
 * a hundred times as long for each. So a next state has what is small replaced by zero: below 2^-100,
 * and not only below the least normal number, so that its products with weights stay normal too.
 * A rule in the code, because a mode of the CPU is another on each. Those of float16 are left: they
 * are widened before they are used. */
static inline void stategate_flush(void *values, size_t bytes, enum stategate_type type)
{
    if (type == STATEGATE_FLOAT32) {
        float *x = values;
        for (size_t i = 0; i < bytes / sizeof *x; ++i) {
            x[i] = fabsf(x[i]) < 0x1p-100f ? 0.0f : x[i];
        }
    } else if (type == STATEGATE_FLOAT64) {
        double *x = values;
        for (size_t i = 0; i < bytes / sizeof *x; ++i) {
            x[i] = fabs(x[i]) < 0x1p-900 ? 0.0 : x[i];
        }
    } else {
        /* no other type has subnormal numbers that are flushed */
    }
}

/* Whether no element is NaN or infinity, or a truth value beyond 1; true for integers. */
static inline bool stategate_finite(const void *values, size_t bytes, enum stategate_type type)
{
    uint32_t bad = 0;
    if (type == STATEGATE_FLOAT32) {
        /* By the bits: exponents of all ones are NaN and infinity. Compilers make vector
         * instructions of integers that are brought together, and none of truth values. */
        const char *at = values;
        for (size_t i = 0; i < bytes / sizeof(float); ++i) {
            uint32_t bits;
            (void)memcpy(&bits, at + i * sizeof bits, sizeof bits);
            bad |= (bits & 0x7F800000u) == 0x7F800000u ? 1u : 0u;
        }
    } else if (type == STATEGATE_FLOAT64) {
        const double *x = values;
        for (size_t i = 0; i < bytes / sizeof *x; ++i) {
            bad |= fabs(x[i]) <= DBL_MAX ? 0u : 1u;
        }
    } else if (type == STATEGATE_FLOAT16) {
        const uint16_t *x = values; /* by its bits: exponents of all ones are NaN and infinity */
        for (size_t i = 0; i < bytes / sizeof *x; ++i) {
            bad |= (x[i] & 0x7C00u) == 0x7C00u ? 1u : 0u;
        }
    } else if (type == STATEGATE_BOOL) {
        const uint8_t *x = values;
        for (size_t i = 0; i < bytes; ++i) {
            bad |= x[i] > 1u ? 1u : 0u;
        }
    } else {
        /* every integer is finite */
    }
    return bad == 0u;
}

/* Whether an element of a gate is open. */
static inline bool stategate_is_open(const float *gate, size_t elements, const float *threshold)
{
    uint32_t open = 0;
    for (size_t i = 0; i < elements; ++i) {
        open |= gate[i] > *threshold ? 1u : 0u;
    }
    return open != 0u;
}

#endif
