"""Which elements are labels (in dense targets, in a tile, one by one), and the terms of the rows."""

import triton
import triton.language as tl

from .element import either


@triton.jit
def is_share(share):
    """Whether numbers are in [0, 1]; NaN is not."""
    return tl.minimum(tl.maximum(share, 0.0), 1.0) == share


@triton.jit
def dense_label(raw, z):
    """Which dense targets are labels, and the logits with NaN where a target is neither 0 nor 1.

    Of floating-point targets: by how much they are labels, in the dtype of the logits; NaN outside [0, 1].
    """
    if raw.dtype == tl.int1:
        return raw, z
    elif raw.dtype.is_floating():
        share = raw.to(z.dtype)
        return tl.where(is_share(share), share, float("nan")), z
    else:
        y = raw != 0
        return y, tl.where(y & (raw != 1), float("nan"), z)


@triton.jit
def any_label(raw):
    """Whether dense targets have anything but zeros."""
    if raw.dtype == tl.uint8 and raw.shape[-1] > 1:
        # A thread has bytes side by side. The compiler would take their maximum in 16 bits, and cut it to these each
        # time; a sum of bytes it leaves in 32.
        return tl.sum(raw.to(tl.int32)) != 0
    else:
        # A byte is never negative; the maximum of other numbers could hide one.
        if not (raw.dtype == tl.uint8 or raw.dtype == tl.int1):
            raw = raw != 0
        return tl.max(raw.to(tl.int32)) != 0


@triton.jit
def smoothed(y, SMOOTHING: tl.constexpr, like):
    """Labels moved towards 1/2, as shares in the dtype of ``like``; y may be shares already. Without smoothing, y."""
    if SMOOTHING == 0.0:
        return y
    elif y.dtype == tl.int1:
        return either(y, 1.0 - SMOOTHING / 2, SMOOTHING / 2, like)
    else:
        return y * (1.0 - SMOOTHING) + SMOOTHING / 2


