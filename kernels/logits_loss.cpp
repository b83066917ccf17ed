// Balanced loss and its gradient on the CPU: what logits_loss.py is to a GPU.
//
// Built once for each combination of the macros: LOGITS (32: float, 16: bfloat16, 116: float16), TARGETS (0: label ids
// in CSR, 8: bytes, 32: float), GAMMA_POSITIVE and GAMMA_NEGATIVE (0, 1 or 2), BIAS, REBALANCED and LABEL_WEIGHT (0 or
// 1). Few labels are positive: the main loop takes every element for a negative, and a vector with a positive in it is
// done once more in a general form of the same algebra.

#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>
#if defined(__AVX512DQ__)
#include <immintrin.h>
#endif

#include "flush_denormals.h"

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
typedef double D __attribute__((vector_size(W * 8)));

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

// 2^x for x <= 127 to 1.4e-7, besides what rounding of x makes.
static inline V exponential2(V x) {
#if defined(__AVX512DQ__)
    V f = (V)_mm512_reduce_ps((__m512)x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
#else
    // The sum's last bits hold the integer below x, or at it.
    x = at_least(x, fill(-126.5f));
    V shifted = (x - 0.5f) + 12582912.0f;
    V f = x - (shifted - 12582912.0f);
#endif
    // Fitted for least relative error on [0, 1], 7.5e-8 before rounding.
    V y = 0.0018775766948238015f * f + 0.00898933969438076f;
    y = y * f + 0.05582631751894951f;
    y = y * f + 0.24015361070632935f;
    y = y * f + 0.6931530833244324f;
    y = y * f + 0.9999999403953552f;
#if defined(__AVX512DQ__)
    return (V)_mm512_scalef_ps((__m512)y, (__m512)x);
#else
    V power = (V)(((I)shifted << 23) + (127 << 23));
    return x > -126.0f ? y * power : V{} + 0.0f * x;
#endif
}

// -log(1 - m) for m in [0, 1/2]. Fitted for least relative error, 2.3e-8 before rounding.
static inline V minus_log1p(V m) {
    V y = 1.4411075094059675f * m - 1.695811169071578f;
    y = y * m + 1.2576691483586835f;
    y = y * m - 0.2035386860691802f;
    y = y * m + 0.26961269333028615f;
    y = y * m + 0.24280508577985377f;
    y = y * m + 0.3337006143676698f;
    y = y * m + 0.49999285255820936f;
    return (y * m + 1.0f) * m;
}

template <int gamma> static inline V power(V q) { return gamma == 0 ? fill(1.0f) : gamma == 1 ? q : q * q; }

struct Settings {
    float lam, alpha, beta, mu, positive_factor, negative_factor, scale;
};

struct Labels {  // constants of the labels; null where the loss has no such term
    const float *bias, *inverse_frequency, *weight;
};

// Largest u = -t / log(2) whose exponential is taken: products stay finite, and what it cuts from p is below the last
// digit of anything that p is added to.
constexpr float BOUND = 86.0f;
constexpr float LOG2E = 1.44269504f, LN2 = 0.69314718f;

// Loss (without row and negative factor) and gradient of one vector; `positive` is all ones where the target is 1.
template <bool MIXED>
static inline void vector(V z, V bias, V inverse_frequency, V label_weight, I positive, const Settings& s, float rate,
                          float gradient_factor, V& loss, V& gradient) {
    V d = BIAS ? z - bias : z;
    V u = d * (s.lam * LOG2E);
    if (MIXED) u = positive ? -LOG2E * d : u;
    V e = exponential2(at_most(u, fill(BOUND)));
    V e1 = 1.0f + e;
    V p, weight;
    if (REBALANCED) {
        V f1 = 1.0f + exponential2(s.beta * s.mu * LOG2E - rate * inverse_frequency);
        V both = 1.0f / (e1 * f1);  // one division for the two sigmoids
        p = both * f1;
        weight = s.alpha + both * e1;
    } else {
        p = 1.0f / e1;
    }
    if (LABEL_WEIGHT) weight = label_weight;
    V q = e * p;
    V nll = at_least(u, fill(0.0f)) * LN2 + minus_log1p(p > q ? q : p);
    V modulation = power<GAMMA_NEGATIVE>(q);
    V gamma = fill(GAMMA_NEGATIVE);
    if (MIXED && GAMMA_POSITIVE != GAMMA_NEGATIVE) {
        modulation = positive ? power<GAMMA_POSITIVE>(q) : modulation;
        gamma = positive ? fill(GAMMA_POSITIVE) : gamma;
    }
    if (REBALANCED || LABEL_WEIGHT) modulation = modulation * weight;
    loss = modulation * nll;
    V slope = q;
    // p is at least 2^-BOUND: a loss that is infinite must not meet it.
    if (GAMMA_NEGATIVE || (MIXED && GAMMA_POSITIVE)) slope = q + gamma * p * at_most(nll, fill(BOUND * LN2 + 1));
    gradient = modulation * slope * gradient_factor;
    if (MIXED) {
        loss = positive ? loss * (s.positive_factor * s.lam / s.negative_factor) : loss;
        gradient = positive ? gradient * (-s.positive_factor / s.negative_factor) : gradient;
    }
}

struct Row {
    const Logit* logits;
    Logit* gradient;
    float rate, gradient_factor;  // rate: beta / log(2) over the row's sum of 1/n
};

// Vectors [first, last) of a row as if without positives; the sum of the losses of those whose `keep` is all ones.
template <bool VALUE, bool GRADIENT>
static V negatives(const Row row, const Labels labels, const Settings s, const int32_t* keep, int64_t first,
                   int64_t last) {
    V total{};
    for (int64_t k = first; k < last; ++k) {
        int64_t i = k * W;
        V loss, gradient;
        vector<false>(load_logits(row.logits + i), BIAS ? load<V>(labels.bias + i) : V{},
                      REBALANCED ? load<V>(labels.inverse_frequency + i) : V{},
                      LABEL_WEIGHT ? load<V>(labels.weight + i) : V{}, I{}, s, row.rate, row.gradient_factor, loss,
                      gradient);
        if (VALUE) total += (V)((I)loss & (I{} + keep[k - first]));
        if (GRADIENT) store_logits(row.gradient + i, gradient);
    }
    return total;
}

// `count` numbers, and zeros behind them.
template <class T> struct Some {
    T at[W] = {};
    Some(const T* from, int64_t count) { std::memcpy(at, from, count * sizeof *at); }
};

// `count` elements from column i, some of them positive: a bit for each. z: their logits.
template <bool GRADIENT>
static V mixed(const Row& row, const Labels& labels, const Settings& s, V z, int64_t i, int64_t count,
               uint32_t positive) {
    I bit;
    for (int lane = 0; lane < W; ++lane) bit[lane] = 1 << lane;
    auto constants = [=](const float* from) {
        return count == W ? load<V>(from + i) : load<V>(Some<float>(from + i, count).at);
    };
    V loss, gradient;
    vector<true>(z, BIAS ? constants(labels.bias) : V{}, REBALANCED ? constants(labels.inverse_frequency) : V{},
                 LABEL_WEIGHT ? constants(labels.weight) : V{}, ((I{} + (int32_t)positive) & bit) != 0, s, row.rate,
                 row.gradient_factor, loss, gradient);
    if (GRADIENT && count == W) store_logits(row.gradient + i, gradient);
    if (count == W) return loss;
    if (GRADIENT) {
        Logit g[W];
        store_logits(g, gradient);
        std::memcpy(row.gradient + i, g, count * sizeof *g);
    }
    return bit < (I{} + (int32_t)(1 << count)) ? loss : V{};
}

// Vectors after which a lane's float32 sum goes over into float64.
constexpr int64_t RUN = 64;

// Columns [first, last) of a row. Of every run of vectors those with a positive are set aside, and done again after the
// run, which takes all for negatives and may write over the logits.
template <bool VALUE, bool GRADIENT>
static double row_block(const Row& row, const Labels& labels, const Settings& s, int64_t first, int64_t last,
                        const int64_t* label, const int64_t* end) {
    D total{};
    int64_t whole = last / W;
    auto next = [&](int64_t k) {
        uint32_t positive = 0;
        for (; label < end && *label / W == k; ++label) positive |= 1u << *label % W;
        return positive;
    };
    int32_t keep[RUN];
    std::memset(keep, -1, sizeof keep);
    for (int64_t run = first / W; run < whole; run += RUN) {
        int64_t stop = run + RUN < whole ? run + RUN : whole;
        V z[RUN];
        int64_t aside[RUN], count = 0;
        uint32_t positive[RUN];
        while (label < end && *label < stop * W && count < RUN) {
            int64_t k = *label / W;
            if (k < run) {  // ids out of order, which nobody checked
                ++label;
                continue;
            }
            aside[count] = k;
            z[count] = load_logits(row.logits + k * W);
            keep[k - run] = 0;
            positive[count++] = next(k);
        }
        total += __builtin_convertvector((negatives<VALUE, GRADIENT>(row, labels, s, keep, run, stop)), D);
        for (int64_t k = 0; k < count; ++k) {
            keep[aside[k] - run] = -1;
            V loss = mixed<GRADIENT>(row, labels, s, z[k], aside[k] * W, W, positive[k]);
            total += __builtin_convertvector(loss, D);
        }
    }
    if (last % W) {
        V z = load_logits(Some<Logit>(row.logits + whole * W, last % W).at);
        total += __builtin_convertvector((mixed<GRADIENT>(row, labels, s, z, whole * W, last % W, next(whole))), D);
    }
    double sum = 0;
    for (int lane = 0; lane < W; ++lane) sum += total[lane];
    return sum;
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
// may be `logits`. Strides in elements; `row_sum` (the row's sum of 1/n over all its labels) is made here where it is
// null.
template <bool VALUE, bool GRADIENT>
static void run(const Logit* logits, int64_t logits_stride, Logit* gradient, int64_t gradient_stride, int64_t rows,
                int64_t columns, const Target* targets, int64_t targets_stride, const int64_t* crow, const int64_t* col,
                const float* row_sum, const float* row_weight, const float* bias, const float* inverse_frequency,
                const float* label_weight, const Settings& s, float* loss, int threads) {
    const Labels labels{bias, inverse_frequency, label_weight};
    // Few rows are cut into blocks of columns, so that every thread has some.
    int64_t blocks = rows >= 4 * threads ? 1 : (4 * threads + rows - 1) / rows;
    int64_t width = ((columns + blocks - 1) / blocks + W - 1) / W * W;
    blocks = (columns + width - 1) / width;
    std::vector<double> part(VALUE ? rows * blocks : 0);
#pragma omp parallel num_threads(threads)
    {
        FlushDenormals flush;
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
            float rate = REBALANCED ? s.beta * LOG2E / (row_sum ? row_sum[k] : (float)total) : 0.0f;
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
