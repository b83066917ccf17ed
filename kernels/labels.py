"""Which elements are labels: of dense targets, of a tile by bits, of single elements by search; and what rows need."""

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
    if raw.dtype.is_floating():
        raw = raw != 0
    return tl.max(raw.to(tl.int32)) != 0


@triton.jit
def tile_labels(col_ptr, low, high, start, group, lane, P: tl.constexpr):
    """Labels [G, P], ``col`` from low to high, of a tile that begins at column ``start``, by bits: no element looks
    anything up."""
    bits = tl.zeros(group.shape, tl.int32)
    for entry in range(low, high):
        column = tl.load(col_ptr + entry).to(tl.int32) - start
        bits |= tl.where(group == column // P, 1 << (column % P), 0)
    return (bits[:, None] & (1 << lane)[None, :]) != 0


@triton.jit
def search_label(crow_ptr, col_ptr, row, column, valid):
    """Whether each column is a label of its row, by binary search of the row's ascending label ids."""
    low = tl.load(crow_ptr + row, mask=valid, other=0)
    high = tl.load(crow_ptr + row + 1, mask=valid, other=0)
    end = high
    while tl.max(high - low) > 0:
        middle = (low + high) // 2
        below = tl.load(col_ptr + middle, mask=low < high, other=0) < column
        low = tl.where((low < high) & below, middle + 1, low)
        high = tl.where((low < high) & (middle < high) & (below == 0), middle, high)
    return valid & (low < end) & (tl.load(col_ptr + low, mask=low < end, other=-1) == column)


@triton.jit(do_not_specialize=["num_labels", "targets_stride", "logits_stride", "num_tiles", "num_counters"])
def row_terms_kernel(
    targets_ptr,
    crow_ptr,
    col_ptr,
    inverse_frequency_ptr,
    row_sum_ptr,
    row_rate_ptr,
    first_ptr,
    counter_ptr,
    num_labels,
    targets_stride,
    logits_stride,
    num_tiles,
    num_counters,
    BETA: tl.constexpr,
    CSR: tl.constexpr,
    REBALANCED: tl.constexpr,
    HAS_ROW_SUM: tl.constexpr,
    TILE: tl.constexpr,
    P: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program a row: row_rate [N], for CSR targets first [N, num_tiles + 1], where each tile's labels begin, and
    zeros for the counters."""
    row = tl.program_id(0).to(tl.int64)
    if row == 0:
        for begin in range(0, num_counters, BLOCK):
            counter = begin + tl.arange(0, BLOCK)
            tl.store(counter_ptr + counter, 0, mask=counter < num_counters)
    if CSR:
        low = tl.load(crow_ptr + row)
        high = tl.load(crow_ptr + row + 1)
        # Columns before the row's first 16-byte boundary belong to no tile.
        head = (P - (row * logits_stride) % P) % P
        end = head + (num_labels - head) // P * P
    if REBALANCED:
        total = tl.zeros([BLOCK], row_rate_ptr.dtype.element_ty)
        if HAS_ROW_SUM:
            total = tl.where(tl.arange(0, BLOCK) == 0, tl.load(row_sum_ptr + row), total)
        elif CSR:
            for begin in range(low, high, BLOCK):
                entry = begin + tl.arange(0, BLOCK)
                column = tl.load(col_ptr + entry, mask=entry < high, other=0)
                total += tl.load(inverse_frequency_ptr + column, mask=entry < high, other=0.0)
        else:
            for begin in range(0, num_labels, BLOCK):
                column = begin + tl.arange(0, BLOCK)
                raw = tl.load(targets_ptr + row * targets_stride + column, mask=column < num_labels, other=0)
                inverse = tl.load(inverse_frequency_ptr + column, mask=column < num_labels, other=0.0)
                total += tl.where(raw != 0, inverse, 0.0)
        # No labels: minus infinity, which the weight takes as r = infinity.
        tl.store(row_rate_ptr + row, (1.0 / tl.sum(total)) * (-BETA * LOG2E))
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
            tl.store(
                first_ptr + row * (num_tiles + 1) + boundary, (low + before).to(tl.int32), mask=boundary <= num_tiles
            )
