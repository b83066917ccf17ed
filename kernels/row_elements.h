#pragma once

// One row of a call, and a vector of its elements in the general and in the soft form: with label mask, upstream
// gradient and results for each element.

#include "balanced_element.h"
#include "target_shares.h"

// One row of a call.
struct Row {
    const Logit* logits;
    Logit* gradient;
    const uint8_t* mask;
    const Number* upstream;
    Number* elements;
    RowFactors factors;
    Number loss_factor;  // of `elements`
    Shares shares;       // of the row's targets
    bool soft;           // whether vectors with a label take the soft form
    bool all_soft;       // whether all vectors do

    // Whether nothing but loss and gradient of the whole row is asked for.
    bool plain() const { return !mask && !upstream && !elements; }

    // Makes loss and gradient of an element NaN, unless it is masked out; returns whether it did.
    bool spoil(int64_t i) const {
        if (mask && !mask[i]) return false;
        if (gradient) gradient[i] = LOGIT_NAN;
        if (elements) elements[i] = std::numeric_limits<Number>::quiet_NaN();
        return true;
    }
};

struct Labels {  // constants of the labels, [columns]
    const Number *bias, *inverse_frequency, *weight, *positive_weight;
};

static inline I lanes() {
    I lane;
    for (int k = 0; k < W; ++k) lane[k] = k;
    return lane;
}

// All ones in the lanes whose bit is set.
static inline I lanes_of(uint32_t bits) {
    I bit;
    for (int k = 0; k < W; ++k) bit[k] = 1 << k;
    return ((I{} + (Integer)bits) & bit) != 0;
}

// Stores what was computed of `count` elements from column i. Returns the losses of those from `fresh` on: what is
// before was counted already.
static inline V finish(const Row& row, V loss, V gradient, int64_t i, int64_t count, int64_t fresh) {
    I keep = lanes() < (Integer)count;
    if (row.mask) keep &= __builtin_convertvector(load_some<Bytes>(row.mask + i, count), I) != 0;
    loss = keep ? loss : V{};
    if (row.elements) {
        V scaled = keep ? loss * row.loss_factor : V{};
        store_some(row.elements + i, scaled, count);
    }
    if (row.gradient) {
        if (row.upstream) gradient *= load_some<V>(row.upstream + i, count);
        gradient = keep ? gradient : V{};
        if (count == W) {
            store_logits(row.gradient + i, gradient);
        } else {
            Logit stored[W];
            store_logits(stored, gradient);
            std::memcpy(row.gradient + i, stored, count * sizeof *stored);
        }
    }
    return lanes() < (Integer)fresh ? V{} : loss;
}

// `count` elements from column i, of which some may be positive: a bit for each. z: their logits.
static V general(const Row& row, const Labels& labels, const Settings& s, V z, int64_t i, int64_t count,
                 uint32_t positive, int64_t fresh) {
    V weight = LABEL_WEIGHT ? load_some<V>(labels.weight + i, count) : V{}, factor = fill(s.positive_factor);
    I is_positive = lanes_of(positive);
    if (labels.positive_weight) {
        factor = factor * load_some<V>(labels.positive_weight + i, count);
        weight = is_positive ? fill(1) : weight;
    }
    V loss, gradient;
    balanced_element<true>(z, BIAS ? load_some<V>(labels.bias + i, count) : V{},
                           REBALANCED ? load_some<V>(labels.inverse_frequency + i, count) : V{}, weight, factor,
                           is_positive, s, row.factors, loss, gradient);
    return finish(row, loss, gradient, i, count, fresh);
}

// Loss and gradient with both parts of the loss; the bits count where the row has no soft targets. Always inlined:
// where `count` is known to be W, many of its branches and copies fall away.
__attribute__((always_inline)) static inline void soft_vector(const Row& row, const Labels& labels, const Settings& s,
                                                              V z, int64_t i, int64_t count, uint32_t positive,
                                                              V& loss, V& gradient) {
    V target = row.shares.targets ? row.shares.load(i, count) : lanes_of(positive) ? fill(1) : V{};
    V weight = LABEL_WEIGHT ? load_some<V>(labels.weight + i, count) : fill(1);
    V factor = s.positive_factor * (labels.positive_weight ? load_some<V>(labels.positive_weight + i, count) : weight);
    soft_element(z, BIAS ? load_some<V>(labels.bias + i, count) : V{},
                 REBALANCED ? load_some<V>(labels.inverse_frequency + i, count) : V{}, target, factor, weight, s,
                 row.factors, loss, gradient);
}

// As `general`, in the soft form.
static V soft(const Row& row, const Labels& labels, const Settings& s, V z, int64_t i, int64_t count,
              uint32_t positive, int64_t fresh) {
    V loss, gradient;
    soft_vector(row, labels, s, z, i, count, positive, loss, gradient);
    return finish(row, loss, gradient, i, count, fresh);
}
