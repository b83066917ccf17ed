// In-place step of some rows of a linear classifier on the CPU: what classifier_update.py is to a GPU.
//
// Built once for each combination of the macros: ADAMW (0: SGD), STOCHASTIC (rounding to bfloat16) (0 or 1), WEIGHT and
// BIAS (bits of a number: 32: float, 16: bfloat16; BIAS 0: none), FIRST (the weight's first moment: 32, 16, or 0: none)
// and SECOND (the weight's second moment: 32, 16, 1: one float a row, or 0: none). The bias' moments are floats. The
// loops are written for the compiler to make vectors of.

#include <cmath>
#include <cstdint>
#include <cstring>

#include "flush_denormals.h"

template <int BITS> struct Number { typedef float type; };
template <> struct Number<16> { typedef uint16_t type; };

static inline float load(float x) { return x; }
static inline float load(uint16_t x) {
    uint32_t bits = (uint32_t)x << 16;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

// Wellons' "lowbias32" finalizer.
static inline uint32_t mix(uint32_t x) {
    x = (x ^ x >> 16) * 0x7feb352du;
    x = (x ^ x >> 15) * 0x846ca68bu;
    return x ^ x >> 16;
}

// To float as it is; to bfloat16 by the random bits of the element's place, or to the nearest.
static inline void store(float& to, float value, uint32_t, uint32_t) { to = value; }
static inline void store(uint16_t& to, float value, uint32_t row_key, uint32_t column) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    uint32_t added = STOCHASTIC ? mix(row_key ^ column * 0x9e3779b9u) >> 16 : (bits >> 16 & 1) + 0x7fff;
    // Rounding must not carry a NaN over into infinity.
    to = (value == value ? bits + added : bits | 0x400000u) >> 16;
}

struct Settings {
    float factor, rate, keep, root;  // the numbers of a step
    float momentum, one_minus_beta1, beta2, one_minus_beta2, eps, weight_decay, max_row_norm;
};

// One number after a step; `square`: what the second moment averages.
static inline void step(const Settings& s, float g, float square, float& value, float& first, float& second) {
    if (ADAMW) {
        first += s.one_minus_beta1 * (g - first);
        second = s.beta2 * second + s.one_minus_beta2 * square;
        value = value * s.keep - s.rate * (first / (std::sqrt(second) / s.root + s.eps));
    } else {
        if (s.weight_decay) g += s.weight_decay * value;  // infinities stay where there is no decay
        first = s.momentum * first + g;
        value -= s.rate * first;
    }
}

typedef Number<WEIGHT>::type Weight;
typedef Number<FIRST>::type First;
typedef Number<SECOND>::type Second;
typedef Number<BIAS>::type Bias;

enum { OF_WEIGHT, OF_FIRST, OF_SECOND, OF_BIAS };  // which tensor random bits are for

static inline void step_row(const Settings& s, const uint32_t* keys, float factor, float mean_square,
                            const float* gradient, Weight* weight, First* first, Second* second, int64_t columns) {
    float row_second = SECOND == 1 ? load(*second) : 0;
#pragma omp simd
    for (int64_t i = 0; i < columns; ++i) {
        float g = gradient[i] * factor, value = load(weight[i]);
        float one = FIRST ? load(first[i]) : 0, two = SECOND > 1 ? load(second[i]) : row_second;
        step(s, g, SECOND > 1 ? g * g : mean_square, value, one, two);
        store(weight[i], value, keys[OF_WEIGHT], i);
        if (FIRST) store(first[i], one, keys[OF_FIRST], i);
        if (SECOND > 1) store(second[i], two, keys[OF_SECOND], i);
    }
    if (SECOND == 1) *second = s.beta2 * row_second + s.one_minus_beta2 * mean_square;
}

// Gradient and moments [rows, columns], rows side by side; weight by its stride. bias_gradient, bias and its moments
// [rows]. Pointers to what the macros leave out are not looked at. first_row: the label of row 0. numbers: Settings,
// max_row_norm 0 for no limit. seed, number of the step: what the random bits come from, with an element's place.
extern "C" void classifier_update(const float* gradient, const float* bias_gradient, void* weight_to,
                                  int64_t weight_stride, void* first_to, void* second_to, void* bias_to,
                                  float* bias_first, float* bias_second, int64_t rows, int64_t columns,
                                  int64_t first_row, const float* numbers, int64_t seed, int64_t number, int threads) {
    Settings s;
    std::memcpy(&s, numbers, sizeof s);
    Weight* weight = (Weight*)weight_to;
    First* first = (First*)first_to;
    Second* second = (Second*)second_to;
    Bias* bias = (Bias*)bias_to;
    uint32_t key = mix(mix((uint32_t)seed) ^ (uint32_t)(seed >> 32)), keys[4];
    for (int which = 0; which < 4; ++which) keys[which] = mix(key ^ (uint32_t)(number * 4 + which));
#pragma omp parallel num_threads(threads)
    {
        FlushDenormals flush;
#pragma omp for schedule(static)
        for (int64_t row = 0; row < rows; ++row) {
            const float* g = gradient + row * columns;
            float shrink = 1, square = 0;
            if (s.max_row_norm || SECOND == 1) {
#pragma omp simd reduction(+ : square)
                for (int64_t i = 0; i < columns; ++i) square += g[i] * s.factor * (g[i] * s.factor);
            }
            float bias_g = BIAS ? bias_gradient[row] * s.factor : 0;
            if (s.max_row_norm) {
                float norm = std::sqrt(square + bias_g * bias_g);
                // A NaN stays in sight.
                shrink = norm <= s.max_row_norm ? 1 : s.max_row_norm / norm;
            }
            uint32_t row_keys[4];
            for (int which = 0; which < 4; ++which) row_keys[which] = mix(keys[which] ^ (uint32_t)(first_row + row));
            // A square may be infinite where the gradient is not: clipped to nothing.
            float mean_square = shrink == 0 ? 0 : square * shrink * shrink / columns;
            step_row(s, row_keys, s.factor * shrink, mean_square, g, weight + row * weight_stride,
                     first + row * columns, second + row * (SECOND > 1 ? columns : 1), columns);
            if (BIAS) {
                bias_g *= shrink;
                float value = load(bias[row]), one = FIRST ? bias_first[row] : 0, two = ADAMW ? bias_second[row] : 0;
                step(s, bias_g, bias_g * bias_g, value, one, two);
                store(bias[row], value, row_keys[OF_BIAS], 0);
                if (FIRST) bias_first[row] = one;
                if (ADAMW) bias_second[row] = two;
            }
        }
    }
}
