#define STATEGATE_GATE_TILE 64 /* columns of a tile: a third of the first cache, where products have more */

/* Whether a step reads its columns backward, which changes no bit: every second one does, because the
 * weights that were read last are in the first cache still. Banks of states take turns, and so tell
 * which it is. Without vectors no product waits for a cache. */
#if STATEGATE_LANES > 1
#define STATEGATE_TURN(now, next) ((uintptr_t)(next) < (uintptr_t)(now))
#else
#define STATEGATE_TURN(now, next) false
#endif

/* stategate_product in small tiles. */
STATEGATE_INLINE void stategate_gates(
    int32_t columns, const float *w, int32_t n_x, const float *x, int32_t n_y, const float *y,
    const float *init, float *out, bool is_backward)
{
    const int32_t whole = columns - columns % STATEGATE_GATE_TILE, rows = n_x + n_y;
    for (int32_t i = 0; i < whole; i += STATEGATE_GATE_TILE) {
        const int32_t n = is_backward ? whole - STATEGATE_GATE_TILE - i : i;
        stategate_product(STATEGATE_GATE_TILE, w + n * rows, n_x, x, n_y, y, init + n, out + n);
    }
    if (whole < columns) {
        const int32_t rest = columns - whole;
        stategate_product(rest, w + whole * rows, n_x, x, n_y, y, init + whole, out + whole);
    }
}

/* sigmoid(gate) tanh(x) with one division: 1 / d times e / (e + 2). */
STATEGATE_INLINE float stategate_gated(float gate, float x)
{
    const float e = stategate_growth(x);
    const float value = copysignf(e / (stategate_logistic(gate) * (e + 2.0f)), x);
    return gate < -87.0f ? 0.0f : value;
}

/* One step of an LSTM from the sums of its gates, input, output, forget, cell (ONNX's order). */
STATEGATE_INLINE void stategate_lstm(
    int32_t units, const float *sums, const float *c, float *c_next, float *h_next)
{
    for (int32_t j = 0; j < units; ++j) {
        const float cell = stategate_sigmoidf(sums[2 * units + j]) * c[j] +
            stategate_gated(sums[j], sums[3 * units + j]);
        c_next[j] = cell;
        h_next[j] = stategate_gated(sums[units + j], cell);
    }
}

/* One step of a plain recurrent unit. */
STATEGATE_INLINE void stategate_rnn(int32_t units, const float *sums, float *h_next)
{
    for (int32_t j = 0; j < units; ++j) {
        h_next[j] = stategate_tanhf(sums[j]);
    }
}

/* One step of a GRU from the sums of its update and reset gates and those of its new content. */
STATEGATE_INLINE void stategate_gru(
    int32_t units, const float *sums, const float *fresh, const float *h, float *h_next)
{
    for (int32_t j = 0; j < units; ++j) {
        const float keep = stategate_sigmoidf(sums[j]), content = stategate_tanhf(fresh[j]);
        h_next[j] = (1.0f - keep) * content + keep * h[j];
    }
}

STATEGATE_INLINE void stategate_gru_reset(
    int32_t units, const float *sums, const float *h, float *reset)
{
    for (int32_t j = 0; j < units; ++j) {
        reset[j] = stategate_sigmoidf(sums[units + j]) * h[j];
    }
}

/* The same where the product with h is reset, and not h. */
STATEGATE_INLINE void stategate_gru_late(
    int32_t units, const float *sums, const float *given, const float *fresh, const float *h,
    float *h_next)
{
    for (int32_t j = 0; j < units; ++j) {
        const float keep = stategate_sigmoidf(sums[j]), reset = stategate_sigmoidf(sums[units + j]);
        const float content = stategate_tanhf(given[j] + reset * fresh[j]);
        h_next[j] = (1.0f - keep) * content + keep * h[j];
    }
}
