"""In-place step of a chunk of a linear classifier: gradient, weight and moments to new weight and moments."""

import triton
import triton.language as tl

# Which tensor random bits are for.
WEIGHT = tl.constexpr(0)
FIRST = tl.constexpr(1)
SECOND = tl.constexpr(2)
BIAS = tl.constexpr(3)


@triton.jit
def mix(x):
    """A hash of uint32: Wellons' "lowbias32" finalizer."""
    x = x ^ (x >> 16)
    x = x * 0x7FEB352D
    x = x ^ (x >> 15)
    x = x * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def step_key(seed_ptr, number_ptr):
    """uint32: a hash of seed and step, but for the step's last two bits, which say which tensor."""
    seed = tl.load(seed_ptr)
    number = tl.load(number_ptr)
    key = mix(mix(seed.to(tl.uint32)) ^ (seed >> 32).to(tl.uint32))
    return key, (number * 4).to(tl.uint32)


@triton.jit
def store_rounded(ptr, value, mask, row, column, key, number, WHICH: tl.constexpr, STOCHASTIC: tl.constexpr):
    """Stores float32 values as what ``ptr`` points to; to bfloat16 rounded to nearest or by the bits of their place."""
    if ptr.dtype.element_ty == tl.bfloat16:
        raw = value.to(tl.uint32, bitcast=True)
        if STOCHASTIC:
            row_key = mix(mix(key ^ (number + WHICH)) ^ row.to(tl.uint32))
            added = mix(row_key ^ (column.to(tl.uint32) * 0x9E3779B9)) >> 16
        else:
            # Ties to even; the interpreter's own conversion cuts off.
            added = ((raw >> 16) & 1) + 0x7FFF
        rounded = ((raw + added) & 0xFFFF0000).to(tl.float32, bitcast=True)
        value = tl.where(value == value, rounded, value)
    tl.store(ptr, value.to(ptr.dtype.element_ty), mask=mask)


@triton.jit
def stepped(
    g, value, first, second, square, rate, keep, root, SPEC: tl.constexpr, ADAMW: tl.constexpr, MOMENTUM: tl.constexpr
):
    """Value, first and second moment after a step; ``square``: what the second moment averages."""
    if ADAMW:
        first = first + SPEC[1] * (g - first)
        second = SPEC[2] * second + SPEC[3] * square
        value = value * keep - rate * (first / (tl.sqrt_rn(second) / root + SPEC[4]))
    else:
        if SPEC[5] != 0.0:
            g = g + SPEC[5] * value
        if MOMENTUM:
            first = SPEC[0] * first + g
            value = value - rate * first
        else:
            value = value - rate * g
    return value, first, second


