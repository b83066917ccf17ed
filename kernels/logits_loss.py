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
    balanced_element,
    load_shift,
)
from .labels import any_label, dense_label, search_label, tile_labels
from .ordered_sum import finish_sum


@triton.jit
def compute_and_store(
    z,
    y,
    shift,
    inverse_frequency,
    weight_slope,
    weight,
    positive_slope,
    negative_slope,
    unit,
    row,
    column,
    gradient_at,
    inside,
    mask_ptr,
    mask_stride,
    upstream_ptr,
    value_ptr,
    num_labels,
    SPEC: tl.constexpr,
    WANT_VALUE: tl.constexpr,
    WANT_GRADIENT: tl.constexpr,
    UPSTREAM: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    REBALANCED: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    HAS_MASK: tl.constexpr,
    EXACT: tl.constexpr,
    PTX: tl.constexpr,
):
    """Computes elements, applies mask and upstream gradient, stores what is wanted, and returns the masked value.

    unit: that of the values of ``balanced_element``, which says what the arguments up to negative_slope are.
    gradient_at: where the gradient goes; None unless wanted.
    """
    value, dz = balanced_element(
        z, y, shift, inverse_frequency, weight_slope, weight, positive_slope, negative_slope, SPEC, HAS_BIAS,
        REBALANCED, HAS_WEIGHT, EXACT, PTX,
    )  # fmt: skip
    if HAS_MASK:
        kept = tl.load(mask_ptr + row * mask_stride + column, mask=inside, other=0) != 0
        value = tl.where(kept, value, 0.0)
    if WANT_VALUE == "elements":
        tl.store(value_ptr + row * num_labels + column, value * unit, mask=inside)
    if WANT_GRADIENT:
        if UPSTREAM == "elements":
            dz *= tl.load(upstream_ptr + row * num_labels + column, mask=inside, other=0.0)
        if HAS_MASK:
            dz = tl.where(kept, dz, 0.0)
        tl.store(gradient_at, dz.to(gradient_at.dtype.element_ty), mask=inside)
    return value


