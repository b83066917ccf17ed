"""The elements of rows before their first 16-byte boundary and after their last."""

import triton
import triton.language as tl

from .element import SMOOTHING_AT, load_shift
from .element_output import compute_and_store
from .labels import dense_label, distance_to_boundary, search_label, slope_of_weight, smoothed, sum_of_labels


@triton.jit
def fringe_sum(
    program,
    logits_ptr,
    targets_ptr,
    crow_ptr,
    col_ptr,
    bias_ptr,
    inverse_frequency_ptr,
    label_weight_ptr,
    positive_weight_ptr,
    weight_slope_ptr,
    row_sum_ptr,
    row_weight_ptr,
    mask_ptr,
    upstream_ptr,
    value_ptr,
    gradient_ptr,
    num_rows,
    num_labels,
    num_ids,
    logits_stride,
    targets_stride,
    mask_stride,
    gradient_stride,
    positive_slope,
    negative_slope,
    unit,
    SPEC: tl.constexpr,
    SLOPE_FACTOR: tl.constexpr,
    WANT_VALUE: tl.constexpr,
    WANT_GRADIENT: tl.constexpr,
    UPSTREAM: tl.constexpr,
    CSR: tl.constexpr,
    SLOPE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    REBALANCED: tl.constexpr,
    HAS_LABEL_WEIGHT: tl.constexpr,
    HAS_POSITIVE_WEIGHT: tl.constexpr,
    HAS_ROW_WEIGHT: tl.constexpr,
    MIXED: tl.constexpr,
    HAS_MASK: tl.constexpr,
    COPIES: tl.constexpr,
    EXACT: tl.constexpr,
    PTX: tl.constexpr,
    VECTOR: tl.constexpr,
    FRINGE: tl.constexpr,
):
    """Computes FRINGE elements of the fringe, and returns the sum of their values.

    The arguments are those of ``logits_loss_kernel``; positive_slope, negative_slope and unit are the ones that it has
    made. ``program`` counts from 0.
    """
    COMPUTE: tl.constexpr = tl.float64 if logits_ptr.dtype.element_ty == tl.float64 else tl.float32
    HAS_WEIGHT: tl.constexpr = HAS_LABEL_WEIGHT or HAS_ROW_WEIGHT
    # Each row has 2 * VECTOR lanes: for the columns before its first boundary and for those after its last.
    index = program * FRINGE + tl.arange(0, FRINGE)
    rows = (index // (2 * VECTOR)).to(tl.int64)
    which = index % (2 * VECTOR)
    heads = distance_to_boundary(rows, logits_stride, VECTOR)
    columns = tl.where(which < VECTOR, which, heads + (num_labels - heads) // VECTOR * VECTOR + which - VECTOR)
    end = tl.where(which < VECTOR, heads, num_labels)
    valid = (rows < num_rows) & (columns < end)
    SMOOTHING: tl.constexpr = SPEC[SMOOTHING_AT]
    # Where there is no element, the positive part that smoothing gives it must be finite.
    OTHER: tl.constexpr = float("-inf") if SMOOTHING == 0.0 else 0.0
    logits = tl.load(logits_ptr + rows * logits_stride + columns, mask=valid, other=OTHER).to(COMPUTE)
    if CSR:
        labels = search_label(crow_ptr, col_ptr, rows, columns, valid, num_ids)
    else:
        raw = tl.load(targets_ptr + rows * targets_stride + columns, mask=valid, other=0)
        labels, logits = dense_label(raw, logits)
    labels = smoothed(labels, SMOOTHING, logits)
    # The first copy of a constant is the constant itself.
    shifts = load_shift(bias_ptr + columns, valid, SPEC, COPIES) if HAS_BIAS else 0.0
    inverses = tl.load(inverse_frequency_ptr + columns, mask=valid, other=1.0) if REBALANCED else 0.0
    weight_slopes = 0.0
    if REBALANCED:
        if SLOPE == "made":
            weight_slopes = tl.load(weight_slope_ptr + rows, mask=valid, other=0.0)
        elif SLOPE == "sum":
            weight_slopes = slope_of_weight(tl.load(row_sum_ptr + rows, mask=valid, other=1.0), SLOPE_FACTOR)
        else:
            ROWS: tl.constexpr = FRINGE // (2 * VECTOR)
            weight_slopes = tl.zeros([FRINGE], COMPUTE)
            for k in range(ROWS):
                one = (program * ROWS + k).to(tl.int64)
                own = sum_of_labels(
                    crow_ptr, col_ptr, inverse_frequency_ptr, one, one < num_rows, num_labels, num_ids, SLOPE_FACTOR, 32
                )  # fmt: skip
                weight_slopes = tl.where(rows == one, slope_of_weight(own, SLOPE_FACTOR), weight_slopes)
    weights = tl.load(label_weight_ptr + columns, mask=valid, other=0.0) if HAS_LABEL_WEIGHT else 1.0
    positives = tl.load(positive_weight_ptr + columns, mask=valid, other=0.0) if HAS_POSITIVE_WEIGHT else 1.0
    if HAS_ROW_WEIGHT:
        row_weights = tl.load(row_weight_ptr + rows, mask=valid, other=0.0)
        weights *= row_weights
        positives *= row_weights
    fringe_at = gradient_ptr + rows * gradient_stride + columns if WANT_GRADIENT else None
    values = compute_and_store(
        logits, labels, shifts, inverses, weight_slopes, weights, positives, positive_slope, negative_slope, unit, rows,
        columns, fringe_at, valid, mask_ptr, mask_stride, upstream_ptr, value_ptr, num_labels, SPEC, WANT_VALUE,
        WANT_GRADIENT, UPSTREAM, HAS_BIAS, REBALANCED, HAS_WEIGHT, HAS_POSITIVE_WEIGHT, MIXED, HAS_MASK, EXACT, PTX,
    )  # fmt: skip
    return tl.sum(values if SMOOTHING == 0.0 else tl.where(valid, values, 0.0))
