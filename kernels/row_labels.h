#pragma once

// The positive columns of a row, from label ids or from dense targets of any format.

#include <cstdint>
#include <cstring>
#include <vector>

// Formats of dense targets: integers (and bool) by their bytes, floating-point numbers by 10 more, bfloat16 apart.
enum TargetFormat { INT8 = 1, INT16 = 2, INT32 = 4, INT64 = 8, FLOAT16 = 12, BFLOAT16 = 13, FLOAT32 = 14, FLOAT64 = 18 };

struct RowLabels {
    const int64_t *begin, *end;  // columns whose target is above 0, ascending
    bool valid;                  // false: label ids that must not be used; there are then no columns

    // Leaves only the columns in [first, last).
    void narrow(int64_t first, int64_t last) {
        while (begin < end && *begin < first) ++begin;
        while (begin < end && *(end - 1) >= last) --end;
    }
};

// Row k of label ids. Nobody may have checked them: offsets outside `col`, ids outside the columns and ids that do not
// ascend make the row invalid.
static RowLabels labels_of_ids(const int64_t* crow, const int64_t* col, int64_t num_ids, int64_t k, int64_t columns) {
    int64_t start = crow[k], stop = crow[k + 1];
    bool valid = 0 <= start && start <= stop && stop <= num_ids;
    int64_t before = -1;
    for (int64_t i = start; valid && i < stop; ++i) {
        valid = col[i] > before && col[i] < columns;
        before = col[i];
    }
    if (!valid) return {nullptr, nullptr, false};
    return {col + start, col + stop, true};
}

constexpr int64_t STRIDE = 16;

template <class Bits> struct Words {
    uint64_t at[STRIDE * sizeof(Bits) / sizeof(uint64_t)];
};

// Columns in [first, last) of a dense row: labels to `labels`, targets outside [0, 1] to `odd`. Returns the number of
// soft targets, which lie between 0 and 1 and are labels too; above `most_soft` of them it returns at once.
// one: the bits of 1; digits: the bits that are all 0 in a 0 (a sign may be set).
template <class Bits>
static int64_t find(const Bits* targets, Bits one, Bits digits, int64_t first, int64_t last, int64_t most_soft,
                    std::vector<int64_t>& labels, std::vector<int64_t>& odd) {
    int64_t soft = 0;
    for (int64_t start = first; start < last; start += STRIDE) {
        int64_t stop = start + STRIDE < last ? start + STRIDE : last;
        if (stop - start == STRIDE) {
            Words<Bits> words;
            std::memcpy(&words, targets + start, sizeof words);
            uint64_t any = 0;
            for (uint64_t word : words.at) any |= word;
            if (!any) continue;
        }
        for (int64_t i = start; i < stop; ++i) {
            if (targets[i] == one) {
                labels.push_back(i);
            } else if (targets[i] & digits) {
                // The bits of numbers in (0, 1) are below those of 1, and no others but 0 are.
                if (targets[i] > one) {
                    odd.push_back(i);
                } else {
                    labels.push_back(i);
                    if (++soft > most_soft) return soft;
                }
            }
        }
    }
    return soft;
}

// As `find`, of a row `row` of dense targets [., targets_stride] of a TargetFormat.
static int64_t find_in_row(const void* targets, int64_t targets_stride, int64_t row, int64_t format, int64_t first,
                           int64_t last, int64_t most_soft, std::vector<int64_t>& labels, std::vector<int64_t>& odd) {
    labels.clear();
    odd.clear();
    int64_t from = row * targets_stride;
    auto find_bits = [&](auto one, auto digits) {
        return find((const decltype(one)*)targets + from, one, digits, first, last, most_soft, labels, odd);
    };
    switch (format) {
        case INT8: return find_bits((uint8_t)1, (uint8_t)~0);
        case INT16: return find_bits((uint16_t)1, (uint16_t)~0);
        case FLOAT16: return find_bits((uint16_t)0x3c00, (uint16_t)0x7fff);
        case BFLOAT16: return find_bits((uint16_t)0x3f80, (uint16_t)0x7fff);
        case INT32: return find_bits((uint32_t)1, ~(uint32_t)0);
        case FLOAT32: return find_bits((uint32_t)0x3f800000, (uint32_t)0x7fffffff);
        case INT64: return find_bits((uint64_t)1, ~(uint64_t)0);
        case FLOAT64: return find_bits((uint64_t)1023 << 52, ~(uint64_t)0 >> 1);
    }
    return 0;
}
