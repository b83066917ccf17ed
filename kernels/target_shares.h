#pragma once

// Soft targets: dense floating-point targets of which some lie between 0 and 1.

#include "row_labels.h"
#include "vector_math.h"

typedef uint16_t Shorts __attribute__((vector_size(W * 2)));
typedef uint32_t Words32 __attribute__((vector_size(W * 4)));
typedef float Floats __attribute__((vector_size(W * 4)));

// Without float16 instructions, which not every processor has, and without denormal floats, which are taken for 0 here.
static inline V from_float16(Shorts bits) {
    I signed_bits = __builtin_convertvector(bits, I), magnitude = signed_bits & 0x7fff;
    I exponent = magnitude >> 10, normal = exponent > 0;
    I mantissa = (magnitude & 0x3ff) | (normal & 0x400);
    exponent = normal ? exponent : I{} + 1;
    V power = (V)((exponent + (Integer)(EXPONENT_OF_ONE - 25)) << MANTISSA_BITS);
    V value = __builtin_convertvector(mantissa, V) * power;
    return signed_bits == magnitude ? value : -value;
}

// Targets of one row; `targets` is null where all of them are 0 or 1.
struct Shares {
    const void* targets;
    int64_t format;

    // `count` targets from column i; NaN where one lies outside [0, 1].
    V load(int64_t i, int64_t count) const {
        V y{};
        switch (format) {
            case FLOAT16: y = from_float16(load_some<Shorts>((const uint16_t*)targets + i, count)); break;
            case BFLOAT16: {
                Words32 bits = __builtin_convertvector(load_some<Shorts>((const uint16_t*)targets + i, count), Words32);
                y = __builtin_convertvector((Floats)(bits << 16), V);
                break;
            }
            case FLOAT32: y = __builtin_convertvector(load_some<Floats>((const float*)targets + i, count), V); break;
            case FLOAT64: {
                D wide = load_some<D>((const double*)targets + i, count);
                // What rounds to 0 or 1 may lie outside [0, 1] all the same.
                wide = (wide < 0) | (wide > 1) ? D{} - 1 : wide;
                y = __builtin_convertvector(wide, V);
                break;
            }
        }
        // A comparison with NaN is false.
        I valid = (y >= 0) & (y <= 1);
        return valid ? y : fill(std::numeric_limits<Number>::quiet_NaN());
    }

    // Sum of target times value over columns [0, columns); targets outside [0, 1] count as 0.
    double dot(const Number* value, int64_t columns) const {
        D total{};
        for (int64_t i = 0; i < columns; i += W) {
            int64_t count = columns - i < W ? columns - i : W;
            V share = load(i, count);
            share = share == share ? share : V{};
            total += __builtin_convertvector((V)(share * load_some<V>(value + i, count)), D);
        }
        return sum_of(total);
    }
};

static Shares shares_of_row(const void* targets, int64_t targets_stride, int64_t row, int64_t format) {
    int64_t bytes = format == BFLOAT16 ? 2 : format - 10;
    return {(const uint8_t*)targets + row * targets_stride * bytes, format};
}
