#pragma once

// Vectors of the numbers that the loss is computed in, and the few functions it needs of them.
//
// LOGITS says which format the logits have: 32: float, 16: bfloat16, 116: float16, 64: double. The numbers are floats,
// or doubles for double.

#include <cstdint>
#include <cstring>
#include <limits>
#if defined(__AVX512DQ__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
constexpr int VECTOR_BYTES = 64;
#elif defined(__AVX__)
constexpr int VECTOR_BYTES = 32;
#else
constexpr int VECTOR_BYTES = 16;
#endif

#if LOGITS == 64
typedef double Number;
typedef int64_t Integer;
#else
typedef float Number;
typedef int32_t Integer;
#endif

constexpr int W = VECTOR_BYTES / sizeof(Number);  // numbers of a vector

typedef Number V __attribute__((vector_size(VECTOR_BYTES)));
typedef Integer I __attribute__((vector_size(VECTOR_BYTES)));
typedef double D __attribute__((vector_size(W * 8)));
typedef uint8_t Bytes __attribute__((vector_size(W)));

static inline double sum_of(const D& x) {
    double sum = 0;
    for (int lane = 0; lane < W; ++lane) sum += x[lane];
    return sum;
}

static inline V fill(Number x) { return x - V{}; }

template <class T> static inline T load(const void* from) {
    T x;
    std::memcpy(&x, from, sizeof x);
    return x;
}

#if LOGITS == 16
typedef uint16_t Logit;
typedef uint16_t Halves __attribute__((vector_size(W * 2)));
typedef uint32_t U __attribute__((vector_size(W * 4)));
constexpr Logit LOGIT_NAN = 0x7fc0;
static inline V load_logits(const Logit* from) { return (V)(__builtin_convertvector(load<Halves>(from), U) << 16); }
static inline void store_logits(Logit* to, V x) {
    U bits = (U)x;
    U even = bits + 0x7fffu + ((bits >> 16) & 1u);
    // Rounding must not carry a NaN over into infinity.
    Halves half = __builtin_convertvector((U)(x == x ? (I)even : (I)(bits | 0x400000u)) >> 16, Halves);
    std::memcpy(to, &half, sizeof half);
}
#elif LOGITS == 116
typedef _Float16 Logit;
typedef _Float16 Halves __attribute__((vector_size(W * 2)));
constexpr Logit LOGIT_NAN = std::numeric_limits<float>::quiet_NaN();
static inline V load_logits(const Logit* from) { return __builtin_convertvector(load<Halves>(from), V); }
static inline void store_logits(Logit* to, V x) {
    Halves half = __builtin_convertvector(x, Halves);
    std::memcpy(to, &half, sizeof half);
}
#else
typedef Number Logit;
constexpr Logit LOGIT_NAN = std::numeric_limits<Number>::quiet_NaN();
static inline V load_logits(const Logit* from) { return load<V>(from); }
static inline void store_logits(Logit* to, V x) { std::memcpy(to, &x, sizeof x); }
#endif

// `count` numbers, and zeros behind them.
template <class T> struct Some {
    T at[W] = {};
    Some(const T* from, int64_t count) { std::memcpy(at, from, count * sizeof *at); }
};

static inline V load_some_logits(const Logit* from, int64_t count) {
    return load_logits(count == W ? from : Some<Logit>(from, count).at);
}

template <class Vector, class T> static inline Vector load_some(const T* from, int64_t count) {
    return count == W ? load<Vector>(from) : load<Vector>(Some<T>(from, count).at);
}

template <class T> static inline void store_some(T* to, V from, int64_t count) {
    if (count == W) std::memcpy(to, &from, sizeof from);
    else std::memcpy(to, &from, count * sizeof *to);
}

// A NaN passes through: the comparison with it is false.
static inline V at_most(V x, V bound) { return bound < x ? bound : x; }
static inline V at_least(V x, V bound) { return bound > x ? bound : x; }

constexpr double LN2 = 0.693147180559945309;

#if LOGITS == 64

