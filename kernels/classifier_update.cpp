// In-place step of some rows of a linear classifier on the CPU; classifier_update.py does the same on a GPU.
//
// Each combination of these macros is built once:
//   ADAMW               1: AdamW, 0: SGD
//   STOCHASTIC          1: rounding to bfloat16 is stochastic, 0: to nearest
//   WEIGHT_BITS         bits of a weight: 32 (float) or 16 (bfloat16)
//   BIAS_BITS           bits of a bias: 32, 16, or 0 where there is no bias
//   FIRST_MOMENT_BITS   bits of the weight's first moment: 32, 16, or 0 where there is none
//   SECOND_MOMENT_BITS  bits of the weight's second moment: 32, 16, 0 where there is none, or 1: one float for a row
// The moments of the bias are floats. The loops are written so that the compiler can make vectors of them.

#include <cmath>
#include <cstdint>
#include <cstring>

#include "flush_denormals.h"

template <int BITS> struct Number { typedef float type; };
template <> struct Number<16> { typedef uint16_t type; };

typedef Number<WEIGHT_BITS>::type Weight;
typedef Number<FIRST_MOMENT_BITS>::type FirstMoment;
typedef Number<SECOND_MOMENT_BITS>::type SecondMoment;
typedef Number<BIAS_BITS>::type Bias;

// Which tensor the random bits belong to.
enum { OF_WEIGHT, OF_FIRST_MOMENT, OF_SECOND_MOMENT, OF_BIAS, NUM_TENSORS };

struct Settings {
    // Numbers of the step: rule.py says what they are.
    float gradient_scale, step_size, weight_scale, root_correction;
    // Constants of the rule.
    float momentum, one_minus_beta1, beta2, one_minus_beta2, eps, l2_penalty;
    // Largest norm of a label's gradient; 0: no limit.
    float max_row_norm;
};

static inline float load(float x) { return x; }
static inline float load(uint16_t x) {
    uint32_t bits = (uint32_t)x << 16;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

// Wellons' hash "lowbias32".
static inline uint32_t mix(uint32_t x) {
    x = (x ^ x >> 16) * 0x7feb352du;
    x = (x ^ x >> 15) * 0x846ca68bu;
    return x ^ x >> 16;
}

// Stores a float as it is; rounds to bfloat16 by the random bits of the element's place, or to nearest.
static inline void store(float& to, float value, uint32_t, uint32_t) { to = value; }
static inline void store(uint16_t& to, float value, uint32_t row_key, uint32_t column) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    uint32_t added = STOCHASTIC ? mix(row_key ^ column * 0x9e3779b9u) >> 16 : (bits >> 16 & 1) + 0x7fff;
    // Keep a NaN: the addition could carry it over into another number.
    to = (value == value ? bits + added : bits | 0x400000u) >> 16;
}

// Steps one number; `square` is what the second moment averages.
static inline void step(const Settings& s, float gradient, float square, float& value, float& first_moment,
                        float& second_moment) {
    if (ADAMW) {
        first_moment += s.one_minus_beta1 * (gradient - first_moment);
        second_moment = s.beta2 * second_moment + s.one_minus_beta2 * square;
        float denominator = std::sqrt(second_moment) / s.root_correction + s.eps;
        value = value * s.weight_scale - s.step_size * (first_moment / denominator);
    } else {
        // Without a penalty nothing is added: 0 times an infinite weight would be NaN.
        if (s.l2_penalty) gradient += s.l2_penalty * value;
        first_moment = s.momentum * first_moment + gradient;
        value -= s.step_size * first_moment;
    }
}

static inline void step_row(const Settings& s,
                            const uint32_t* row_keys,     // [NUM_TENSORS]
                            float scale,                  // multiplies the gradient
                            float mean_square,            // of the row's scaled gradient
                            const float* gradient,        // [num_features]
                            Weight* weight,               // [num_features]
                            FirstMoment* first_moment,    // [num_features]
                            SecondMoment* second_moment,  // [num_features], or [1] for SECOND_MOMENT_BITS 1
                            int64_t num_features) {
    float row_second_moment = SECOND_MOMENT_BITS == 1 ? load(*second_moment) : 0;
#pragma omp simd
    for (int64_t i = 0; i < num_features; ++i) {
        float g = gradient[i] * scale, value = load(weight[i]);
        float first = FIRST_MOMENT_BITS ? load(first_moment[i]) : 0;
        float second = SECOND_MOMENT_BITS > 1 ? load(second_moment[i]) : row_second_moment;
        step(s, g, SECOND_MOMENT_BITS > 1 ? g * g : mean_square, value, first, second);
        store(weight[i], value, row_keys[OF_WEIGHT], i);
        if (FIRST_MOMENT_BITS) store(first_moment[i], first, row_keys[OF_FIRST_MOMENT], i);
        if (SECOND_MOMENT_BITS > 1) store(second_moment[i], second, row_keys[OF_SECOND_MOMENT], i);
    }
    if (SECOND_MOMENT_BITS == 1) *second_moment = s.beta2 * row_second_moment + s.one_minus_beta2 * mean_square;
}

