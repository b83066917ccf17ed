"""Forward, backward and one-pass kernel over logits [N, C]."""

import triton
import triton.language as tl

from .element import (
    GAMMA_AT,
    GAMMA_NEGATIVE_AT,
    LAM_AT,
    LN2,
    NEGATIVE_FACTOR_AT,
    POSITIVE_FACTOR_AT,
    SMOOTHING_AT,
    load_shift,
)
from .element_output import compute_and_store
from .fringe import fringe_sum
from .labels import (
    any_label,
    count_before,
    dense_label,
    distance_to_boundary,
    row_bounds,
    slope_of_weight,
    smoothed,
    sum_of_labels,
    tile_labels,
)
from .ordered_sum import finish_sum


@triton.jit
def load_constant(place, inside, COPIES: tl.constexpr):
    """A weight of the columns at ``place``; COPIES reach to the end of each tile."""
    return tl.load(place) if COPIES else tl.load(place, mask=inside, other=0.0)


@triton.jit
def sum_of_groups(value, kept_groups, SMOOTHS: tl.constexpr):
    """The sum of each group's values. What smoothing makes beyond the row's last group is left out."""
    total = tl.sum(value, axis=1)
    return tl.where(kept_groups, total, 0.0) if SMOOTHS else total


# Triton must not specialise on the sizes: a batch of one row, or of 16, would compile another kernel.
@triton.jit(
    do_not_specialize=[
        "num_rows", "num_labels", "num_ids", "logits_stride", "targets_stride", "mask_stride", "gradient_stride",
        "num_tiles", "num_fringe", "num_programs", "rows_each", "num_strips", "magic", "magic_shift",
    ]
)  # fmt: skip
def logits_loss_kernel(
    # Inputs: logits [N, C]; targets [N, C], or crow [N + 1], col [num_ids] and tile_offsets [N, num_tiles + 1].
    logits_ptr,
    targets_ptr,
    crow_ptr,
    col_ptr,
    tile_offsets_ptr,
    # Constants of the labels [C], or, where COPIES, [VECTOR, num_tiles * GROUPS * VECTOR]; and of
    # the rows [N]; mask [N, C].
    bias_ptr,
    inverse_frequency_ptr,
    label_weight_ptr,
    positive_weight_ptr,
    weight_slope_ptr,
    row_sum_ptr,
    row_weight_ptr,
    mask_ptr,
    # The upstream gradient, of no dimensions or [N, C].
    upstream_ptr,
    # Outputs: value, of no dimensions or [N, C]; gradient [N, C]. Scratch: partial [programs + teams], counters
    # [1 + teams].
    value_ptr,
    gradient_ptr,
    partial_ptr,
    counters_ptr,
    # Shapes and strides, in elements.
    num_rows,
    num_labels,
    num_ids,
    logits_stride: tl.int64,
    targets_stride: tl.int64,
    mask_stride: tl.int64,
    gradient_stride: tl.int64,
    # The plan: see the docstring.
    num_tiles,
    num_fringe,
    num_programs,
    rows_each,
    num_strips,
    magic,
    magic_shift,
    # The factor on sum and gradient, in two parts for float64.
    scale,
    scale_rest,
    # Constants of the compiled kernel.
    SPEC: tl.constexpr,
    SLOPE_FACTOR: tl.constexpr,
    WANT_VALUE: tl.constexpr,
    WANT_GRADIENT: tl.constexpr,
    UPSTREAM: tl.constexpr,
    CSR: tl.constexpr,
    SLOPE: tl.constexpr,
    FIND_LABELS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    REBALANCED: tl.constexpr,
    HAS_LABEL_WEIGHT: tl.constexpr,
    HAS_POSITIVE_WEIGHT: tl.constexpr,
    HAS_ROW_WEIGHT: tl.constexpr,
    HAS_MASK: tl.constexpr,
    MIXED: tl.constexpr,
    ALIGNED_TARGETS: tl.constexpr,
    COPIES: tl.constexpr,
    PTX: tl.constexpr,
    PERIOD: tl.constexpr,
    VECTOR: tl.constexpr,
    GROUPS: tl.constexpr,
    FRINGE: tl.constexpr,
    TEAM: tl.constexpr,
):
    """Loss and gradient, by fringe programs and main programs; kernels/README.md draws them.

    A main program computes one tile, GROUPS * VECTOR columns, of a strip: up to ``rows_each`` rows. The first tile of a
    row begins at the row's first 16-byte boundary, and every access moves VECTOR elements, 16 bytes. Rows that are
    PERIOD apart begin at the same distance from a boundary. A strip consists of such rows, so a program's columns stay
    the same and it keeps their constants in registers. Most tiles hold no label; these take a shorter way.

    The elements of a row before its first boundary and after its last are fewer than VECTOR at either end. The first
    ``num_fringe`` programs compute them. With VECTOR = 1 there is no fringe, and rows may begin anywhere.

    WANT_VALUE: "", "sum" or "elements" (value_ptr [N, C]). UPSTREAM: "", "scalar" or "elements".
    SLOPE: whence weight_slope: "made" by ``row_terms_kernel``; "here", from the label ids; or "sum", from row_sum [N].
    MIXED: whether an element may have both parts of the loss, by smoothing or because targets are floating-point.
    FIND_LABELS: a tile's labels are found here, not by tile_offsets.
    COPIES: of each label constant there is a copy for each distance of a row's beginning from a boundary, so that these
    loads move 16 bytes, too; the bias is in the units of ``load_shift``.
    magic, magic_shift: n // num_strips is the upper half of 2 * n * magic, shifted; a division takes 20 instructions.
    """
    COMPUTE: tl.constexpr = tl.float64 if logits_ptr.dtype.element_ty == tl.float64 else tl.float32
    HAS_WEIGHT: tl.constexpr = HAS_LABEL_WEIGHT or HAS_ROW_WEIGHT
    SMOOTHING: tl.constexpr = SPEC[SMOOTHING_AT]
    SMOOTHS: tl.constexpr = SMOOTHING > 0.0
    # Where there is no element, the loss is 0; but the positive part that smoothing gives it must be finite.
    OTHER: tl.constexpr = 0.0 if SMOOTHS else float("-inf")
    # The approximate lg2 loses small losses. In a sum a gamma of 1 and more makes them vanish; smaller gammas do not.
    SMALL: tl.constexpr = SPEC[GAMMA_AT] < 1.0 or SPEC[GAMMA_NEGATIVE_AT] < 1.0 or WANT_VALUE == "elements"
    EXACT: tl.constexpr = SMALL or tl.float64 == COMPUTE
    OFFSETS: tl.constexpr = CSR and not FIND_LABELS
    program = tl.program_id(0)
    factor = tl.full((), 1.0, COMPUTE) * scale
    if tl.float64 == COMPUTE:
        factor += scale_rest
    slope = factor
    if UPSTREAM == "scalar":
        slope *= tl.load(upstream_ptr).to(COMPUTE)
    positive_slope = -SPEC[POSITIVE_FACTOR_AT] * slope
    negative_slope = SPEC[NEGATIVE_FACTOR_AT] * slope
    # The values are in this unit; one multiplication of the sum is enough.
    unit = tl.full((), SPEC[NEGATIVE_FACTOR_AT] / SPEC[LAM_AT] * (1.0 if EXACT else LN2), COMPUTE)
    if VECTOR == 1 or program >= num_fringe:
        lane = tl.arange(0, VECTOR)
        group = tl.arange(0, GROUPS)
        total = tl.zeros([GROUPS], COMPUTE)
        number = program - num_fringe
        tile = (tl.umulhi((number * 2).to(tl.uint32), magic.to(tl.uint32)) >> magic_shift.to(tl.uint32)).to(tl.int32)
        strip = number - tile * num_strips
        first_row = (strip // PERIOD * rows_each * PERIOD + strip % PERIOD).to(tl.int64)
        num_here = tl.minimum(rows_each, ((num_rows - first_row + PERIOD - 1) // PERIOD).to(tl.int32))
        start_of_row = first_row * logits_stride
        # With a PERIOD of 1 all rows begin at a boundary, or there are none.
        head = 0 if PERIOD == 1 else distance_to_boundary(first_row, logits_stride, VECTOR)
        whole = (num_labels - head) // VECTOR * VECTOR
        start = tile * (GROUPS * VECTOR)
        offset = start + group[:, None] * VECTOR + lane[None, :]
        inside = offset < whole
        kept_groups = start + group * VECTOR < whole
        column = head + offset
        # Multiples of VECTOR, as are the strides of PERIOD rows: the compiler may move 16 bytes at once.
        logits_at = logits_ptr + tl.multiple_of(start_of_row + head, VECTOR) + offset
        logits_hop = tl.multiple_of(logits_stride * PERIOD, VECTOR)
        if WANT_GRADIENT:
            gradient_at = gradient_ptr + tl.multiple_of(first_row * gradient_stride + head, VECTOR) + offset
            gradient_hop = tl.multiple_of(gradient_stride * PERIOD, VECTOR)
        else:
            gradient_at = logits_at
            gradient_hop = logits_hop
        if FIND_LABELS:
            targets_at = 0
            targets_hop = 0
        elif CSR:
            targets_at = tile_offsets_ptr + first_row * (num_tiles + 1) + tile
            targets_hop = PERIOD * (num_tiles + 1)
        elif ALIGNED_TARGETS:
            targets_at = targets_ptr + tl.multiple_of(first_row * targets_stride + head, VECTOR) + offset
            targets_hop = tl.multiple_of(targets_stride * PERIOD, VECTOR)
        else:
            targets_at = targets_ptr + first_row * targets_stride + column
            targets_hop = targets_stride * PERIOD
        slope_at = weight_slope_ptr + first_row if REBALANCED and SLOPE == "made" else 0
        # The next row is loaded while the present one is computed: a warp alone would wait for memory.
        next_logits = tl.load(logits_at, mask=inside, other=OTHER)
        if COPIES:
            constant = head * (num_tiles * (GROUPS * VECTOR)) + offset
            shift = tl.load(bias_ptr + constant) if HAS_BIAS else 0.0
            inverse = tl.load(inverse_frequency_ptr + constant) if REBALANCED else 0.0
            label_weight = tl.load(label_weight_ptr + constant) if HAS_LABEL_WEIGHT else 1.0
            positive_at = positive_weight_ptr + constant if HAS_POSITIVE_WEIGHT else 0
        else:
            shift = load_shift(bias_ptr + column, inside, SPEC, False) if HAS_BIAS else 0.0
            inverse = tl.load(inverse_frequency_ptr + column, mask=inside, other=1.0) if REBALANCED else 0.0
            label_weight = tl.load(label_weight_ptr + column, mask=inside, other=0.0) if HAS_LABEL_WEIGHT else 1.0
            positive_at = positive_weight_ptr + column if HAS_POSITIVE_WEIGHT else 0
        # Without smoothing, few programs need it.
        kept_weight = load_constant(positive_at, inside, COPIES) if HAS_POSITIVE_WEIGHT and SMOOTHS else 1.0
        for step in range(num_here):
            row = first_row + step * PERIOD
            z = next_logits.to(COMPUTE)
            weight_slope = tl.load(slope_at) if REBALANCED and SLOPE == "made" else 0.0
            low = tl.load(targets_at) if OFFSETS else 0
            high = tl.load(targets_at + 1) if OFFSETS else 0
            more = step + 1 < num_here
            logits_at += logits_hop
            next_logits = tl.load(logits_at, mask=offset < tl.where(more, whole, 0), other=OTHER)
            if FIND_LABELS:
                begin_ids, end_ids = row_bounds(crow_ptr, row, True, num_ids)
                end = tl.minimum(start + GROUPS * VECTOR, whole)
                below, through = count_before(col_ptr, begin_ids, end_ids, head + start, head + end, 32)
                low = begin_ids + below
                high = begin_ids + through
            if REBALANCED and SLOPE != "made":
                if SLOPE == "sum":
                    weight_slope = slope_of_weight(tl.load(row_sum_ptr + row), SLOPE_FACTOR)
                else:
                    own = sum_of_labels(
                        crow_ptr, col_ptr, inverse_frequency_ptr, row, True, num_labels, num_ids, SLOPE_FACTOR, 32
                    )  # fmt: skip
                    weight_slope = slope_of_weight(own, SLOPE_FACTOR)
            weight = label_weight
            positive_weight = kept_weight
            if HAS_ROW_WEIGHT:
                row_weight = tl.load(row_weight_ptr + row)
                weight *= row_weight
                positive_weight *= row_weight
            if CSR:
                has_label = low < high
            else:
                raw = tl.load(targets_at, mask=inside, other=0)
                has_label = any_label(raw)
            if has_label:
                if CSR:
                    y = tile_labels(col_ptr, low, high, head + start, group, lane, VECTOR)
                else:
                    y, z = dense_label(raw, z)
                y = smoothed(y, SMOOTHING, z)
                if HAS_POSITIVE_WEIGHT and not SMOOTHS:
                    of_labels = load_constant(positive_at, inside, COPIES) * positive_weight
                else:
                    of_labels = positive_weight
                value = compute_and_store(
                    z, y, shift, inverse, weight_slope, weight, of_labels, positive_slope, negative_slope, unit,
                    row, column, gradient_at, inside, mask_ptr, mask_stride, upstream_ptr, value_ptr, num_labels, SPEC,
                    WANT_VALUE, WANT_GRADIENT, UPSTREAM, HAS_BIAS, REBALANCED, HAS_WEIGHT, HAS_POSITIVE_WEIGHT, MIXED,
                    HAS_MASK, EXACT, PTX,
                )  # fmt: skip
                total += sum_of_groups(value, kept_groups, SMOOTHS)
            else:
                smallest = tl.full([GROUPS, VECTOR], SMOOTHING / 2, COMPUTE) if SMOOTHS else None
                value = compute_and_store(
                    z, smallest, shift, inverse, weight_slope, weight, positive_weight, positive_slope, negative_slope,
                    unit, row, column, gradient_at, inside, mask_ptr, mask_stride, upstream_ptr, value_ptr, num_labels,
                    SPEC, WANT_VALUE, WANT_GRADIENT, UPSTREAM, HAS_BIAS, REBALANCED, HAS_WEIGHT, HAS_POSITIVE_WEIGHT,
                    MIXED, HAS_MASK, EXACT, PTX,
                )  # fmt: skip
                total += sum_of_groups(value, kept_groups, SMOOTHS)
            gradient_at += gradient_hop
            targets_at += targets_hop
            if REBALANCED and SLOPE == "made":
                slope_at += PERIOD
        subtotal = tl.sum(total)
    else:
        subtotal = fringe_sum(
            program, logits_ptr, targets_ptr, crow_ptr, col_ptr, bias_ptr, inverse_frequency_ptr, label_weight_ptr,
            positive_weight_ptr, weight_slope_ptr, row_sum_ptr, row_weight_ptr, mask_ptr, upstream_ptr, value_ptr,
            gradient_ptr, num_rows, num_labels, num_ids, logits_stride, targets_stride, mask_stride, gradient_stride,
            positive_slope, negative_slope, unit, SPEC, SLOPE_FACTOR, WANT_VALUE, WANT_GRADIENT, UPSTREAM, CSR, SLOPE,
            HAS_BIAS, REBALANCED, HAS_LABEL_WEIGHT, HAS_POSITIVE_WEIGHT, HAS_ROW_WEIGHT, MIXED, HAS_MASK, COPIES, EXACT,
            PTX, VECTOR, FRINGE,
        )  # fmt: skip

    if WANT_VALUE == "sum":
        finish_sum(partial_ptr, counters_ptr, value_ptr, subtotal, factor * unit, num_programs, TEAM)
