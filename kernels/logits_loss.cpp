// Balanced loss and its gradient on the CPU: what logits_loss.py is to a GPU.
//
// Built once for each combination of the macros: LOGITS (vector_math.h) and GAMMA, MARGIN, POLY, BIAS, REBALANCED and
// LABEL_WEIGHT (balanced_element.h). All else is known only when the kernel runs.
//
// Few labels are positive: the main loop takes every element for a negative, and a vector with a positive in it is done
// once more in the general form. A label mask, an upstream gradient or a result for each element take the general form
// for all vectors. In a row with targets between 0 and 1 the soft form takes the place of the general form: both parts
// of the loss. Label smoothing, and a row with many such targets, take it for all vectors.

#include "column_blocks.h"
#include "flush_denormals.h"
#include "row_elements.h"
#include "row_labels.h"

// One call. Strides are in elements; pointers are null where there is no such tensor. Every member has 8 bytes, so that
// the host can pack them one after the other.
struct Call {
    const Logit* logits;              // [rows, columns]
    int64_t logits_stride;            // from row to row, 0 for rows that repeat
    Logit* gradient;                  // [rows, columns], to be written; may be `logits`
    int64_t gradient_stride;
    int64_t rows, columns;
    const void* targets;              // [rows, columns], dense; null: label ids
    int64_t targets_stride, targets_format;
    const int64_t *crow, *col;        // [rows + 1] and [num_ids]
    int64_t num_ids;
    const uint8_t* label_mask;        // [rows, columns], 0 leaves an element out
    int64_t label_mask_stride;
    const Number* row_sum;            // [rows], the sum of 1/n over all labels of a row; null: of the targets here
    const Number* row_weight;         // [rows]
    const Number* bias;               // [columns]
    const Number* inverse_frequency;  // [columns]
    const Number* label_weight;       // [columns]
    const Number* positive_weight;    // [columns], takes the place of label_weight in the part of target 1
    const Number* upstream;           // [rows, columns], multiplies the gradient
    int64_t upstream_stride;
    Number* elements;                 // [rows, columns] side by side: the loss of each, to be written
    Number* loss;                     // the sum of the losses, to be written
    int64_t threads;
    double scale;  // multiplies losses and gradient
};

struct Spec {
    double gamma_positive, gamma_negative, probability_margin, alpha, beta, mu, lam, positive_factor, negative_factor;
    double poly_epsilon, label_smoothing;
};

// Vectors [first, last) of a row as if without positives; the sum of the losses of those whose `keep` is all ones.
template <bool GRADIENT>
static V negatives(const Row row, const Labels labels, const Settings s, const Integer* keep, int64_t first,
                   int64_t last) {
    V total{};
    for (int64_t k = first; k < last; ++k) {
        int64_t i = k * W;
        V loss, gradient;
        balanced_element<false>(load_logits(row.logits + i), BIAS ? load<V>(labels.bias + i) : V{},
                                REBALANCED ? load<V>(labels.inverse_frequency + i) : V{},
                                LABEL_WEIGHT ? load<V>(labels.weight + i) : V{}, V{}, I{}, s, row.factors,
                                loss, gradient);
        total += (V)((I)loss & (I{} + keep[k - first]));
        if (GRADIENT) store_logits(row.gradient + i, gradient);
    }
    return total;
}

// Vectors after which a lane's float32 sum goes over into float64.
constexpr int64_t RUN = 64;

