// Balanced loss and its gradient on the CPU: what logits_loss.py is to a GPU.
//
// Built once for each combination of the macros: LOGITS (32: float, 16: bfloat16, 116: float16), TARGETS (0: label ids
// in CSR, 8: bytes, 32: float), GAMMA_POSITIVE and GAMMA_NEGATIVE (0, 1 or 2), BIAS, REBALANCED and LABEL_WEIGHT (0 or
// 1). Few labels are positive: the main loop takes every element of a vector for a negative, and a vector with a
// positive in it goes through the same algebra once more general.

#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#if defined(__AVX512F__)
constexpr int W = 16;
#elif defined(__AVX__)
constexpr int W = 8;
#else
constexpr int W = 4;
#endif

typedef float V __attribute__((vector_size(W * 4)));
typedef int32_t I __attribute__((vector_size(W * 4)));
typedef uint32_t U __attribute__((vector_size(W * 4)));
typedef uint16_t H __attribute__((vector_size(W * 2)));

static inline V fill(float x) { return x - V{}; }

template <class T> static inline T load(const void* from) {
    T x;
    std::memcpy(&x, from, sizeof x);
    return x;
}

#if LOGITS == 32
typedef float Logit;
static inline V load_logits(const Logit* from) { return load<V>(from); }
static inline void store_logits(Logit* to, V x) { std::memcpy(to, &x, sizeof x); }
#elif LOGITS == 16
typedef uint16_t Logit;
static inline V load_logits(const Logit* from) { return (V)(__builtin_convertvector(load<H>(from), U) << 16); }
static inline void store_logits(Logit* to, V x) {
    U bits = (U)x;
    U even = bits + 0x7fffu + ((bits >> 16) & 1u);
    // Rounding must not carry a NaN over into infinity.
    H half = __builtin_convertvector((U)(x == x ? (I)even : (I)(bits | 0x400000u)) >> 16, H);
    std::memcpy(to, &half, sizeof half);
}
#else
typedef _Float16 Logit;
typedef _Float16 F16 __attribute__((vector_size(W * 2)));
static inline V load_logits(const Logit* from) { return __builtin_convertvector(load<F16>(from), V); }
static inline void store_logits(Logit* to, V x) {
    F16 half = __builtin_convertvector(x, F16);
    std::memcpy(to, &half, sizeof half);
}
#endif

// A NaN passes through: the comparison with it is false.
static inline V at_most(V x, V bound) { return bound < x ? bound : x; }
static inline V at_least(V x, V bound) { return bound > x ? bound : x; }

// exp(x) for x <= 88 to 1.1e-7. With TO_ZERO it is 0 from -88.03 down, else 1e-38 or less from -87.33 down.
template <bool TO_ZERO> static inline V exponential(V x) {
    x = at_least(x, fill(TO_ZERO ? -88.029691f : -87.3f));
    // The sum's last bits hold the nearest integer.
    V shifted = x * 1.44269504f + 12582912.0f;
    V n = shifted - 12582912.0f;
    V f = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    V square = f * f;
    V even = ((0.0013836742145940661f * square + 0.041668232530355453f) * square + 0.49999991059303284f) * square + 1.0f;
    V odd = (0.008374898694455624f * square + 0.16666419804096222f) * square + 1.0f;
    // Into the exponent's bits; they cannot take the step to zero.
    if (!TO_ZERO) return (V)((I)(even + odd * f) + ((I)shifted << 23));
    return (even + odd * f) * (V)(((I)shifted << 23) + (127 << 23));
}

// -log(1 - m) for m in [0, 1/2] to 1.3e-7.
static inline V minus_log1p(V m) {
    V s = m * m;
    V even = (((-2.552624225616455f * s - 0.6334813237190247f) * s + 0.17329253256320953f) * s + 0.3332453966140747f) * s + 1.0f;
    V odd = (((1.7756375074386597f * s + 2.046745777130127f) * s + 0.35335680842399597f) * s + 0.25216183066368103f) * s + 0.5000013709068298f;
    return (even + odd * m) * m;
}

template <int gamma> static inline V power(V q) { return gamma == 0 ? fill(1.0f) : gamma == 1 ? q : q * q; }

struct Settings {
    float lam, alpha, beta, mu, positive_factor, negative_factor, scale;
};

struct Labels {  // constants of the labels; null where the loss has no such term
    const float *bias, *inverse_frequency, *weight;
};

// Largest u = -t whose exponential is taken: products stay finite, and what it cuts from p is below the last digit of
// anything that p is added to.
constexpr float BOUND = 60.0f;

