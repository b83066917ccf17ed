#pragma once

// The algebra of the loss for one vector of elements: what element.py is to a GPU.
//
// Macros: GAMMA (of the negatives: 0, 1, 2, 4, or -1: any other), MARGIN, POLY, BIAS, REBALANCED and LABEL_WEIGHT (0 or
// 1).

#include "vector_math.h"

struct Settings {
    Number gamma_positive, gamma_negative, margin;
    Number lam, alpha, mu;
    Number beta, midpoint;   // beta and beta * mu in the base of `exponential`
    Number positive_factor;  // over the negative factor, which is applied to whole rows
    Number poly_epsilon;
    Number kept_share, smoothing;  // a target's share of the loss is target * kept_share + smoothing
    bool steep;              // whether beta * mu is above STEEP
};

// From here on the rebalanced weight takes two operations more, which keep its digits.
constexpr double STEEP = 20;

struct RowFactors {
    Number reciprocal_row_sum;  // 1 over the row's sum of 1/n
    Number rate;                // beta times that, in the base of `exponential`
    Number gradient_factor;     // multiplies the gradient
};

static inline V power_of(V q, V log_q, Number gamma) {
    if (gamma == 0) return fill(1);
    if (gamma == 1) return q;
    if (gamma == 2) return q * q;
    if (gamma == 4) return q * q * (q * q);
    return exponential(gamma * log_q);
}

// q**GAMMA; log_q: log(q) in the base of `exponential`.
static inline V power_of_negative(V q, V log_q, const Settings& s) {
    return GAMMA < 0 ? exponential(s.gamma_negative * log_q) : power_of(q, log_q, GAMMA);
}

// What the loss of one part (target 1, or target 0) is made of: it is modulation * nll, and modulation * slope is its
// derivative by -t.
struct Part {
    V modulation, nll, slope;
};

struct Probability {  // p of being right, q of being wrong
    V p, q, nll, log_q;
    V p_nll;  // p times a bounded nll
};

static inline Probability probability(V u, V e, V p) {
    V q = e * p;
    V log_part = minus_log1p(p > q ? q : p);
    V nll = at_least(u, V{}) * LOG_OF_BASE + log_part;
    V log_q = at_most(u, V{}) - log_part * LOG_BASE_OF_E;
    // p is not 0: a loss that is infinite must not meet it.
    return {p, q, nll, log_q, p * at_most(nll, fill(BOUND * LOG_OF_BASE + 1))};
}

// Negatives whose probability q is shifted down by the margin.
static inline Part shifted_negatives(V p, V q, const Settings& s) {
    V shifted = at_least(q - s.margin, V{});
    // The quotient nll / x is 1 for all x that small.
    V x = at_least(shifted, fill(1e-30f));
    // 1 - x, with the digits that p has.
    V kept = p + s.margin;
    V m, k = halvings(kept, m);
    // A NaN of q takes the side of x, which is NaN as well.
    I far = x > (Number)0.5;
    V nll = (far ? k * (Number)LN2 : V{}) + minus_log1p(far ? m : x);
    V log_x{};
    if (GAMMA < 0) {
        k = halvings(x, m);
        log_x = -(k * (Number)LN2 + minus_log1p(m)) * LOG_BASE_OF_E;
    }
    I dead = shifted <= 0;
    V slope = (s.gamma_negative * nll * kept + x) / (x * kept) * (p * q);
    if (POLY) {
        nll = nll + s.poly_epsilon * x;
        slope = slope + s.poly_epsilon * (s.gamma_negative + 1) * (p * q);
    }
    return {power_of_negative(x, log_x, s), dead ? V{} : nll, dead ? V{} : slope};
}

static inline Part negative_part(const Probability& of, const Settings& s) {
    if (MARGIN) return shifted_negatives(of.p, of.q, s);
    V slope = GAMMA == 0 ? of.q : of.q + s.gamma_negative * of.p_nll, nll = of.nll;
    if (POLY) {
        nll = nll + s.poly_epsilon * of.q;
        slope = slope + s.poly_epsilon * (s.gamma_negative + 1) * (of.p * of.q);
    }
    return {power_of_negative(of.q, of.log_q, s), nll, slope};
}

static inline Part positive_part(const Probability& of, const Settings& s) {
    V slope = of.q + s.gamma_positive * of.p_nll, nll = of.nll;
    if (POLY) {
        nll = nll + s.poly_epsilon * of.q;
        slope = slope + s.poly_epsilon * (s.gamma_positive + 1) * (of.p * of.q);
    }
    return {power_of(of.q, of.log_q, s.gamma_positive), nll, slope};
}