// The sum of the losses of columns [first, last) of a row, and the gradients. Of every run of vectors those with a
// positive are set aside, and done again after the run, which takes all for negatives and may write over the logits.
template <bool GRADIENT>
static double row_block(const Row& row, const Labels& labels, const Settings& s, int64_t first, int64_t last,
                        const int64_t* label, const int64_t* end) {
    D total{};
    int64_t whole = last / W;
    const int64_t* first_label = label;
    auto positives_of = [&](int64_t k) {
        uint32_t positive = 0;
        for (; label < end && *label / W == k; ++label) positive |= 1u << *label % W;
        return positive;
    };
    auto form = row.soft ? soft : general;
    auto add = [&](V z, int64_t k, uint32_t positive) {
        total += __builtin_convertvector((form(row, labels, s, z, k * W, W, positive, 0)), D);
    };
    // The last columns of a row may be no whole vector. Where there is room, a vector that ends with the row takes them
    // with columns that the loop takes too, and so no part of a vector is read or written. Its logits are read here,
    // because the loop may write over them.
    int64_t rest = last % W, from = rest && last - first >= W ? last - W : whole * W;
    V z_rest{};
    if (rest) z_rest = load_some_logits(row.logits + from, last - from);
    Integer keep[RUN];
    std::memset(keep, -1, sizeof keep);
    bool plain = row.plain() && !row.all_soft;
    for (int64_t run = first / W; run < whole; run += RUN) {
        int64_t stop = run + RUN < whole ? run + RUN : whole;
        if (!plain) {
            for (int64_t k = run; k < stop; ++k) add(load_logits(row.logits + k * W), k, positives_of(k));
            continue;
        }
        V z[RUN];
        int64_t aside[RUN], count = 0;
        uint32_t positive[RUN];
        while (label < end && *label < stop * W) {
            int64_t k = *label / W;
            aside[count] = k;
            z[count] = load_logits(row.logits + k * W);
            keep[k - run] = 0;
            positive[count++] = positives_of(k);
        }
        total += __builtin_convertvector((negatives<GRADIENT>(row, labels, s, keep, run, stop)), D);
        for (int64_t k = 0; k < count; ++k) {
            keep[aside[k] - run] = -1;
            add(z[k], aside[k], positive[k]);
        }
    }
    if (rest) {
        while (label > first_label && label[-1] >= from) --label;
        uint32_t positive = 0;
        for (; label < end; ++label) positive |= 1u << (*label - from);
        total += __builtin_convertvector(
            (form(row, labels, s, z_rest, from, last - from, positive, whole * W - from)), D);
    }
    return sum_of(total);
}

// As row_block, for a plain row of which all vectors take the soft form.
template <bool GRADIENT>
static double soft_block(const Row row, const Labels labels, const Settings s, int64_t first, int64_t last,
                         const int64_t* label, const int64_t* end) {
    D total{};
    for (int64_t run = first; run < last; run += RUN * W) {
        V losses{};
        for (int64_t i = run; i < last && i < run + RUN * W; i += W) {
            uint32_t positive = 0;
            for (; label < end && *label < i + W; ++label) positive |= 1u << (*label - i);
            if (i + W > last) {
                losses += soft(row, labels, s, load_some_logits(row.logits + i, last - i), i, last - i, positive, 0);
                continue;
            }
            V loss, gradient;
            soft_vector(row, labels, s, load_logits(row.logits + i), i, W, positive, loss, gradient);
            losses += loss;
            if (GRADIENT) store_logits(row.gradient + i, gradient);
        }
        total += __builtin_convertvector(losses, D);
    }
    return sum_of(total);
}

// Of so many vectors one may have a soft target, before the soft form of all vectors takes less time.
constexpr int64_t VECTORS_PER_SOFT = 4;