// Loss (without row and negative factor) and gradient of one vector; `positive` is all ones where the target is 1.
template <bool MIXED>
static inline void vector(V z, V bias, V inverse_frequency, V label_weight, I positive, const Settings& s, float rate,
                          float gradient_factor, V& loss, V& gradient) {
    V d = BIAS ? z - bias : z;
    V u = d * s.lam;
    if (MIXED) u = positive ? -d : u;
    V e = exponential<true>(at_most(u, fill(BOUND)));
    V e1 = 1.0f + e;
    V p, weight;
    if (REBALANCED) {
        V f1 = 1.0f + exponential<false>(s.beta * s.mu - rate * inverse_frequency);
        V both = 1.0f / (e1 * f1);  // one division for the two sigmoids
        p = both * f1;
        weight = s.alpha + both * e1;
    } else {
        p = 1.0f / e1;
    }
    if (LABEL_WEIGHT) weight = label_weight;
    V q = e * p;
    V nll = at_least(u, fill(0.0f)) + minus_log1p(p > q ? q : p);
    V modulation = power<GAMMA_NEGATIVE>(q);
    V gamma = fill(GAMMA_NEGATIVE);
    if (MIXED && GAMMA_POSITIVE != GAMMA_NEGATIVE) {
        modulation = positive ? power<GAMMA_POSITIVE>(q) : modulation;
        gamma = positive ? fill(GAMMA_POSITIVE) : gamma;
    }
    if (REBALANCED || LABEL_WEIGHT) modulation = modulation * weight;
    loss = modulation * nll;
    V slope = q;
    // p is at least exp(-BOUND): a loss that is infinite must not meet it.
    if (GAMMA_NEGATIVE || (MIXED && GAMMA_POSITIVE)) slope = q + gamma * p * at_most(nll, fill(BOUND + 1));
    gradient = modulation * slope * gradient_factor;
    if (MIXED) {
        loss = positive ? loss * (s.positive_factor * s.lam / s.negative_factor) : loss;
        gradient = positive ? gradient * (-s.positive_factor / s.negative_factor) : gradient;
    }
}

struct Row {
    const Logit* logits;
    Logit* gradient;
    float rate, gradient_factor;
};

// Vectors [first, last) of a row that hold no positive.
template <bool VALUE, bool GRADIENT>
static V negatives(const Row row, const Labels labels, const Settings s, int64_t first, int64_t last) {
    V total{};
    for (int64_t i = first * W; i < last * W; i += W) {
        V loss, gradient;
        vector<false>(load_logits(row.logits + i), BIAS ? load<V>(labels.bias + i) : V{},
                      REBALANCED ? load<V>(labels.inverse_frequency + i) : V{},
                      LABEL_WEIGHT ? load<V>(labels.weight + i) : V{}, I{}, s, row.rate, row.gradient_factor, loss,
                      gradient);
        if (VALUE) total += loss;
        if (GRADIENT) store_logits(row.gradient + i, gradient);
    }
    return total;
}

// `count` elements from column i, some of them positive.
template <bool VALUE, bool GRADIENT>
static V mixed(const Row& row, const Labels& labels, const Settings& s, int64_t i, int64_t count, I positive) {
    Logit z[W] = {}, g[W];
    float bias[W] = {}, inverse_frequency[W] = {}, weight[W] = {};
    std::memcpy(z, row.logits + i, count * sizeof *z);
    if (BIAS) std::memcpy(bias, labels.bias + i, count * sizeof *bias);
    if (REBALANCED) std::memcpy(inverse_frequency, labels.inverse_frequency + i, count * sizeof *inverse_frequency);
    if (LABEL_WEIGHT) std::memcpy(weight, labels.weight + i, count * sizeof *weight);
    V loss, gradient;
    vector<true>(load_logits(z), load<V>(bias), load<V>(inverse_frequency), load<V>(weight), positive, s, row.rate,
                 row.gradient_factor, loss, gradient);
    if (GRADIENT) {
        store_logits(g, gradient);
        std::memcpy(row.gradient + i, g, count * sizeof *g);
    }
    V kept{};
    for (int lane = 0; lane < count; ++lane) kept[lane] = loss[lane];
    return kept;
}

static double sum(V x) {
    double total = 0;
    for (int lane = 0; lane < W; ++lane) total += x[lane];
    return total;
}

// Vectors after which a lane's float32 sum goes over into float64.
constexpr int64_t RUN = 64;

template <bool VALUE, bool GRADIENT>
static double row_block(const Row& row, const Labels& labels, const Settings& s, int64_t first, int64_t last,
                        const int64_t* label, const int64_t* end) {
    double total = 0;
    for (int64_t i = first / W; i * W < last;) {
        int64_t whole = last / W;
        int64_t next = label < end ? *label / W : whole;
        for (next = next < whole ? next : whole; i < next;) {
            int64_t stop = i + RUN < next ? i + RUN : next;
            total += sum(negatives<VALUE, GRADIENT>(row, labels, s, i, stop));
            i = stop;
        }
        if (i * W >= last) break;
        I positive{};
        for (; label < end && *label / W == i; ++label) positive[*label % W] = -1;
        int64_t count = last - i * W < W ? last - i * W : W;
        total += sum(mixed<VALUE, GRADIENT>(row, labels, s, i * W, count, positive));
        ++i;
    }
    return total;
}

#if TARGETS == 32
typedef float Target;
#else
typedef uint8_t Target;
#endif

