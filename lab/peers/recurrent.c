/* One step of an LSTM, or with -DGRU of a GRU, and a dense layer, in rows as a person would write it.
 *
 * Sizes by -DIN, -DUNITS and -DOUT; weights and the order of gates as torch has them.
 */
#include "rows.h"

#ifdef GRU
enum { GATES = 3 * UNITS };
#else
enum { GATES = 4 * UNITS };
#endif

typedef struct {
    ROW float input[GATES][IN];
    ROW float hidden[GATES][UNITS];
    ROW float input_bias[GATES];
    ROW float hidden_bias[GATES];
    ROW float head[OUT][UNITS];
    ROW float head_bias[OUT];
} weights;

WEIGHTS(weights)

static inline float hyperbolic_tangent(float x) { return 2.0f * sigmoid(2.0f * x) - 1.0f; }

/* in: x, h and, of an LSTM, c; out: y, h', c'. */
API int peer_compute(void *const *in, void *const *out)
{
    const float *restrict x = in[0], *restrict h = in[1];
    float *restrict y = out[0], *restrict next_h = out[1];
    ROW float gates[GATES], from_x[GATES];
    DENSE(GATES, IN, w.input, x, w.input_bias[i_], from_x)
#ifdef GRU
    DENSE(GATES, UNITS, w.hidden, h, w.hidden_bias[i_], gates)
    for (int i = 0; i < UNITS; ++i) {
        const float reset = sigmoid(from_x[i] + gates[i]);
        const float update = sigmoid(from_x[UNITS + i] + gates[UNITS + i]);
        const float new = hyperbolic_tangent(from_x[2 * UNITS + i] + reset * gates[2 * UNITS + i]);
        next_h[i] = (1.0f - update) * new + update * h[i];
    }
#else
    const float *restrict c = in[2];
    float *restrict next_c = out[2];
    DENSE(GATES, UNITS, w.hidden, h, from_x[i_] + w.hidden_bias[i_], gates)
    for (int i = 0; i < UNITS; ++i) {
        const float new = hyperbolic_tangent(gates[2 * UNITS + i]);
        next_c[i] = sigmoid(gates[UNITS + i]) * c[i] + sigmoid(gates[i]) * new;
        next_h[i] = sigmoid(gates[3 * UNITS + i]) * hyperbolic_tangent(next_c[i]);
    }
#endif
    DENSE(OUT, UNITS, w.head, next_h, w.head_bias[i_], y)
    return 0;
}