// Loss, unscaled, and gradient of columns [first, last) of row k. positive, odd: memory that is used again.
static double block(const Call& call, const Spec& spec, const Settings& s, int64_t k, int64_t first, int64_t last,
                    std::vector<int64_t>& positive, std::vector<int64_t>& odd) {
    bool whole_row = REBALANCED && !call.row_sum, smoothed = spec.label_smoothing > 0;
    RowLabels found;
    Shares shares{};
    bool many = false;
    if (call.targets) {
        int64_t begin = whole_row ? 0 : first, end = whole_row ? call.columns : last;
        int64_t most = (end - begin) / (VECTORS_PER_SOFT * W);
        int64_t count = find_in_row(call.targets, call.targets_stride, k, call.targets_format, begin, end, most,
                                    positive, odd);
        many = count > most;
        if (count) shares = shares_of_row(call.targets, call.targets_stride, k, call.targets_format);
        // The soft form reads these targets again, with the logits.
        if (many) positive.clear(), odd.clear();
        found = {positive.data(), positive.data() + positive.size(), true};
    } else {
        odd.clear();
        found = labels_of_ids(call.crow, call.col, call.num_ids, k, call.columns);
    }
    double row_sum = 0, weight = call.row_weight ? call.row_weight[k] : 1;
    if (whole_row && many)
        row_sum = shares.dot(call.inverse_frequency, call.columns);
    else if (whole_row)
        for (const int64_t* i = found.begin; i < found.end; ++i)
            row_sum += shares.targets ? shares.load(*i, 1)[0] * call.inverse_frequency[*i] : call.inverse_frequency[*i];
    else if (REBALANCED)
        row_sum = call.row_sum[k];
    found.narrow(first, last);
    auto at_row = [=](auto* tensor, int64_t stride) { return tensor ? tensor + k * stride : nullptr; };
    Row row{call.logits + k * call.logits_stride,
            at_row(call.gradient, call.gradient_stride),
            at_row(call.label_mask, call.label_mask_stride),
            at_row(call.upstream, call.upstream_stride),
            at_row(call.elements, call.columns),
            {(Number)(1 / row_sum), (Number)(spec.beta * LOG_BASE_OF_E / row_sum),
             (Number)(spec.negative_factor * weight * call.scale)},
            (Number)(spec.negative_factor * weight * call.scale / spec.lam),
            shares,
            smoothed || shares.targets,
            smoothed || many};
    Labels labels{call.bias, call.inverse_frequency, call.label_weight, call.positive_weight};
    auto compute = [&](auto form) { return form(row, labels, s, first, last, found.begin, found.end); };
    double loss = row.plain() && row.all_soft ? compute(row.gradient ? soft_block<true> : soft_block<false>)
                                              : compute(row.gradient ? row_block<true> : row_block<false>);
    loss *= weight;
    if (!found.valid) {
        for (int64_t i = first; i < last; ++i) row.spoil(i);
        loss = std::numeric_limits<double>::quiet_NaN();
    }
    for (int64_t i : odd)
        if (first <= i && i < last && row.spoil(i)) loss = std::numeric_limits<double>::quiet_NaN();
    return loss;
}

extern "C" void logits_loss(const Call* pointer, const Spec* spec_pointer) {
    const Call call = *pointer;
    const Spec spec = *spec_pointer;
    const Settings s{(Number)spec.gamma_positive,
                     (Number)spec.gamma_negative,
                     (Number)spec.probability_margin,
                     (Number)spec.lam,
                     (Number)spec.alpha,
                     (Number)spec.mu,
                     (Number)(spec.beta * LOG_BASE_OF_E),
                     (Number)(spec.beta * spec.mu * LOG_BASE_OF_E),
                     (Number)(spec.positive_factor / spec.negative_factor),
                     (Number)spec.poly_epsilon,
                     (Number)(1 - spec.label_smoothing),
                     (Number)(spec.label_smoothing / 2),
                     spec.beta * spec.mu > STEEP};
    const int64_t threads = call.threads;
    const ColumnBlocks blocks(call.rows, call.columns, threads);
    std::vector<double> part(call.rows * blocks.count);
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        FlushDenormals flush;
        std::vector<int64_t> positive, odd;
#pragma omp for schedule(static)
        for (int64_t task = 0; task < call.rows * blocks.count; ++task) {
            part[task] = block(call, spec, s, task / blocks.count, blocks.first(task), blocks.last(task), positive, odd);
        }
    }
    if (call.loss) {
        double total = 0;
        for (double x : part) total += x;
        *call.loss = (Number)(total * spec.negative_factor / spec.lam * call.scale);
    }
}
