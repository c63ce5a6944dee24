/* The floor: one AURA-Mem step as a person would write it for this one model.
 *
 * Same equations as models/memories/aura.py, same weights, same exponential; what a generator does not do:
 * one pass over S for both reads, one pass for the write, no tensor of the size of S in between.
 */
#include <math.h>
#include <stddef.h>

#include "rows.h"

/* The constants of the graph in its order. */
typedef struct {
    ROW float surprise[32];
    ROW float encode[64][64];
    ROW float encode_bias[64];
    ROW float k[32][64];
    ROW float q[32][64];
    ROW float v[32][64];
    ROW float v_bias[32];
    ROW float beta[64];
    ROW float beta_bias[1];
    ROW float gate_in[48][64];
    ROW float gate_in_bias[48];
    ROW float gate_hidden[32][48];
    ROW float gate_hidden_bias[32];
    ROW float gate_residual[32][32];
    ROW float gate_out[32];
    ROW float gate_out_bias[1];
    ROW float head_in[64][96];
    ROW float head_in_bias[64];
    ROW float head_out[8][64];
    ROW float head_out_bias[8];
} weights;

WEIGHTS(weights)

#define SILU(count, x) \
    for (int i_ = 0; i_ < (count); ++i_) { \
        (x)[i_] *= sigmoid((x)[i_]); \
    }

/* in: z, threshold, S, b, and c2, the rate of the bias memory; out: action, gate, S', b'. */
API int peer_compute(void *const *in, void *const *out)
{
    const float *restrict z = in[0], *restrict S = in[2], *restrict b = in[3];
    const float threshold = *(const float *)in[1], c2 = *(const float *)in[4];
    float *restrict action = out[0], *restrict gate = out[1];
    float *restrict next_S = out[2], *restrict next_b = out[3];
    ROW float cat[96], k[32], q[32], v[32], seen[48], novelty[32], keyed[32], read[32], hidden[64];
    float *x = cat + 32;
    DENSE(64, 64, w.encode, z, w.encode_bias[i_], x)
    SILU(64, x)
    DENSE(32, 64, w.k, x, 0.0f, k)
    DENSE(32, 64, w.q, x, 0.0f, q)
    DENSE(32, 64, w.v, x, w.v_bias[i_], v)
    float beta = w.beta_bias[0], kk = 1e-6f, qq = 1e-6f, kq = 0.0f;
    for (int i = 0; i < 64; ++i) {
        beta += w.beta[i] * x[i];
    }
    beta = sigmoid(beta) / (1.0f + c2);
    for (int i = 0; i < 32; ++i) {
        kk += k[i] * k[i];
        qq += q[i] * q[i];
        kq += k[i] * q[i];
        keyed[i] = read[i] = 0.0f;
    }
    const float k_unit = 1.0f / sqrtf(kk), q_unit = 1.0f / sqrtf(qq);
    DENSE(48, 64, w.gate_in, z, w.gate_in_bias[i_], seen)
    SILU(48, seen)
    DENSE(32, 48, w.gate_hidden, seen, w.gate_hidden_bias[i_], novelty)
    for (int i = 0; i < 32; ++i) {
        k[i] *= k_unit;
        q[i] *= q_unit;
        for (int j = 0; j < 32; ++j) {
            keyed[j] += k[i] * S[32 * i + j];
            read[j] += q[i] * S[32 * i + j];
        }
    }
    float squares = 0.0f;
    for (int i = 0; i < 32; ++i) {
        v[i] -= keyed[i] + b[i];
        squares += v[i] * v[i];
    }
    const float surprise = logf(squares / 32.0f + 1e-3f);
    DENSE(32, 32, w.gate_residual, v, novelty[i_] + surprise * w.surprise[i_], hidden)
    SILU(32, hidden)
    *gate = w.gate_out_bias[0];
    for (int i = 0; i < 32; ++i) {
        *gate += w.gate_out[i] * hidden[i];
    }
    const int is_open = *gate > threshold;
    const float keep = is_open ? 1.0f - 0.004f * beta : 1.0f, rate = is_open ? beta : 0.0f;
    const float overlap = kq * k_unit * q_unit + c2;
    for (int i = 0; i < 32; ++i) {
        cat[i] = keep * (read[i] + b[i]) + rate * v[i] * overlap;
    }
    if (is_open) {
        for (int i = 0; i < 32; ++i) {
            const float scale = k[i] * beta;
            for (int j = 0; j < 32; ++j) {
                next_S[32 * i + j] = keep * S[32 * i + j] + scale * v[j];
            }
            next_b[i] = keep * b[i] + c2 * beta * v[i];
        }
    }
    DENSE(64, 96, w.head_in, cat, w.head_in_bias[i_], hidden)
    SILU(64, hidden)
    DENSE(8, 64, w.head_out, hidden, w.head_out_bias[i_], action)
    return 0;
}
