#pragma once

// The algebra of the loss for one vector of elements: what element.py is to a GPU.
//
// Macros: GAMMA (of the negatives: 0, 1, 2, 4, or -1: any other), MARGIN, BIAS, REBALANCED and LABEL_WEIGHT (0 or 1).

#include "vector_math.h"

struct Settings {
    Number gamma_positive, gamma_negative, margin;
    Number lam, alpha, mu;
    Number beta, midpoint;   // beta and beta * mu in the base of `exponential`
    Number positive_factor;  // over the negative factor, which is applied to whole rows
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

// Modulation, -log(p) and slope of negatives whose probability q is shifted down by the margin.
static inline void shifted_negatives(V p, V q, const Settings& s, V& modulation, V& nll, V& slope) {
    V shifted = at_least(q - s.margin, V{});
    // The quotient nll / x is 1 for all x that small.
    V x = at_least(shifted, fill(1e-30f));
    // 1 - x, with the digits that p has.
    V kept = p + s.margin;
    V m, k = halvings(kept, m);
    // A NaN of q takes the side of x, which is NaN as well.
    I far = x > (Number)0.5;
    nll = (far ? k * (Number)LN2 : V{}) + minus_log1p(far ? m : x);
    V log_x{};
    if (GAMMA < 0) {
        k = halvings(x, m);
        log_x = -(k * (Number)LN2 + minus_log1p(m)) * LOG_BASE_OF_E;
    }
    I dead = shifted <= 0;
    modulation = power_of_negative(x, log_x, s);
    slope = (s.gamma_negative * nll * kept + x) / (x * kept) * (p * q);
    nll = dead ? V{} : nll;
    slope = dead ? V{} : slope;
}

// Loss (without the factor of row and negatives) and gradient of one vector.
//
// positive: all ones where the target is 1; MIXED false: nowhere.
template <bool MIXED>
static inline void balanced_element(V z, V bias, V inverse_frequency, V label_weight, I positive, const Settings& s,
                                    const RowFactors& row, V& loss, V& gradient) {
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
            // The difference before the product: a large beta loses no digits.
            V exponent = s.beta * (row.reciprocal_row_sum * inverse_frequency - s.mu);
            V f = exponential(at_most(exponent, fill(BOUND)));
            weight = s.alpha + f / (1 + f);
        }
    } else {
        p = 1 / e1;
    }
    if (LABEL_WEIGHT) weight = REBALANCED ? weight * label_weight : label_weight;
    V q = e * p;
    V log_part = minus_log1p(p > q ? q : p);
    V nll = at_least(u, V{}) * LOG_OF_BASE + log_part;
    V log_q = at_most(u, V{}) - log_part * LOG_BASE_OF_E;
    // p is not 0: a loss that is infinite must not meet it.
    V p_nll = p * at_most(nll, fill(BOUND * LOG_OF_BASE + 1));

    V modulation, slope, nll_positive = nll;
    if (MARGIN) {
        shifted_negatives(p, q, s, modulation, nll, slope);
    } else {
        modulation = power_of_negative(q, log_q, s);
        slope = GAMMA == 0 ? q : q + s.gamma_negative * p_nll;
    }
    if (MIXED && (MARGIN || s.gamma_positive != s.gamma_negative)) {
        modulation = positive ? power_of(q, log_q, s.gamma_positive) : modulation;
        slope = positive ? q + s.gamma_positive * p_nll : slope;
        nll = positive ? nll_positive : nll;
    }
    if (REBALANCED || LABEL_WEIGHT) modulation = modulation * weight;
    loss = modulation * nll;
    // There the weight may be 0.
    if (REBALANCED && s.steep) loss = nll > std::numeric_limits<Number>::max() ? nll : loss;
    gradient = modulation * slope * row.gradient_factor;
    if (MIXED) {
        loss = positive ? loss * (s.positive_factor * s.lam) : loss;
        gradient = positive ? gradient * -s.positive_factor : gradient;
    }
}
