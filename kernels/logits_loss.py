"""Forward, backward and one-pass kernel over logits [N, C]."""

import triton
import triton.language as tl

from .element import balanced_element
from .labels import dense_label, search_label, tile_labels


@triton.jit
def finish_sum(partial_ptr, counter_ptr, loss_ptr, value, scale, num_partials):
    """Adds up the programs' sums: the last program to arrive does, in their order, so that the bits never change."""
    program = tl.program_id(0)
    tl.store(partial_ptr + program, value)
    tl.debug_barrier()
    if tl.atomic_add(counter_ptr, 1, sem="acq_rel", scope="gpu") == num_partials - 1:
        SOME: tl.constexpr = 256
        total = tl.zeros([SOME], value.dtype)
        for begin in range(0, num_partials, SOME):
            index = begin + tl.arange(0, SOME)
            total += tl.load(partial_ptr + index, mask=index < num_partials, other=0.0, volatile=True)
        tl.store(loss_ptr, tl.sum(total) * scale)


@triton.jit
def store_element(
    value,
    dz,
    row,
    column,
    place,
    inside,
    mask_ptr,
    mask_stride,
    upstream_ptr,
    value_ptr,
    gradient_ptr,
    num_labels,
    WANT_VALUE: tl.constexpr,
    WANT_GRADIENT: tl.constexpr,
    UPSTREAM: tl.constexpr,
    HAS_MASK: tl.constexpr,
):
    """Applies mask and upstream gradient, stores what is wanted, and returns the masked value."""
    if HAS_MASK:
        kept = tl.load(mask_ptr + row * mask_stride + column, mask=inside, other=0) != 0
        value = tl.where(kept, value, 0.0)
    if WANT_VALUE == "elements":
        tl.store(value_ptr + row * num_labels + column, value, mask=inside)
    if WANT_GRADIENT:
        if UPSTREAM == "elements":
            dz *= tl.load(upstream_ptr + row * num_labels + column, mask=inside, other=0.0)
        if HAS_MASK:
            dz = tl.where(kept, dz, 0.0)
        tl.store(gradient_ptr + place, dz.to(gradient_ptr.dtype.element_ty), mask=inside)
    return value