@triton.jit
def tile_labels(col_ptr, low, high, start, group, lane, VECTOR: tl.constexpr):
    """Which elements [GROUPS, VECTOR] of a tile that begins at column ``start`` are labels, by the ids in ``col`` from
    ``low`` to ``high``. Each group of elements gathers its labels as bits, so that no element looks anything up.
    """
    bits = tl.zeros(group.shape, tl.int32)
    for entry in range(low, high):
        # Unsigned, so that the divisions are shifts; an id below the tile becomes one far above it.
        column = (tl.load(col_ptr + entry).to(tl.int32) - start).to(tl.uint32)
        bits |= tl.where(group == (column // VECTOR).to(tl.int32), 1 << (column % VECTOR).to(tl.int32), 0)
    return (bits[:, None] & (1 << lane)[None, :]) != 0


@triton.jit
def clamped(offset, num_ids):
    """An offset of int64 as int32 in [0, num_ids]."""
    LARGEST: tl.constexpr = 2147483647
    return tl.minimum(tl.minimum(tl.maximum(offset, 0), LARGEST).to(tl.int32), num_ids)


@triton.jit
def row_bounds(crow_ptr, row, valid, num_ids):
    """Where a row's label ids begin and end in ``col``, int32; never outside it, whatever the offsets are."""
    low = clamped(tl.load(crow_ptr + row, mask=valid, other=0), num_ids)
    return low, tl.maximum(clamped(tl.load(crow_ptr + row + 1, mask=valid, other=0), num_ids), low)


@triton.jit
def distance_to_boundary(row, stride, VECTOR: tl.constexpr):
    """Elements from a row's beginning to its first multiple of VECTOR; the last bits do not mind an overflow."""
    return (0 - row.to(tl.int32) * stride.to(tl.int32)) & (VECTOR - 1)


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


@triton.jit
def slope_of_weight(row_sum, SLOPE_FACTOR: tl.constexpr):
    """weight_slope, of which ``balanced_element`` makes the rebalanced weight: SLOPE_FACTOR / row_sum; no labels give
    minus infinity, which the weight takes as r = infinity. Where the weight is steep, row_sum.
    """
    if SLOPE_FACTOR > 0.0:
        return row_sum
    else:
        return (1.0 / row_sum) * SLOPE_FACTOR


@triton.jit
def sum_of_labels(
    crow_ptr,
    col_ptr,
    inverse_frequency_ptr,
    row,
    valid,
    num_labels,
    num_ids,
    SLOPE_FACTOR: tl.constexpr,
    AT_ONCE: tl.constexpr,
):
    """Sum of 1/n over the labels of a row; NaN for invalid ids, and where offsets leave ``col``.

    Ids are invalid that are out of range, out of order or repeated. Where the weight is steep, the sum is rounded once.
    """
    DTYPE: tl.constexpr = inverse_frequency_ptr.dtype.element_ty
    SUM: tl.constexpr = tl.float64 if SLOPE_FACTOR > 0.0 else DTYPE
    low, high = row_bounds(crow_ptr, row, valid, num_ids)
    wrong = tl.load(crow_ptr + row, mask=valid, other=0) != low
    wrong |= tl.load(crow_ptr + row + 1, mask=valid, other=0) != high
    total = tl.zeros([AT_ONCE], SUM)
    invalid = tl.zeros([AT_ONCE], tl.int32) + wrong.to(tl.int32)
    for begin in range(low, high, AT_ONCE):
        entry = begin + tl.arange(0, AT_ONCE)
        column = tl.load(col_ptr + entry, mask=entry < high, other=0)
        before = tl.load(col_ptr + entry - 1, mask=(entry > low) & (entry < high), other=-1)
        narrow = column.to(tl.int32)
        inside = (narrow >= 0) & (narrow < num_labels) & (narrow == column)
        invalid += ((entry < high) & ((inside == 0) | (before >= column))).to(tl.int32)
        total += tl.load(inverse_frequency_ptr + narrow, mask=(entry < high) & inside, other=0.0)
    return tl.where(tl.sum(invalid) > 0, float("nan"), tl.sum(total).to(DTYPE))


@triton.jit
def count_before(col_ptr, low, high, first, second, AT_ONCE: tl.constexpr):
    """How many ids in ``col`` from ``low`` to ``high`` are below ``first``, and how many below ``second``."""
    before_first = tl.zeros([AT_ONCE], tl.int32)
    before_second = tl.zeros([AT_ONCE], tl.int32)
    for begin in range(low, high, AT_ONCE):
        entry = begin + tl.arange(0, AT_ONCE)
        column = tl.load(col_ptr + entry, mask=entry < high, other=0)
        before_first += ((column < first) & (entry < high)).to(tl.int32)
        before_second += ((column < second) & (entry < high)).to(tl.int32)
    return tl.sum(before_first), tl.sum(before_second)


@triton.jit(do_not_specialize=["num_labels", "num_ids", "logits_stride", "num_tiles"])
def row_terms_kernel(
    # Inputs: crow [N + 1] and col [num_ids]; inverse_frequency [C].
    crow_ptr,
    col_ptr,
    inverse_frequency_ptr,
    # Outputs: weight_slope [N]; tile_offsets [N, num_tiles + 1].
    weight_slope_ptr,
    tile_offsets_ptr,
    # Shapes and strides, in elements.
    num_labels,
    num_ids,
    logits_stride: tl.int64,
    num_tiles,
    # Constants of the compiled kernel.
    SLOPE_FACTOR: tl.constexpr,
    REBALANCED: tl.constexpr,
    TILE: tl.constexpr,
    VECTOR: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program a row. It makes the row's weight_slope, SLOPE_FACTOR / row_sum, and the offsets in ``col`` at which
    each tile's labels begin.

    Ids that are out of range, out of order or repeated make weight_slope NaN, and so the row's loss and gradient. Where
    the weight is not rebalanced there is no weight_slope, and ids out of range are left out.
    """
    row = tl.program_id(0).to(tl.int64)
    if REBALANCED:
        total = sum_of_labels(
            crow_ptr, col_ptr, inverse_frequency_ptr, row, True, num_labels, num_ids, SLOPE_FACTOR, BLOCK
        )  # fmt: skip
        tl.store(weight_slope_ptr + row, slope_of_weight(total, SLOPE_FACTOR))
    low, high = row_bounds(crow_ptr, row, True, num_ids)
    # Columns before the row's first 16-byte boundary belong to no tile.
    head = distance_to_boundary(row, logits_stride, VECTOR)
    end = head + (num_labels - head) // VECTOR * VECTOR
    SOME: tl.constexpr = 16
    TILES: tl.constexpr = 128
    LARGEST: tl.constexpr = 2147483647
    for tile in range(0, num_tiles + 1, TILES):
        boundary = tile + tl.arange(0, TILES)
        limit = tl.minimum(head + boundary * TILE, end)
        before = tl.zeros([TILES], tl.int32)
        for begin in range(low, high, SOME):
            entry = begin + tl.arange(0, SOME)
            # Beyond the last entry, and beyond int32, an id is above every limit.
            column = tl.load(col_ptr + entry, mask=entry < high, other=LARGEST)
            column = tl.minimum(tl.maximum(column, -1), LARGEST).to(tl.int32)
            before += tl.sum((column[None, :] < limit[:, None]).to(tl.int32), axis=1)
        tl.store(tile_offsets_ptr + row * (num_tiles + 1) + boundary, low + before, mask=boundary <= num_tiles)
