/* AURA-Mem's step by hand: the floor. Plain loops with sizes known when it is compiled. */
#include <math.h>
#include <stdint.h>
#include <time.h>

enum { X = 64, D = 32, G = 48, H = 64, A = 8 };

typedef struct {
    float encode[X][X], encode_bias[X], to_k[D][X], to_q[D][X], to_v[D][X], to_v_bias[D];
    float to_beta[X], to_beta_bias, gate_in[G][X], gate_in_bias[G];
    float gate_hidden[D][G], gate_hidden_bias[D], gate_residual[D][D], gate_surprise[D];
    float gate_out[D], gate_out_bias, head_in[H][D + X], head_in_bias[H];
    float head_out[A][H], head_out_bias[A], c2, threshold;
} Weights;

typedef struct {
    float S[D][D], b[D];
} State;

static float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

static float dot(const float *a, const float *b, int n) {
    float sum = 0.0f;
    for (int i = 0; i < n; i++) sum += a[i] * b[i];
    return sum;
}

#define LINEAR(out, rows, w, x, cols, start) \
    for (int i_ = 0; i_ < (rows); i_++) (out)[i_] = dot((w)[i_], (x), (cols)) + (start)

void aura_step(const Weights *w, State *s, const float *z, float *action) {
    float ox[D + X], k[D], q[D], keyed[D] = {0}, read[D] = {0}, r[D], g[G], h[D], y[H];
    float *x = ox + D;
    LINEAR(x, X, w->encode, z, X, w->encode_bias[i_]);
    for (int i = 0; i < X; i++) x[i] *= sigmoid(x[i]);
    LINEAR(k, D, w->to_k, x, X, 0.0f);
    LINEAR(q, D, w->to_q, x, X, 0.0f);
    LINEAR(r, D, w->to_v, x, X, w->to_v_bias[i_]);
    float nk = 1.0f / sqrtf(dot(k, k, D) + 1e-6f), nq = 1.0f / sqrtf(dot(q, q, D) + 1e-6f);
    for (int i = 0; i < D; i++) k[i] *= nk, q[i] *= nq;
    float beta = sigmoid(dot(w->to_beta, x, X) + w->to_beta_bias) / (1.0f + w->c2);
    for (int i = 0; i < D; i++)
        for (int j = 0; j < D; j++) keyed[j] += k[i] * s->S[i][j], read[j] += q[i] * s->S[i][j];
    for (int j = 0; j < D; j++) r[j] -= keyed[j] + s->b[j];
    float surprise = logf(dot(r, r, D) / D + 1e-3f);
    LINEAR(g, G, w->gate_in, z, X, w->gate_in_bias[i_]);
    for (int i = 0; i < G; i++) g[i] *= sigmoid(g[i]);
    LINEAR(h, D, w->gate_hidden, g, G, w->gate_hidden_bias[i_]);
    for (int i = 0; i < D; i++) {
        h[i] += dot(w->gate_residual[i], r, D) + surprise * w->gate_surprise[i];
        h[i] *= sigmoid(h[i]);
    }
    for (int j = 0; j < D; j++) ox[j] = read[j] + s->b[j];
    if (dot(w->gate_out, h, D) + w->gate_out_bias > w->threshold) {
        float keep = 1.0f - 0.004f * beta, overlap = dot(k, q, D) + w->c2;
        for (int j = 0; j < D; j++) {
            r[j] *= beta;
            ox[j] = keep * ox[j] + r[j] * overlap;
            s->b[j] = keep * s->b[j] + w->c2 * r[j];
        }
        for (int i = 0; i < D; i++)
            for (int j = 0; j < D; j++) s->S[i][j] = keep * s->S[i][j] + k[i] * r[j];
    }
    LINEAR(y, H, w->head_in, ox, D + X, w->head_in_bias[i_]);
    for (int i = 0; i < H; i++) y[i] *= sigmoid(y[i]);
    LINEAR(action, A, w->head_out, y, H, w->head_out_bias[i_]);
}

static int64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* Many steps, each timed, through inputs that follow each other. */
void aura_burst(const Weights *w, State *s, const float *z, int64_t inputs, int64_t first,
                int64_t count, float *action, uint32_t *ns) {
    for (int64_t i = 0; i < count; i++) {
        int64_t start = now();
        aura_step(w, s, z + ((first + i) % inputs) * X, action);
        ns[i] = (uint32_t)(now() - start);
    }
}
