// timm's asymmetric and Poly-1 losses of targets between 0 and 1, and their gradient, on the CPU. What they compute stands
// in fused_balanced_loss/integrations/timm/mixed_targets.py.
//
// Built once for each value of LOGITS (vector_math.h). All else is known only when the kernel runs.

#include <limits>
#include <vector>

#include "column_blocks.h"
#include "flush_denormals.h"
#include "vector_math.h"

// One call. Strides are in elements; pointers are null where there is no such tensor. Every member has 8 bytes, so that
// the host can pack them one after the other.
struct Call {
    const Logit* logits;       // [rows, columns]
    int64_t logits_stride;     // from row to row
    Logit* gradient;           // [rows, columns] side by side, to be written
    int64_t rows, columns;
    const void* targets;       // [rows, columns], Numbers in [0, 1] or bytes of 0 and 1
    int64_t targets_stride, bytes;
    const Number* weight;      // [columns]
    const Number* pos_weight;  // [columns]
    Number* elements;          // [rows, columns] side by side: the loss of each, to be written
    Number* loss;              // the sum of the losses, to be written
    int64_t threads;
    double gamma, gamma_negative, margin, poly_epsilon, smoothing, positive_factor, negative_factor;
};

struct Settings {
    Number gamma, gamma_negative, margin, poly_epsilon, smoothing, positive_factor, negative_factor;
    bool focal, factors;
};

// A probability that small counts as not wrong; its power and the quotients by it are finite.
constexpr Number LEAST_WRONG = 1e-30;
// Infinite logits count as this large: their loss times a share of 0 must not be NaN.
constexpr Number LARGEST_LOGIT = 1e20;
// The exponential of anything below shows in no sum with 1.
constexpr Number LEAST_EXPONENT = -2 * BOUND;

// -log(x) for x in (0, 1].
static inline V minus_log(V x) {
    V m, k = halvings(x, m);
    return k * (Number)LN2 + minus_log1p(m);
}

// Loss and slope of one vector; y: the targets, not smoothed.
static inline void mixed_element(V z, V y, V pos_weight, V weight, const Settings& s, V& loss, V& slope) {
    z = at_most(at_least(z, fill(-LARGEST_LOGIT)), fill(LARGEST_LOGIT));
    y = (y >= 0) & (y <= 1) ? y : fill(std::numeric_limits<Number>::quiet_NaN());
    y = y * (1 - s.smoothing) + s.smoothing / 2;
    V no = 1 - y, yes = y * pos_weight;
    I negative = z < 0;
    V e = exponential(at_least((negative ? z : -z) * LOG_BASE_OF_E, fill(LEAST_EXPONENT)));
    V likely = 1 / (1 + e), rare = e * likely;
    V p = negative ? rare : likely, q = negative ? likely : rare, both = p * q;
    V log_part = minus_log1p(rare);
    // Probability of a 1 that counts against target 0, and its -log of the rest.
    V against = p, live = no, nll_negative, slope_negative;
    if (s.margin > 0) {
        against = at_least(p - s.margin, V{});
        V kept = q + s.margin;
        I far = against > (Number)0.5;
        V m, k = halvings(kept, m);
        nll_negative = (far ? k * (Number)LN2 : V{}) + minus_log1p(far ? m : against);
        // A comparison with NaN is false, so a NaN stays live.
        live = against <= 0 ? V{} : no;
        slope_negative = live * both / kept;
    } else {
        nll_negative = log_part + at_least(z, V{});
        slope_negative = no * p;
    }
    V wrong = y * q + no * against, wrong_slope = both * (live - y);
    loss = yes * (log_part + at_least(-z, V{})) + no * nll_negative + s.poly_epsilon * wrong;
    slope = slope_negative - yes * q + s.poly_epsilon * wrong_slope;
    if (s.focal) {
        V gamma = y * s.gamma + no * s.gamma_negative, least = at_least(wrong, fill(LEAST_WRONG));
        V focal = exponential(-gamma * minus_log(least) * LOG_BASE_OF_E);
        slope = focal * (slope + loss * gamma * wrong_slope / least);
        loss = focal * loss;
    }
    if (s.factors) weight = weight * (y * s.positive_factor + no * s.negative_factor);
    loss = loss * weight;
    slope = slope * weight;
}

// Columns [first, last) of row k: the sum of the losses.
static double block(const Call& call, const Settings& s, int64_t k, int64_t first, int64_t last) {
    D total{};
    const Logit* logits = call.logits + k * call.logits_stride;
    int64_t row = k * call.targets_stride;
    for (int64_t i = first; i < last; i += W) {
        int64_t count = last - i < W ? last - i : W;
        V y = call.bytes
                  ? __builtin_convertvector((load_some<Bytes>((const uint8_t*)call.targets + row + i, count)), V)
                  : load_some<V>((const Number*)call.targets + row + i, count);
        V loss, slope;
        mixed_element(load_some_logits(logits + i, count), y,
                      call.pos_weight ? load_some<V>(call.pos_weight + i, count) : fill(1),
                      call.weight ? load_some<V>(call.weight + i, count) : fill(1), s, loss, slope);
        int64_t to = k * call.columns + i;
        if (call.elements) std::memcpy(call.elements + to, &loss, count * sizeof(Number));
        Logit stored[W];
        store_logits(stored, slope);
        std::memcpy(call.gradient + to, stored, count * sizeof *stored);
        if (count == W) {
            total += __builtin_convertvector(loss, D);
        } else {
            for (int lane = 0; lane < count; ++lane) total[lane] += loss[lane];
        }
    }
    return sum_of(total);
}

extern "C" void mixed_targets(const Call* pointer) {
    const Call call = *pointer;
    const Settings s{(Number)call.gamma,
                     (Number)call.gamma_negative,
                     (Number)call.margin,
                     (Number)call.poly_epsilon,
                     (Number)call.smoothing,
                     (Number)call.positive_factor,
                     (Number)call.negative_factor,
                     call.gamma != 0 || call.gamma_negative != 0,
                     call.positive_factor != 1 || call.negative_factor != 1};
    const int64_t threads = call.threads;
    const ColumnBlocks blocks(call.rows, call.columns, threads);
    std::vector<double> part(call.rows * blocks.count);
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        FlushDenormals flush;
#pragma omp for schedule(static)
        for (int64_t task = 0; task < call.rows * blocks.count; ++task) {
            part[task] = block(call, s, task / blocks.count, blocks.first(task), blocks.last(task));
        }
    }
    double total = 0;
    for (double x : part) total += x;
    *call.loss = (Number)total;
}