constexpr int64_t STRIDE = 64;

struct Words {
    uint64_t at[STRIDE * sizeof(Target) / sizeof(uint64_t)];
};

// Appends the columns of a dense row in [first, last) that are not 0; false where one of them is not 1.
static bool find_labels(const Target* targets, int64_t first, int64_t last, std::vector<int64_t>& found) {
    bool valid = true;
    for (int64_t start = first; start < last; start += STRIDE) {
        int64_t stop = start + STRIDE < last ? start + STRIDE : last;
        if (stop - start == STRIDE) {
            uint64_t any = 0;
            for (uint64_t word : load<Words>(targets + start).at) any |= word;
            if (!any) continue;
        }
        for (int64_t i = start; i < stop; ++i)
            if (targets[i] != 0) {
                found.push_back(i);
                valid &= targets[i] == 1;
            }
    }
    return valid;
}

// The loss of rows [rows] and columns [columns), times its scale, to *loss; the gradient likewise to `gradient`, which
// may be `logits`. Strides in elements; `row_sum` (the row's sum of 1/n over all its
// labels) is made here where it is null.
template <bool VALUE, bool GRADIENT>
static void run(const Logit* logits, int64_t logits_stride, Logit* gradient, int64_t gradient_stride, int64_t rows,
                int64_t columns, const Target* targets, int64_t targets_stride, const int64_t* crow, const int64_t* col,
                const float* row_sum, const float* row_weight, const float* bias,
                const float* inverse_frequency, const float* label_weight, const Settings& s, float* loss, int threads) {
    const Labels labels{bias, inverse_frequency, label_weight};
    // Few rows are cut into blocks of columns, so that every thread has some.
    int64_t blocks = rows >= 4 * threads ? 1 : (4 * threads + rows - 1) / rows;
    int64_t width = ((columns + blocks - 1) / blocks + W - 1) / W * W;
    blocks = (columns + width - 1) / width;
    std::vector<double> part(VALUE ? rows * blocks : 0);
#pragma omp parallel num_threads(threads)
    {
        std::vector<int64_t> found;
#pragma omp for schedule(static)
        for (int64_t task = 0; task < rows * blocks; ++task) {
            int64_t k = task / blocks, first = task % blocks * width;
            int64_t last = first + width < columns ? first + width : columns;
            const int64_t *label, *end;
            float invalid = 0;
            double total = 0;
            if (TARGETS == 0) {
                label = col + crow[k], end = col + crow[k + 1];
                if (REBALANCED && !row_sum)
                    for (const int64_t* i = label; i < end; ++i) total += inverse_frequency[*i];
                while (label < end && *label < first) ++label;
                while (label < end && *(end - 1) >= last) --end;
            } else {
                const Target* row = targets + k * targets_stride;
                found.clear();
                bool all = REBALANCED && !row_sum;
                if (!find_labels(row, all ? 0 : first, all ? columns : last, found))
                    invalid = std::numeric_limits<float>::quiet_NaN();
                label = found.data(), end = label + found.size();
                if (all) {
                    for (int64_t i : found) total += inverse_frequency[i];
                    while (label < end && *label < first) ++label;
                    while (label < end && *(end - 1) >= last) --end;
                }
            }
            float weight = row_weight ? row_weight[k] : 1.0f;
            float rate = REBALANCED ? s.beta / (row_sum ? row_sum[k] : (float)total) : 0.0f;
            Row row{logits + k * logits_stride, gradient + k * gradient_stride, rate,
                    s.negative_factor * weight * s.scale};
            double value = row_block<VALUE, GRADIENT>(row, labels, s, first, last, label, end);
            if (VALUE) part[task] = value * weight + invalid;
        }
    }
    if (VALUE) {
        double total = 0;
        for (double x : part) total += x;
        *loss = (float)(total * s.negative_factor / s.lam * s.scale);
    }
}

#define ENTRY(NAME, VALUE, GRADIENT)                                                                                   \
    extern "C" void NAME(const void* logits, int64_t logits_stride, void* gradient, int64_t gradient_stride,           \
                         int64_t rows, int64_t columns, const void* targets, int64_t targets_stride,                   \
                         const int64_t* crow, const int64_t* col, const float* row_sum,                                \
                         const float* row_weight, const float* bias, const float* inverse_frequency,                   \
                         const float* label_weight, float lam, float alpha, float beta, float mu,                      \
                         float positive_factor, float negative_factor, float scale, float* loss, int threads) {        \
        run<VALUE, GRADIENT>((const Logit*)logits, logits_stride, (Logit*)gradient, gradient_stride, rows, columns,    \
                             (const Target*)targets, targets_stride, crow, col, row_sum, row_weight, bias,     \
                             inverse_frequency, label_weight,                                                          \
                             Settings{lam, alpha, beta, mu, positive_factor, negative_factor, scale}, loss, threads);  \
    }

ENTRY(loss_value, true, false)
ENTRY(loss_gradient, false, true)
ENTRY(loss_value_and_gradient, true, true)