// The base of `exponential` is e: a reduction in two steps keeps the last digits, which a product with log2(e) loses.
constexpr double LOG_BASE_OF_E = 1, LOG_OF_BASE = 1;
// Largest argument whose exponential is taken; a product of two such exponentials is finite.
constexpr double BOUND = 340;
constexpr int MANTISSA_BITS = 52, EXPONENT_OF_ONE = 1023;
// A sum with it has the nearest integer in its last bits.
constexpr double ROUNDER = 6755399441055744.0;

// e^x for x <= BOUND, to about one unit in the last place.
static inline V exponential(V x) {
    x = at_least(x, fill(-707.0));
    V shifted = x * (1 / LN2) + ROUNDER;
    V n = shifted - ROUNDER;
    // ln(2) in two parts, of which the first times n is exact.
    V f = x - n * 0x1.62e42feep-1;
    f = f - n * 0x1.a39ef35793c76p-33;
    // e^f = 1 + f + f^2 y, y fitted by Chebyshev interpolation on |f| <= ln(2) / 2; 1.3e-17 before rounding.
    V y = 2.510038549551032e-08 * f + 2.7620088445409746e-07;
    y = y * f + 2.7557268459997064e-06;
    y = y * f + 2.4801521295954376e-05;
    y = y * f + 0.00019841269863053618;
    y = y * f + 0.0013888888917213717;
    y = y * f + 0.008333333333330062;
    y = y * f + 0.04166666666662413;
    y = y * f + 0.16666666666666669;
    y = y * f + 0.5000000000000001;
    y = f * f * y + f + 1.0;
    V power = (V)(((I)shifted << MANTISSA_BITS) + ((Integer)EXPONENT_OF_ONE << MANTISSA_BITS));
    return x > -707.0 ? y * power : V{} + 0.0 * x;
}

// -log(1 - m) for m in [0, 1/2]: twice artanh(s) = s + s^3 y, s = m / (2 - m); y fitted by Chebyshev interpolation on
// s^2 <= 1/9, 1.4e-19 before rounding.
static inline V minus_log1p(V m) {
    V s = m / (2.0 - m), square = s * s;
    V y = 0.078152889005022 * square + 0.03746071897751629;
    y = y * square + 0.05422589197445937;
    y = y * square + 0.0586713953065077;
    y = y * square + 0.066675893157247;
    y = y * square + 0.07692271982430271;
    y = y * square + 0.09090909948981357;
    y = y * square + 0.11111111099118386;
    y = y * square + 0.1428571428580005;
    y = y * square + 0.19999999999999762;
    y = y * square + 0.3333333333333333;
    return 2.0 * (s + s * square * y);
}

#else

// The base of `exponential` is 2.
constexpr float LOG_BASE_OF_E = 1 / LN2, LOG_OF_BASE = LN2;
constexpr float BOUND = 60;
constexpr int MANTISSA_BITS = 23, EXPONENT_OF_ONE = 127;
constexpr float ROUNDER = 12582912.0f;

// 2^x for x <= 127 to 1.4e-7, besides what rounding of x makes.
static inline V exponential(V x) {
#if defined(__AVX512DQ__)
    V f = (V)_mm512_reduce_ps((__m512)x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
#else
    // The sum's last bits hold the integer below x, or at it.
    x = at_least(x, fill(-126.5f));
    V shifted = (x - 0.5f) + ROUNDER;
    V f = x - (shifted - ROUNDER);
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
    V power = (V)(((I)shifted << MANTISSA_BITS) + (EXPONENT_OF_ONE << MANTISSA_BITS));
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

#endif

// Halvings k >= 0 and m in [0, 1/2] with x = 2^-k (1 - m), for x in (0, 1): -log(x) is k ln(2) + minus_log1p(m).
static inline V halvings(V x, V& m) {
    I bits = (I)x, k = (EXPONENT_OF_ONE - 1) - (bits >> MANTISSA_BITS);
    I mantissa = bits & (((Integer)1 << MANTISSA_BITS) - 1);
    m = 1 - (V)(mantissa | ((Integer)(EXPONENT_OF_ONE - 1) << MANTISSA_BITS));
    return (V)((I)fill(ROUNDER) + k) - ROUNDER;
}
