/* sigmoid(gate) tanh(x) with one division: 1 / d times e / (e + 2). */
STATEGATE_INLINE float stategate_gated(float gate, float x)
{
    const float e = stategate_growth(x);
    const float value = copysignf(e / (stategate_logistic(gate) * (e + 2.0f)), x);
    return gate < -87.0f ? 0.0f : value;
}

/* One step of an LSTM from the sums of its gates, input, output, forget, cell (ONNX's order). */
STATEGATE_INLINE void stategate_lstm(int32_t units, const float *sums, float *c, float *h)
{
    for (int32_t j = 0; j < units; ++j) {
        const float cell = stategate_sigmoidf(sums[2 * units + j]) * c[j] +
            stategate_gated(sums[j], sums[3 * units + j]);
        c[j] = cell;
        h[j] = stategate_gated(sums[units + j], cell);
    }
}

/* One step of a plain recurrent unit. */
STATEGATE_INLINE void stategate_rnn(int32_t units, const float *sums, float *h)
{
    for (int32_t j = 0; j < units; ++j) {
        h[j] = stategate_tanhf(sums[j]);
    }
}

/* One step of a GRU from the sums of its update and reset gates and those of its new content. */
STATEGATE_INLINE void stategate_gru(
    int32_t units, const float *sums, const float *fresh, float *h)
{
    for (int32_t j = 0; j < units; ++j) {
        const float keep = stategate_sigmoidf(sums[j]), content = stategate_tanhf(fresh[j]);
        h[j] = (1.0f - keep) * content + keep * h[j];
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
    int32_t units, const float *sums, const float *given, const float *fresh, float *h)
{
    for (int32_t j = 0; j < units; ++j) {
        const float keep = stategate_sigmoidf(sums[j]), reset = stategate_sigmoidf(sums[units + j]);
        const float content = stategate_tanhf(given[j] + reset * fresh[j]);
        h[j] = (1.0f - keep) * content + keep * h[j];
    }
}
