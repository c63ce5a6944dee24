/* AURA-Mem through a chunk of training, forwards and backwards: stategate.calibration.gates.scan
   in one call. Rows are streams; a row's matrix stays in the nearest cache over all of its steps. */
#include <math.h>
#include <string.h>

/* K, V: width of a key and of a value, given by whoever compiles this. */
enum { GIVEN, DRAWN, HARD };

static float dot(const float *a, const float *b, int n) {
  float sum = 0.0f;
  for (int i = 0; i < n; i++) sum += a[i] * b[i];
  return sum;
}

/* Logit of the gate; h is its view of the observation, r the residual. */
static float asked(const float *h, const float *r, const float *A, const float *gs,
                   const float *w2, float b2) {
  float surprise = logf(dot(r, r, V) / V + 1e-3f), logit = b2;
  for (int j = 0; j < V; j++) {
    float x = h[j] + dot(A + j * V, r, V) + surprise * gs[j];
    logit += w2[j] * x / (1.0f + expf(-x));
  }
  return logit;
}

/* g (time, rows) holds the gates where they are GIVEN, and draws from 0 to 1 where they are DRAWN;
   afterwards the gates. S_before, b_before (rows, time, ...) keep what backward needs. */
void forward(int time, int rows, int rule, int tutored, float leak, const float *k, const float *q,
             const float *v, const float *beta, const float *novelty, float c2, const float *A,
             const float *gs, const float *w2, float b2, float *S_all, float *b_all, float *g,
             float *o, float *r_all, float *read_all, float *S_before, float *b_before) {
  for (int n = 0; n < rows; n++) {
    float *S = S_all + n * K * V, *b = b_all + n * V;
    for (int t = 0; t < time; t++) {
      int at = t * rows + n, past = n * time + t;
      const float *kt = k + at * K, *qt = q + at * K;
      float *r = r_all + at * V, *read = read_all + at * V, keyed[V] = {0}, sum[V] = {0};
      memcpy(S_before + (long)past * K * V, S, sizeof(float) * K * V);
      memcpy(b_before + past * V, b, sizeof(float) * V);
      for (int i = 0; i < K; i++)
        for (int j = 0; j < V; j++) {
          keyed[j] += kt[i] * S[i * V + j];
          sum[j] += qt[i] * S[i * V + j];
        }
      for (int j = 0; j < V; j++) {
        r[j] = v[at * V + j] - keyed[j] - b[j];
        read[j] = sum[j];
      }
      if (rule != GIVEN) {
        float logit = asked(novelty + at * V, r, A, gs, w2, b2);
        if (rule == HARD) g[at] = logit > 0.0f;
        else g[at] = n < tutored || g[at] < 1.0f / (1.0f + expf(-logit));
      }
      float rate = g[at] * beta[at], keep = 1.0f - leak * rate, by = dot(kt, qt, K) + c2;
      for (int j = 0; j < V; j++) {
        float change = rate * r[j];
        o[at * V + j] = keep * (read[j] + b[j]) + change * by;
        b[j] = keep * b[j] + c2 * change;
      }
      for (int i = 0; i < K; i++)
        for (int j = 0; j < V; j++) S[i * V + j] = keep * S[i * V + j] + kt[i] * rate * r[j];
    }
  }
}

/* From the gradient of o to those of what forward was given. Nothing flows into the chunk before. */
void backward(int time, int rows, float leak, const float *k, const float *q, const float *beta,
              float c2, const float *g, const float *r_all, const float *read_all,
              const float *S_before, const float *b_before, const float *d_o, float *d_k,
              float *d_q, float *d_v, float *d_beta, float *d_g, float *d_c2) {
  double all_c2 = 0.0;
  for (int n = 0; n < rows; n++) {
    float dS[K * V] = {0}, db[V] = {0};
    for (int t = time - 1; t >= 0; t--) {
      int at = t * rows + n, past = n * time + t;
      const float *kt = k + at * K, *qt = q + at * K, *r = r_all + at * V;
      const float *read = read_all + at * V, *go = d_o + at * V;
      const float *S = S_before + (long)past * K * V, *b = b_before + past * V;
      float *dk = d_k + at * K, *dq = d_q + at * K, *dv = d_v + at * V;
      float rate = g[at] * beta[at], keep = 1.0f - leak * rate, overlap = dot(kt, qt, K);
      float through[V] = {0}, dread[V], d_keep = 0.0f, d_rate = 0.0f, d_by = 0.0f, by_b = 0.0f;
      for (int i = 0; i < K; i++)
        for (int j = 0; j < V; j++) through[j] += kt[i] * dS[i * V + j];
      d_keep = dot(dS, S, K * V);
      for (int j = 0; j < V; j++) {
        float change = rate * r[j], d_change = go[j] * (overlap + c2) + through[j] + c2 * db[j];
        d_keep += go[j] * (read[j] + b[j]) + db[j] * b[j];
        d_by += go[j] * change;
        by_b += db[j] * change;
        d_rate += d_change * r[j];
        dv[j] = rate * d_change;
        dread[j] = keep * go[j];
        db[j] = dread[j] + keep * db[j] - dv[j];
      }
      all_c2 += d_by + by_b;
      d_rate -= leak * d_keep;
      d_g[at] = d_rate * beta[at];
      d_beta[at] = d_rate * g[at];
      for (int i = 0; i < K; i++) {
        float *of = dS + i * V;
        const float *row = S + i * V;
        dk[i] = rate * dot(of, r, V) + d_by * qt[i] - dot(row, dv, V);
        dq[i] = d_by * kt[i] + dot(row, dread, V);
        for (int j = 0; j < V; j++)
          of[j] = keep * of[j] - kt[i] * dv[j] + qt[i] * dread[j];
      }
    }
  }
  *d_c2 = (float)all_c2;
}
