"""The terms of rows of dense targets: what ``row_terms_kernel`` makes of label ids."""

import triton
import triton.language as tl

from .labels import any_label, distance_to_boundary, is_share, slope_of_weight
from .ordered_sum import last_to_arrive


@triton.jit
def as_share(raw, DTYPE: tl.constexpr):
    """Dense targets; those of floating point in DTYPE."""
    return raw.to(DTYPE) if raw.dtype.is_floating() else raw


@triton.jit
def counted(share):
    """Which targets count in their row's sum. What a mask leaves out, or the loss reports, counts nowhere."""
    return (share != 0.0) & is_share(share) if share.dtype.is_floating() else share == 1


@triton.jit
def times_share(inverse, share):
    """1/n of the targets that count, times the target; 0 where ``inverse`` is 0."""
    return inverse * tl.where(counted(share), share, 0.0) if share.dtype.is_floating() else inverse


@triton.jit(do_not_specialize=["num_labels", "targets_stride", "num_parts", "part_blocks"])
def dense_sums_kernel(
    # Inputs: targets [N, C]; inverse_frequency [C].
    targets_ptr,
    inverse_frequency_ptr,
    # Output: weight_slope [N]. Scratch: partial [N * num_parts]; counters [N], zeros, which are zeros again afterwards.
    weight_slope_ptr,
    partial_ptr,
    counters_ptr,
    num_labels,
    targets_stride: tl.int64,
    num_parts,
    part_blocks,
    SLOPE_FACTOR: tl.constexpr,
    VECTOR: tl.constexpr,
    BLOCK: tl.constexpr,
    MOST_PARTS: tl.constexpr,
):
    """weight_slope, SLOPE_FACTOR / (sum of target times 1/n over the row), of rows cut into ``num_parts`` parts.

    A program sums up a part, ``part_blocks`` blocks, 16 bytes of targets at a time. The last program of a row to finish
    adds up the row's parts, in their order. Most blocks hold no label, and of the others only the labels' 1/n are read.
    """
    row = tl.program_id(0) // num_parts
    part = tl.program_id(0) - row * num_parts
    head = distance_to_boundary(row, targets_stride, VECTOR)
    whole = (num_labels - head) // VECTOR * VECTOR
    start = row.to(tl.int64) * targets_stride
    # Where the weight is steep, each part is rounded once.
    DTYPE: tl.constexpr = inverse_frequency_ptr.dtype.element_ty
    SUM: tl.constexpr = tl.float64 if SLOPE_FACTOR > 0.0 else DTYPE
    total = tl.zeros([BLOCK], SUM)
    targets_at = targets_ptr + tl.multiple_of(start + head, VECTOR)
    for block in range(part * part_blocks, (part + 1) * part_blocks):
        offset = block * BLOCK + tl.arange(0, BLOCK)
        raw = tl.load(targets_at + offset, mask=offset < whole, other=0)
        if any_label(raw):
            share = as_share(raw, DTYPE)
            counts = (offset < whole) & counted(share)
            inverse = tl.load(inverse_frequency_ptr + head + offset, mask=counts, other=0.0)
            total += times_share(inverse, share).to(SUM)
    # The columns before the first 16-byte boundary and after the last.
    lane = tl.arange(0, 2 * VECTOR)
    column = tl.where(lane < VECTOR, lane, head + whole + lane - VECTOR)
    # The first part takes them.
    valid = column < tl.where(lane < VECTOR, head, num_labels) * (part == 0).to(tl.int32)
    raw = tl.load(targets_ptr + start + column, mask=valid, other=0)
    share = as_share(raw, DTYPE)
    rest = times_share(tl.load(inverse_frequency_ptr + column, mask=valid & counted(share), other=0.0), share)
    own = (tl.sum(total) + tl.sum(rest.to(SUM))).to(DTYPE)
    partials_at = partial_ptr + row.to(tl.int64) * num_parts
    if last_to_arrive(partials_at + part, own, counters_ptr + row, num_parts):
        tl.store(counters_ptr + row, 0)
        index = tl.arange(0, MOST_PARTS)
        parts = tl.load(partials_at + index, mask=index < num_parts, other=0.0, volatile=True)
        tl.store(weight_slope_ptr + row, slope_of_weight(tl.sum(parts), SLOPE_FACTOR))


@triton.jit(do_not_specialize=["num_rows", "num_labels", "targets_stride"])
def narrow_sums_kernel(
    # Inputs: targets [N, C]; inverse_frequency [C]. Output: weight_slope [N].
    targets_ptr,
    inverse_frequency_ptr,
    weight_slope_ptr,
    num_rows,
    num_labels,
    targets_stride: tl.int64,
    SLOPE_FACTOR: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """The same for rows of at most COLUMNS labels, ROWS of them a program."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    inverse = tl.load(inverse_frequency_ptr + column, mask=column < num_labels, other=0.0)
    valid = (row < num_rows)[:, None] & (column < num_labels)[None, :]
    place = targets_ptr + row.to(tl.int64)[:, None] * targets_stride + column[None, :]
    raw = tl.load(place, mask=valid, other=0)
    share = as_share(raw, inverse_frequency_ptr.dtype.element_ty)
    terms = times_share(tl.where(counted(share), inverse[None, :], 0.0), share)
    sums = tl.sum(terms.to(tl.float64) if SLOPE_FACTOR > 0.0 else terms, axis=1).to(inverse.dtype)
    tl.store(weight_slope_ptr + row, slope_of_weight(sums, SLOPE_FACTOR), mask=row < num_rows)