# Triton must not specialise on the sizes: a batch of one row, or of 16, would compile another kernel.
@triton.jit(
    do_not_specialize=[
        "num_rows", "num_labels", "num_ids", "logits_stride", "targets_stride", "mask_stride", "gradient_stride",
        "num_tiles", "num_main", "num_programs", "rows_each",
    ]
)  # fmt: skip
def logits_loss_kernel(
    # Inputs: logits [N, C]; targets [N, C], or crow [N + 1], col [num_ids] and tile_offsets [N, num_tiles + 1].
    logits_ptr,
    targets_ptr,
    crow_ptr,
    col_ptr,
    tile_offsets_ptr,
    # Constants of the labels [C] and of the rows [N]; mask [N, C].
    bias_ptr,
    inverse_frequency_ptr,
    label_weight_ptr,
    weight_slope_ptr,
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
    logits_stride,
    targets_stride,
    mask_stride,
    gradient_stride,
    # The plan: see the docstring.
    num_tiles,
    num_main,
    num_programs,
    rows_each,
    # The factor on sum and gradient, in two parts for float64.
    scale,
    scale_rest,
    # Constants of the compiled kernel.
    SPEC: tl.constexpr,
    WANT_VALUE: tl.constexpr,
    WANT_GRADIENT: tl.constexpr,
    UPSTREAM: tl.constexpr,
    CSR: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    REBALANCED: tl.constexpr,
    HAS_LABEL_WEIGHT: tl.constexpr,
    HAS_ROW_WEIGHT: tl.constexpr,
    HAS_MASK: tl.constexpr,
    ALIGNED_TARGETS: tl.constexpr,
    PTX: tl.constexpr,
    PERIOD: tl.constexpr,
    VECTOR: tl.constexpr,
    GROUPS: tl.constexpr,
    FRINGE: tl.constexpr,
    TEAM: tl.constexpr,
):
    """Loss and gradient, by main programs and fringe programs; kernels/README.md draws them.

    A main program computes one tile, GROUPS * VECTOR columns, of up to ``rows_each`` rows. The first tile of a row
    begins at the row's first 16-byte boundary, and every access moves VECTOR elements, 16 bytes. Rows that are PERIOD
    apart begin at the same distance from a boundary. A program takes such rows, so its columns stay the same and it
    keeps their constants in registers. Most tiles hold no label; these take a shorter way.

    The elements of a row before its first boundary and after its last are fewer than VECTOR at either end. The fringe
    programs compute them. With VECTOR = 1 there is no fringe, and rows may begin anywhere.

    WANT_VALUE: "", "sum" or "elements" (value_ptr [N, C]). UPSTREAM: "", "scalar" or "elements".
    """
    COMPUTE: tl.constexpr = tl.float64 if logits_ptr.dtype.element_ty == tl.float64 else tl.float32
    HAS_WEIGHT: tl.constexpr = HAS_LABEL_WEIGHT or HAS_ROW_WEIGHT
    # The approximate lg2 loses small losses. A gamma of 1 and more makes them vanish; smaller gammas do not.
    EXACT: tl.constexpr = SPEC[GAMMA_AT] < 1.0 or SPEC[GAMMA_NEGATIVE_AT] < 1.0 or tl.float64 == COMPUTE
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
    if program < num_main:
        lane = tl.arange(0, VECTOR)
        group = tl.arange(0, GROUPS)
        total = tl.zeros([GROUPS], COMPUTE)
        tile = program % num_tiles
        residue = (program // num_tiles) % PERIOD
        first_row = ((program // num_tiles) // PERIOD * rows_each * PERIOD + residue).to(tl.int64)
        num_here = tl.minimum(rows_each, ((num_rows - first_row + PERIOD - 1) // PERIOD).to(tl.int32))
        head = ((VECTOR - (first_row * logits_stride) % VECTOR) % VECTOR).to(tl.int32)
        whole = (num_labels - head) // VECTOR * VECTOR
        start = tile * (GROUPS * VECTOR)
        offset = start + group[:, None] * VECTOR + lane[None, :]
        inside = offset < whole
        column = head + offset
        shift = load_shift(bias_ptr + column, inside, SPEC) if HAS_BIAS else 0.0
        inverse = tl.load(inverse_frequency_ptr + column, mask=inside, other=1.0) if REBALANCED else 0.0
        label_weight = tl.load(label_weight_ptr + column, mask=inside, other=0.0) if HAS_LABEL_WEIGHT else 1.0
        # Multiples of VECTOR, as are the strides of PERIOD rows: the compiler may move 16 bytes at once.
        logits_at = logits_ptr + (first_row * logits_stride + VECTOR - 1) // VECTOR * VECTOR + offset
        logits_hop = tl.multiple_of(PERIOD * logits_stride, VECTOR).to(tl.int64)
        gradient_at = logits_at
        gradient_hop = logits_hop
        if WANT_GRADIENT:
            gradient_at = gradient_ptr + (first_row * gradient_stride + VECTOR - 1) // VECTOR * VECTOR + offset
            gradient_hop = tl.multiple_of(PERIOD * gradient_stride, VECTOR).to(tl.int64)
        if CSR:
            targets_at = tile_offsets_ptr + first_row * (num_tiles + 1) + tile
            targets_hop = PERIOD * (num_tiles + 1)
        elif ALIGNED_TARGETS:
            targets_at = targets_ptr + (first_row * targets_stride + VECTOR - 1) // VECTOR * VECTOR + offset
            targets_hop = tl.multiple_of(PERIOD * targets_stride, VECTOR).to(tl.int64)
        else:
            targets_at = targets_ptr + first_row * targets_stride + column
            targets_hop = (PERIOD * targets_stride).to(tl.int64)
        for step in range(num_here):
            row = first_row + step * PERIOD
            z = tl.load(logits_at, mask=inside, other=float("-inf")).to(COMPUTE)
            weight_slope = tl.load(weight_slope_ptr + row) if REBALANCED else 0.0
            weight = label_weight
            if HAS_ROW_WEIGHT:
                weight *= tl.load(row_weight_ptr + row)
            if CSR:
                low = tl.load(targets_at)
                high = tl.load(targets_at + 1)
                has_label = low < high
            else:
                raw = tl.load(targets_at, mask=inside, other=0)
                has_label = any_label(raw)
            if has_label:
                if CSR:
                    y = tile_labels(col_ptr, low, high, head + start, group, lane, VECTOR)
                else:
                    y, z = dense_label(raw, z)
                value = compute_and_store(
                    z, y, shift, inverse, weight_slope, weight, positive_slope, negative_slope, unit, row, column,
                    gradient_at, inside, mask_ptr, mask_stride, upstream_ptr, value_ptr, num_labels, SPEC, WANT_VALUE,
                    WANT_GRADIENT, UPSTREAM, HAS_BIAS, REBALANCED, HAS_WEIGHT, HAS_MASK, EXACT, PTX,
                )  # fmt: skip
                total += tl.sum(value, axis=1)
            else:
                value = compute_and_store(
                    z, None, shift, inverse, weight_slope, weight, positive_slope, negative_slope, unit, row, column,
                    gradient_at, inside, mask_ptr, mask_stride, upstream_ptr, value_ptr, num_labels, SPEC, WANT_VALUE,
                    WANT_GRADIENT, UPSTREAM, HAS_BIAS, REBALANCED, HAS_WEIGHT, HAS_MASK, EXACT, PTX,
                )  # fmt: skip
                total += tl.sum(value, axis=1)
            logits_at += logits_hop
            gradient_at += gradient_hop
            targets_at += targets_hop
        subtotal = tl.sum(total)
    else:
        # Each row has 2 * VECTOR lanes: for the columns before its first boundary and for those after its last.
        index = (program - num_main) * FRINGE + tl.arange(0, FRINGE)
        rows = (index // (2 * VECTOR)).to(tl.int64)
        which = index % (2 * VECTOR)
        heads = ((VECTOR - (rows * logits_stride) % VECTOR) % VECTOR).to(tl.int32)
        columns = tl.where(which < VECTOR, which, heads + (num_labels - heads) // VECTOR * VECTOR + which - VECTOR)
        end = tl.where(which < VECTOR, heads, num_labels)
        valid = (rows < num_rows) & (columns < end)
        logits = tl.load(logits_ptr + rows * logits_stride + columns, mask=valid, other=float("-inf")).to(COMPUTE)
        if CSR:
            labels = search_label(crow_ptr, col_ptr, rows, columns, valid, num_ids)
        else:
            raw = tl.load(targets_ptr + rows * targets_stride + columns, mask=valid, other=0)
            labels, logits = dense_label(raw, logits)
        shifts = load_shift(bias_ptr + columns, valid, SPEC) if HAS_BIAS else 0.0
        inverses = tl.load(inverse_frequency_ptr + columns, mask=valid, other=1.0) if REBALANCED else 0.0
        weight_slopes = tl.load(weight_slope_ptr + rows, mask=valid, other=0.0) if REBALANCED else 0.0
        weights = tl.load(label_weight_ptr + columns, mask=valid, other=0.0) if HAS_LABEL_WEIGHT else 1.0
        if HAS_ROW_WEIGHT:
            weights *= tl.load(row_weight_ptr + rows, mask=valid, other=0.0)
        fringe_at = gradient_ptr + rows * gradient_stride + columns if WANT_GRADIENT else None
        values = compute_and_store(
            logits, labels, shifts, inverses, weight_slopes, weights, positive_slope, negative_slope, unit, rows,
            columns, fringe_at, valid, mask_ptr, mask_stride, upstream_ptr, value_ptr, num_labels, SPEC, WANT_VALUE,
            WANT_GRADIENT, UPSTREAM, HAS_BIAS, REBALANCED, HAS_WEIGHT, HAS_MASK, EXACT, PTX,
        )  # fmt: skip
        subtotal = tl.sum(values)

    if WANT_VALUE == "sum":
        finish_sum(partial_ptr, counters_ptr, value_ptr, subtotal, factor * unit, num_programs, TEAM)


@triton.jit(do_not_specialize=["num_rows", "num_labels", "stride"])
def scale_kernel(gradient_ptr, upstream_ptr, num_rows, num_labels, stride, BLOCK: tl.constexpr):
    """gradient *= upstream, in place; returns at once where upstream is 1, which only the device knows."""
    upstream = tl.load(upstream_ptr)
    if upstream != 1.0:
        blocks = tl.cdiv(num_labels, BLOCK)
        for work in range(tl.program_id(0), num_rows * blocks, tl.num_programs(0)):
            row = (work // blocks).to(tl.int64)
            column = work % blocks * BLOCK + tl.arange(0, BLOCK)
            place = gradient_ptr + row * stride + column
            gradient = tl.load(place, mask=column < num_labels)
            scaled = gradient.to(upstream.dtype) * upstream
            tl.store(place, scaled.to(gradient.dtype), mask=column < num_labels)