// The rebalanced weight where it shares no division.
static inline V rebalanced_weight(V inverse_frequency, const Settings& s, const RowFactors& row) {
    // The difference before the product: a large beta loses no digits.
    V exponent = s.beta * (row.reciprocal_row_sum * inverse_frequency - s.mu);
    V f = exponential(at_most(exponent, fill(BOUND)));
    return s.alpha + f / (1 + f);
}

// Loss (without the factor of row and negatives) and gradient of one vector of elements whose target is 0 or 1.
//
// positive: all ones where the target is 1; MIXED false: nowhere. positive_factor: that of the settings, times the
// label's own.
template <bool MIXED>
static inline void balanced_element(V z, V bias, V inverse_frequency, V label_weight, V positive_factor, I positive,
                                    const Settings& s, const RowFactors& row, V& loss, V& gradient) {
    V d = BIAS ? z - bias : z;
    V u = d * (s.lam * LOG_BASE_OF_E);  // -t
    if (MIXED) u = positive ? -LOG_BASE_OF_E * d : u;
    // What the bound cuts from p is below the last digit of anything that p is added to.
    V e = exponential(at_most(u, fill(BOUND)));
    V e1 = 1 + e;
    V p, weight = fill(1);
    if (REBALANCED) {
        if (!s.steep) {
            V f1 = 1 + exponential(s.midpoint - row.rate * inverse_frequency);
            V both = 1 / (e1 * f1);  // one division for the two sigmoids
            p = both * f1;
            weight = s.alpha + both * e1;
        } else {
            p = 1 / e1;
            weight = rebalanced_weight(inverse_frequency, s, row);
        }
    } else {
        p = 1 / e1;
    }
    if (LABEL_WEIGHT) weight = REBALANCED ? weight * label_weight : label_weight;
    Probability of = probability(u, e, p);
    auto [modulation, nll, slope] = negative_part(of, s);
    if (MIXED && (MARGIN || s.gamma_positive != s.gamma_negative)) {
        Part other = positive_part(of, s);
        modulation = positive ? other.modulation : modulation;
        nll = positive ? other.nll : nll;
        slope = positive ? other.slope : slope;
    }
    if (REBALANCED || LABEL_WEIGHT) modulation = modulation * weight;
    loss = modulation * nll;
    // Where the weight is steep it may be 0, and 0 * infinity would be NaN.
    if (REBALANCED && s.steep) loss = nll > std::numeric_limits<Number>::max() ? nll : loss;
    gradient = modulation * slope * row.gradient_factor;
    if (MIXED) {
        loss = positive ? loss * (positive_factor * s.lam) : loss;
        gradient = positive ? gradient * -positive_factor : gradient;
    }
}

// As balanced_element, for targets in [0, 1] and label smoothing: both parts, each by its share and its factor, which
// has the label's weight. A target that is NaN makes a NaN.
static inline void soft_element(V z, V bias, V inverse_frequency, V target, V positive_factor, V negative_factor,
                                const Settings& s, const RowFactors& row, V& loss, V& gradient) {
    V d = BIAS ? z - bias : z;
    V u = -LOG_BASE_OF_E * d, e = exponential(at_most(u, fill(BOUND)));
    Part positive = positive_part(probability(u, e, 1 / (1 + e)), s);
    u = d * (s.lam * LOG_BASE_OF_E), e = exponential(at_most(u, fill(BOUND)));
    Part negative = negative_part(probability(u, e, 1 / (1 + e)), s);
    V positive_share = target * s.kept_share + s.smoothing, negative_share = (1 - target) * s.kept_share + s.smoothing;
    V weight = REBALANCED ? rebalanced_weight(inverse_frequency, s, row) : fill(1);
    V by_positive = positive_share * positive_factor * positive.modulation;
    V by_negative = negative_share * negative_factor * negative.modulation;
    // A part without a share must not make a NaN of its infinity.
    loss = positive_share == 0 ? V{} : by_positive * (s.lam * positive.nll);
    loss = loss + (negative_share == 0 ? V{} : by_negative * negative.nll);
    if (REBALANCED) {
        V weighted = loss * weight;
        // Where the weight is steep it may be 0, and 0 * infinity would be NaN.
        loss = s.steep ? (loss > std::numeric_limits<Number>::max() ? loss : weighted) : weighted;
    }
    // Slopes are finite.
    gradient = (by_negative * negative.slope - by_positive * positive.slope) * weight * row.gradient_factor;
}