// Steps num_rows rows. A pointer to what the macros leave out is null and is not read.
extern "C" void classifier_update(
    // Gradients: of the weight [num_rows, num_features], rows side by side; of the bias [num_rows].
    const float* weight_gradient, const float* bias_gradient,
    // The weight [num_rows, num_features] by weight_stride, its first moment [num_rows, num_features], and its second
    // moment [num_rows, num_features], or [num_rows] for SECOND_MOMENT_BITS 1.
    void* weight_ptr, int64_t weight_stride, void* first_moment_ptr, void* second_moment_ptr,
    // The bias [num_rows] and its moments [num_rows].
    void* bias_ptr, float* bias_first_moment, float* bias_second_moment,
    // Shape of the chunk, and the label of its first row.
    int64_t num_rows, int64_t num_features, int64_t first_label,
    // Settings, and what the random bits are made from together with an element's place.
    const Settings* settings, int64_t seed, int64_t step_number,
    // Threads.
    int threads) {
    const Settings s = *settings;
    Weight* weight = (Weight*)weight_ptr;
    FirstMoment* first_moment = (FirstMoment*)first_moment_ptr;
    SecondMoment* second_moment = (SecondMoment*)second_moment_ptr;
    Bias* bias = (Bias*)bias_ptr;
    const int64_t second_moment_stride = SECOND_MOMENT_BITS > 1 ? num_features : 1;
    uint32_t key = mix(mix((uint32_t)seed) ^ (uint32_t)(seed >> 32)), keys[NUM_TENSORS];
    for (int which = 0; which < NUM_TENSORS; ++which) keys[which] = mix(key ^ (uint32_t)(step_number * 4 + which));
#pragma omp parallel num_threads(threads)
    {
        FlushDenormals flush;
#pragma omp for schedule(static)
        for (int64_t row = 0; row < num_rows; ++row) {
            const float* g = weight_gradient + row * num_features;
            float shrink = 1, square = 0;
            if (s.max_row_norm || SECOND_MOMENT_BITS == 1) {
#pragma omp simd reduction(+ : square)
                for (int64_t i = 0; i < num_features; ++i) {
                    float scaled = g[i] * s.gradient_scale;
                    square += scaled * scaled;
                }
            }
            float bias_g = BIAS_BITS ? bias_gradient[row] * s.gradient_scale : 0;
            if (s.max_row_norm) {
                float norm = std::sqrt(square + bias_g * bias_g);
                // A NaN must stay visible in the weight: the comparison is false for it.
                shrink = norm <= s.max_row_norm ? 1 : s.max_row_norm / norm;
            }
            uint32_t row_keys[NUM_TENSORS];
            for (int which = 0; which < NUM_TENSORS; ++which)
                row_keys[which] = mix(keys[which] ^ (uint32_t)(first_label + row));
            // A square may be infinite where the gradient is finite; such a row is clipped to 0, and so is its square.
            float mean_square = shrink == 0 ? 0 : square * shrink * shrink / num_features;
            step_row(s, row_keys, s.gradient_scale * shrink, mean_square, g, weight + row * weight_stride,
                     first_moment + row * num_features, second_moment + row * second_moment_stride, num_features);
            if (BIAS_BITS) {
                bias_g *= shrink;
                float value = load(bias[row]);
                float first = FIRST_MOMENT_BITS ? bias_first_moment[row] : 0;
                float second = ADAMW ? bias_second_moment[row] : 0;
                step(s, bias_g, bias_g * bias_g, value, first, second);
                store(bias[row], value, row_keys[OF_BIAS], 0);
                if (FIRST_MOMENT_BITS) bias_first_moment[row] = first;
                if (ADAMW) bias_second_moment[row] = second;
            }
        }
    }
}
