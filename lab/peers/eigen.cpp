/* One step of an LSTM, or with -DGRU of a GRU, and a dense layer, in Eigen, as RTNeural publishes it:
 * sizes known when it is compiled, the products of all gates in one matrix with the bias in a column.
 */
#define EIGEN_STACK_ALLOCATION_LIMIT 0 /* 256 units are a megabyte, which is static */
#include <Eigen/Dense>
#include <cstddef>

#define API extern "C" __attribute__((visibility("default")))

template <int Rows, int Columns = 1> using Matrix = Eigen::Matrix<float, Rows, Columns>;

#ifdef GRU
constexpr int GATES = 3 * UNITS;
static Matrix<GATES, IN + 1> of_input;
static Matrix<GATES, UNITS + 1> of_hidden;
static Matrix<IN + 1> x_and_one = Matrix<IN + 1>::Ones();
static Matrix<UNITS + 1> h_and_one = Matrix<UNITS + 1>::Ones();
#else
constexpr int GATES = 4 * UNITS;
static Matrix<GATES, IN + UNITS + 1> combined;
static Matrix<IN + UNITS + 1> all = Matrix<IN + UNITS + 1>::Ones();
#endif
static Matrix<OUT, UNITS> head;
static Matrix<OUT> head_bias;

template <typename X> static auto sigmoid(const X &x) { return 1.0f / ((-x.array()).exp() + 1.0f); }

/* The next of the tensors, which lie one after the other at multiples of 64 bytes. */
template <int Rows, int Columns = 1> static Matrix<Rows, Columns> next(const unsigned char *&at)
{
    const float *const from = reinterpret_cast<const float *>(at);
    at += (sizeof(float) * Rows * Columns + 63) / 64 * 64;
    constexpr int order = Columns == 1 ? Eigen::ColMajor : Eigen::RowMajor;
    return Eigen::Map<const Eigen::Matrix<float, Rows, Columns, order>>(from);
}

API size_t peer_weight_bytes(void)
{
    const auto padded = [](size_t numbers) { return (4 * numbers + 63) / 64 * 64; };
    return padded(GATES * IN) + padded(GATES * UNITS) + 2 * padded(GATES) + padded(OUT * UNITS)
        + padded(OUT);
}

API void peer_open(const unsigned char *tensors)
{
    const Matrix<GATES, IN> input = next<GATES, IN>(tensors);
    const Matrix<GATES, UNITS> hidden = next<GATES, UNITS>(tensors);
    const Matrix<GATES> input_bias = next<GATES>(tensors), hidden_bias = next<GATES>(tensors);
    head = next<OUT, UNITS>(tensors);
    head_bias = next<OUT>(tensors);
#ifdef GRU
    of_input << input, input_bias;
    of_hidden << hidden, hidden_bias;
#else
    combined << input, hidden, input_bias + hidden_bias;
    /* RTNeural's order, in which the three sigmoids are neighbours: i, f, o, then the tangent. */
    combined.middleRows<UNITS>(2 * UNITS).swap(combined.bottomRows<UNITS>());
#endif
}

/* in: x, h and, of an LSTM, c; out: y, h', c'. */
API int peer_compute(void *const *in, void *const *out)
{
    const auto at = [](void *p) { return static_cast<float *>(p); };
    const Eigen::Map<const Matrix<IN>> x(at(in[0]));
    const Eigen::Map<const Matrix<UNITS>> h(at(in[1]));
    Eigen::Map<Matrix<OUT>> y(at(out[0]));
    Eigen::Map<Matrix<UNITS>> next_h(at(out[1]));
    Matrix<GATES> gates;
#ifdef GRU
    Matrix<GATES> from_x;
    x_and_one.head<IN>() = x;
    h_and_one.head<UNITS>() = h;
    from_x.noalias() = of_input * x_and_one;
    gates.noalias() = of_hidden * h_and_one;
    const Matrix<2 * UNITS> both = sigmoid(from_x.head<2 * UNITS>() + gates.head<2 * UNITS>());
    const Matrix<UNITS> reset_h = both.head<UNITS>().cwiseProduct(gates.tail<UNITS>());
    const Matrix<UNITS> candidate = (from_x.tail<UNITS>() + reset_h).array().tanh();
    const auto update = both.tail<UNITS>().array();
    next_h = (1.0f - update) * candidate.array() + update * h.array();
#else
    const Eigen::Map<const Matrix<UNITS>> c(at(in[2]));
    Eigen::Map<Matrix<UNITS>> next_c(at(out[2]));
    all.head<IN>() = x;
    all.segment<UNITS>(IN) = h;
    gates.noalias() = combined * all;
    const Matrix<3 * UNITS> ifo = sigmoid(gates.head<3 * UNITS>());
    const Matrix<UNITS> candidate = gates.tail<UNITS>().array().tanh();
    next_c = ifo.segment<UNITS>(UNITS).cwiseProduct(c) + ifo.head<UNITS>().cwiseProduct(candidate);
    next_h = ifo.tail<UNITS>().array() * next_c.array().tanh();
#endif
    y.noalias() = head * next_h;
    y += head_bias;
    return 0;
}