@triton.jit(do_not_specialize=["num_rows", "first_row"])
def classifier_update_kernel(
    gradient_ptr,
    bias_gradient_ptr,
    weight_ptr,
    first_ptr,
    second_ptr,
    bias_ptr,
    bias_first_ptr,
    bias_second_ptr,
    numbers_ptr,
    finite_ptr,
    seed_ptr,
    number_ptr,
    num_rows,
    num_features,
    first_row,
    weight_stride,
    max_row_norm,
    SPEC: tl.constexpr,
    ADAMW: tl.constexpr,
    MOMENTUM: tl.constexpr,
    ROW_SECOND: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    CLIP: tl.constexpr,
    STOCHASTIC: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """ROWS rows a program. Gradient and moments [num_rows, num_features], rows side by side; weight by its stride.

    numbers: float64 [4], as ``Step`` says; finite: bool, False changes nothing; seed, number: int64.
    second: [num_rows] with ROW_SECOND. first_row: the label of the chunk's first row.
    SPEC: (momentum, 1 - beta1, beta2, 1 - beta2, eps, L2 weight decay).
    """
    if tl.load(finite_ptr) == 0:
        return
    factor = tl.load(numbers_ptr).to(tl.float32)
    rate = tl.load(numbers_ptr + 1).to(tl.float32)
    keep = tl.load(numbers_ptr + 2).to(tl.float32)
    root = tl.load(numbers_ptr + 3).to(tl.float32)
    key, number = step_key(seed_ptr, number_ptr)
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    is_row = row < num_rows
    label = row + first_row
    lane = tl.arange(0, BLOCK)

    if HAS_BIAS:
        bias_g = tl.load(bias_gradient_ptr + row, mask=is_row, other=0.0) * factor
    shrink = tl.full([ROWS], 1.0, tl.float32)
    mean_square = tl.zeros([ROWS], tl.float32)
    if CLIP or ROW_SECOND:
        total = tl.zeros([ROWS, BLOCK], tl.float32)
        for start in range(0, num_features, BLOCK):
            column = start + lane
            mask = is_row[:, None] & (column < num_features)[None, :]
            g = tl.load(gradient_ptr + row[:, None] * num_features + column[None, :], mask=mask, other=0.0) * factor
            total += g * g
        row_total = tl.sum(total, axis=1)
        if CLIP:
            norm = row_total
            if HAS_BIAS:
                norm += bias_g * bias_g
            norm = tl.sqrt_rn(norm)
            # NaN stays in sight.
            shrink = max_row_norm / tl.maximum(norm, max_row_norm, propagate_nan=tl.PropagateNan.ALL)
        # A square may be infinite where the gradient is not: clipped to nothing.
        mean_square = tl.where(shrink == 0.0, 0.0, row_total * shrink * shrink / num_features)

    if ROW_SECOND:
        row_second = tl.load(second_ptr + row, mask=is_row, other=0.0)
    for start in range(0, num_features, BLOCK):
        column = start + lane
        mask = is_row[:, None] & (column < num_features)[None, :]
        at = row[:, None] * num_features + column[None, :]
        g = tl.load(gradient_ptr + at, mask=mask, other=0.0) * factor
        if CLIP:
            g = g * shrink[:, None]
        weight_at = weight_ptr + row[:, None] * weight_stride + column[None, :]
        value = tl.load(weight_at, mask=mask, other=0.0).to(tl.float32)
        first = g
        second = g
        square = g * g
        if ADAMW or MOMENTUM:
            first = tl.load(first_ptr + at, mask=mask, other=0.0).to(tl.float32)
        if ADAMW:
            if ROW_SECOND:
                second = tl.broadcast_to(row_second[:, None], g.shape)
                square = tl.broadcast_to(mean_square[:, None], g.shape)
            else:
                second = tl.load(second_ptr + at, mask=mask, other=0.0).to(tl.float32)
        value, first, second = stepped(g, value, first, second, square, rate, keep, root, SPEC, ADAMW, MOMENTUM)
        where = label[:, None]
        store_rounded(weight_at, value, mask, where, column[None, :], key, number, WEIGHT, STOCHASTIC)
        if ADAMW or MOMENTUM:
            store_rounded(first_ptr + at, first, mask, where, column[None, :], key, number, FIRST, STOCHASTIC)
        if ADAMW and not ROW_SECOND:
            store_rounded(second_ptr + at, second, mask, where, column[None, :], key, number, SECOND, STOCHASTIC)
    if ROW_SECOND:
        tl.store(second_ptr + row, SPEC[2] * row_second + SPEC[3] * mean_square, mask=is_row)

    if HAS_BIAS:
        g = bias_g * shrink
        value = tl.load(bias_ptr + row, mask=is_row, other=0.0).to(tl.float32)
        first = g
        second = g
        if ADAMW or MOMENTUM:
            first = tl.load(bias_first_ptr + row, mask=is_row, other=0.0)
        if ADAMW:
            second = tl.load(bias_second_ptr + row, mask=is_row, other=0.0)
        value, first, second = stepped(g, value, first, second, g * g, rate, keep, root, SPEC, ADAMW, MOMENTUM)
        store_rounded(bias_ptr + row, value, is_row, label, label * 0, key, number, BIAS, STOCHASTIC)
        if ADAMW or MOMENTUM:
            tl.store(bias_first_ptr + row, first, mask=is_row)
        if ADAMW:
            tl.store(bias_second_ptr + row, second, mask=is_row)