# Sizes are not specialised: a batch of one row, or of 16, is no other kernel.
@triton.jit(
    do_not_specialize=[
        "num_rows", "num_labels", "logits_stride", "targets_stride", "mask_stride", "gradient_stride", "num_tiles",
        "num_main", "num_programs", "rows_each",
    ]
)  # fmt: skip
def logits_loss_kernel(
    logits_ptr,
    targets_ptr,
    crow_ptr,
    col_ptr,
    first_ptr,
    bias_ptr,
    inverse_frequency_ptr,
    label_weight_ptr,
    row_rate_ptr,
    row_weight_ptr,
    mask_ptr,
    upstream_ptr,
    value_ptr,
    gradient_ptr,
    partial_ptr,
    counter_ptr,
    num_rows,
    num_labels,
    logits_stride,
    targets_stride,
    mask_stride,
    gradient_stride,
    num_tiles,
    num_main,
    num_programs,
    rows_each,
    scale,
    scale_rest,
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
    P: tl.constexpr,
    G: tl.constexpr,
    FRINGE: tl.constexpr,
):
    """A grid of main programs, each a tile of G * P columns by some rows, then fringe programs.

    A row's tiles begin at its first 16-byte boundary (P elements) and hold whole 16 bytes; rows that are PERIOD apart
    begin alike, so a program that takes such rows keeps its columns' constants in registers. What is left of a row,
    less than P elements at either end, is the fringe programs' work. P = 1: no fringe, any alignment.

    WANT_VALUE: "", "sum" or "elements" (value_ptr [N, C]). UPSTREAM: "", "scalar" or "elements".
    scale + scale_rest: the factor on sum and gradient, in two parts for float64.
    """
    COMPUTE: tl.constexpr = tl.float64 if logits_ptr.dtype.element_ty == tl.float64 else tl.float32
    program = tl.program_id(0)
    factor = tl.full((), 1.0, COMPUTE) * scale
    if tl.float64 == COMPUTE:
        factor += scale_rest
    slope = factor
    if UPSTREAM == "scalar":
        slope *= tl.load(upstream_ptr).to(COMPUTE)
    positive_slope = -SPEC[6] * slope
    negative_slope = SPEC[7] * slope
    if program < num_main:
        lane = tl.arange(0, P)
        group = tl.arange(0, G)
        total = tl.zeros([G, P], COMPUTE)
        tile = program % num_tiles
        residue = (program // num_tiles) % PERIOD
        first_row = ((program // num_tiles) // PERIOD * rows_each * PERIOD + residue).to(tl.int64)
        head = ((P - (first_row * logits_stride) % P) % P).to(tl.int32)
        whole = (num_labels - head) // P * P
        offset = tile * (G * P) + group[:, None] * P + lane[None, :]
        inside = offset < whole
        column = head + offset
        bias = tl.load(bias_ptr + column, mask=inside, other=0.0) if HAS_BIAS else 0.0
        inverse = tl.load(inverse_frequency_ptr + column, mask=inside, other=1.0) if REBALANCED else 0.0
        # Multiples of P, as are the strides of PERIOD rows: the compiler may move 16 bytes at once.
        logits_begin = (first_row * logits_stride + P - 1) // P * P
        logits_hop = tl.multiple_of(PERIOD * logits_stride, P).to(tl.int64)
        gradient_begin = (first_row * gradient_stride + P - 1) // P * P
        gradient_hop = tl.multiple_of(PERIOD * gradient_stride, P).to(tl.int64)
        targets_begin = first_row * targets_stride + head
        targets_hop = (PERIOD * targets_stride).to(tl.int64)
        if ALIGNED_TARGETS:
            targets_begin = (first_row * targets_stride + P - 1) // P * P
            targets_hop = tl.multiple_of(PERIOD * targets_stride, P).to(tl.int64)
        label_weight = tl.load(label_weight_ptr + column, mask=inside, other=0.0) if HAS_LABEL_WEIGHT else 1.0
        for step in range(rows_each):
            row = first_row + step * PERIOD
            if row < num_rows:
                begin = logits_begin + step * logits_hop
                z = tl.load(logits_ptr + begin + offset, mask=inside, other=float("-inf")).to(COMPUTE)
                rate = tl.load(row_rate_ptr + row) if REBALANCED else 0.0
                if CSR:
                    start = head + tile * (G * P)
                    y = tile_labels(first_ptr + row * (num_tiles + 1) + tile, col_ptr, start, group, lane, P)
                else:
                    place = targets_begin + step * targets_hop
                    y, z = dense_label(tl.load(targets_ptr + place + offset, mask=inside, other=0), z)
                weight = label_weight
                if HAS_ROW_WEIGHT:
                    weight *= tl.load(row_weight_ptr + row)
                value, dz = balanced_element(
                    z, y, bias, inverse, rate, weight, positive_slope, negative_slope, SPEC, HAS_BIAS, REBALANCED,
                    HAS_LABEL_WEIGHT or HAS_ROW_WEIGHT, PTX,
                )  # fmt: skip
                place = gradient_begin + step * gradient_hop + offset
                value = store_element(
                    value, dz, row, column, place, inside, mask_ptr, mask_stride, upstream_ptr, value_ptr, gradient_ptr,
                    num_labels, WANT_VALUE, WANT_GRADIENT, UPSTREAM, HAS_MASK,
                )  # fmt: skip
                if WANT_VALUE == "sum":
                    total += value
        subtotal = tl.sum(total)
    else:
        # Some rows by 2 P lanes: the columns before the first boundary, and those after the last.
        index = (program - num_main) * FRINGE + tl.arange(0, FRINGE)
        rows = (index // (2 * P)).to(tl.int64)
        which = index % (2 * P)
        heads = ((P - (rows * logits_stride) % P) % P).to(tl.int32)
        columns = tl.where(which < P, which, heads + (num_labels - heads) // P * P + which - P)
        end = tl.where(which < P, heads, num_labels)
        valid = (rows < num_rows) & (columns < end)
        logits = tl.load(logits_ptr + rows * logits_stride + columns, mask=valid, other=float("-inf")).to(COMPUTE)
        if CSR:
            labels = search_label(crow_ptr, col_ptr, rows, columns, valid)
        else:
            raw = tl.load(targets_ptr + rows * targets_stride + columns, mask=valid, other=0)
            labels, logits = dense_label(raw, logits)
        biases = tl.load(bias_ptr + columns, mask=valid, other=0.0) if HAS_BIAS else 0.0
        inverses = tl.load(inverse_frequency_ptr + columns, mask=valid, other=1.0) if REBALANCED else 0.0
        rates = tl.load(row_rate_ptr + rows, mask=valid, other=0.0) if REBALANCED else 0.0
        weights = tl.load(label_weight_ptr + columns, mask=valid, other=0.0) if HAS_LABEL_WEIGHT else 1.0
        if HAS_ROW_WEIGHT:
            weights *= tl.load(row_weight_ptr + rows, mask=valid, other=0.0)
        values, slopes = balanced_element(
            logits, labels, biases, inverses, rates, weights, positive_slope, negative_slope, SPEC, HAS_BIAS,
            REBALANCED, HAS_LABEL_WEIGHT or HAS_ROW_WEIGHT, PTX,
        )  # fmt: skip
        values = store_element(
            values, slopes, rows, columns, rows * gradient_stride + columns, valid, mask_ptr, mask_stride, upstream_ptr,
            value_ptr, gradient_ptr, num_labels, WANT_VALUE, WANT_GRADIENT, UPSTREAM, HAS_MASK,
        )  # fmt: skip
        subtotal = tl.sum(values)

    if WANT_VALUE == "sum":
        finish_sum(partial_ptr, counter_ptr, value_ptr, subtotal, factor, num_programs)


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
