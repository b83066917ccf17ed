"""Which elements are labels (in dense targets, in a tile, one by one), and the terms of the rows."""

import triton
import triton.language as tl

from .element import LOG2E


@triton.jit
def dense_label(raw, z):
    """Labels of dense targets, and the logits with NaN where a target is neither 0 nor 1."""
    if raw.dtype == tl.int1:
        return raw, z
    y = raw != 0
    return y, tl.where(y & (raw != 1), float("nan"), z)


@triton.jit
def any_label(raw):
    """Whether dense targets have anything but zeros."""
    # A byte is never negative; the maximum of other numbers could hide one.
    if not (raw.dtype == tl.uint8 or raw.dtype == tl.int1):
        raw = raw != 0
    return tl.max(raw.to(tl.int32)) != 0


@triton.jit
def tile_labels(col_ptr, low, high, start, group, lane, VECTOR: tl.constexpr):
    """Which elements [GROUPS, VECTOR] of a tile that begins at column ``start`` are labels, by the ids in ``col`` from
    ``low`` to ``high``. Each group of elements gathers its labels as bits, so that no element looks anything up.
    """
    bits = tl.zeros(group.shape, tl.int32)
    for entry in range(low, high):
        column = tl.load(col_ptr + entry).to(tl.int32) - start
        bits |= tl.where(group == column // VECTOR, 1 << (column % VECTOR), 0)
    return (bits[:, None] & (1 << lane)[None, :]) != 0


@triton.jit
def row_bounds(crow_ptr, row, valid, num_ids):
    """Where a row's label ids begin and end in ``col``; never outside it, whatever the offsets are."""
    low = tl.load(crow_ptr + row, mask=valid, other=0)
    high = tl.load(crow_ptr + row + 1, mask=valid, other=0)
    low = tl.minimum(tl.maximum(low, 0), num_ids)
    return low, tl.minimum(tl.maximum(high, low), num_ids)


@triton.jit
def search_label(crow_ptr, col_ptr, row, column, valid, num_ids):
    """Whether each column is a label of its row, by binary search of the row's ascending label ids."""
    low, high = row_bounds(crow_ptr, row, valid, num_ids)
    end = high
    while tl.max(high - low) > 0:
        middle = (low + high) // 2
        below = tl.load(col_ptr + middle, mask=low < high, other=0) < column
        low = tl.where((low < high) & below, middle + 1, low)
        high = tl.where((low < high) & (middle < high) & (below == 0), middle, high)
    return valid & (low < end) & (tl.load(col_ptr + low, mask=low < end, other=-1) == column)


@triton.jit(do_not_specialize=["num_labels", "num_ids", "targets_stride", "logits_stride", "num_tiles", "num_counters"])
def row_terms_kernel(
    # Inputs: targets [N, C]; or crow [N + 1] and col [num_ids]; inverse_frequency [C]; row_sum [N].
    targets_ptr,
    crow_ptr,
    col_ptr,
    inverse_frequency_ptr,
    row_sum_ptr,
    # Outputs: weight_slope [N]; tile_offsets [N, num_tiles + 1]; counters [num_counters].
    weight_slope_ptr,
    tile_offsets_ptr,
    counters_ptr,
    # Shapes and strides, in elements.
    num_labels,
    num_ids,
    targets_stride,
    logits_stride,
    num_tiles,
    num_counters,
    # Constants of the compiled kernel.
    BETA: tl.constexpr,
    CSR: tl.constexpr,
    REBALANCED: tl.constexpr,
    HAS_ROW_SUM: tl.constexpr,
    TILE: tl.constexpr,
    VECTOR: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program a row. It makes the row's weight_slope, -beta * log2(e) / row_sum, and for label ids the offsets
    in ``col`` at which each tile's labels begin. The first program also sets the counters to zero.

    Ids that are out of range, out of order or repeated make weight_slope NaN, and so the row's loss and gradient. Where
    the weight is not rebalanced there is no weight_slope, and ids out of range are left out.
    """
    row = tl.program_id(0).to(tl.int64)
    if row == 0:
        for begin in range(0, num_counters, BLOCK):
            counter = begin + tl.arange(0, BLOCK)
            tl.store(counters_ptr + counter, 0, mask=counter < num_counters)
    if CSR:
        low, high = row_bounds(crow_ptr, row, True, num_ids)
        # Columns before the row's first 16-byte boundary belong to no tile.
        head = (VECTOR - (row * logits_stride) % VECTOR) % VECTOR
        end = head + (num_labels - head) // VECTOR * VECTOR
    if REBALANCED:
        total = tl.zeros([BLOCK], weight_slope_ptr.dtype.element_ty)
        invalid = tl.zeros([BLOCK], tl.int32)
        if HAS_ROW_SUM:
            # The ids are a chunk of labels, which the caller has checked.
            total = tl.where(tl.arange(0, BLOCK) == 0, tl.load(row_sum_ptr + row), total)
        elif CSR:
            invalid += ((tl.load(crow_ptr + row) != low) | (tl.load(crow_ptr + row + 1) != high)).to(tl.int32)
            for begin in range(low, high, BLOCK):
                entry = begin + tl.arange(0, BLOCK)
                column = tl.load(col_ptr + entry, mask=entry < high, other=0)
                before = tl.load(col_ptr + entry - 1, mask=(entry > low) & (entry < high), other=-1)
                inside = (column >= 0) & (column < num_labels)
                invalid += ((entry < high) & ((inside == 0) | (before >= column))).to(tl.int32)
                total += tl.load(inverse_frequency_ptr + column, mask=(entry < high) & inside, other=0.0)
        else:
            for begin in range(0, num_labels, BLOCK):
                column = begin + tl.arange(0, BLOCK)
                raw = tl.load(targets_ptr + row * targets_stride + column, mask=column < num_labels, other=0)
                inverse = tl.load(inverse_frequency_ptr + column, mask=column < num_labels, other=0.0)
                # Only a 1 is a label: what a mask leaves out, or the loss reports, counts nowhere.
                total += tl.where(raw == 1, inverse, 0.0)
        # No labels: minus infinity, which the weight takes as r = infinity.
        slope = (1.0 / tl.sum(total)) * (-BETA * LOG2E)
        tl.store(weight_slope_ptr + row, tl.where(tl.sum(invalid) > 0, float("nan"), slope))
    if CSR:
        SOME: tl.constexpr = 32
        TILES: tl.constexpr = 128
        for tile in range(0, num_tiles + 1, TILES):
            boundary = tile + tl.arange(0, TILES)
            limit = tl.minimum(head + boundary.to(tl.int64) * TILE, end)
            before = tl.zeros([TILES], tl.int32)
            for begin in range(low, high, SOME):
                entry = begin + tl.arange(0, SOME)
                column = tl.load(col_ptr + entry, mask=entry < high, other=0)
                is_before = (column[None, :] < limit[:, None]) & (entry < high)[None, :]
                before += tl.sum(is_before.to(tl.int32), axis=1)
            offset = (low + before).to(tl.int32)
            tl.store(tile_offsets_ptr + row * (num_tiles + 1) + boundary, offset, mask=boundary <= num_tiles)
