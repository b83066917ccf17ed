"""In-place step of a chunk of a linear classifier: gradient, weight and moments give the new weight and moments."""

import triton
import triton.language as tl

# Which tensor the random bits belong to.
WEIGHT = tl.constexpr(0)
FIRST_MOMENT = tl.constexpr(1)
SECOND_MOMENT = tl.constexpr(2)
BIAS = tl.constexpr(3)


@triton.jit
def mix(x):
    """A hash of uint32: Wellons' "lowbias32"."""
    x = x ^ (x >> 16)
    x = x * 0x7FEB352D
    x = x ^ (x >> 15)
    x = x * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def step_key(seed_ptr, step_number_ptr):
    """uint32 each: a hash of the seed; four times the step's number, whose last two bits are left for the tensor's."""
    seed = tl.load(seed_ptr)
    step_number = tl.load(step_number_ptr)
    key = mix(mix(seed.to(tl.uint32)) ^ (seed >> 32).to(tl.uint32))
    return key, (step_number * 4).to(tl.uint32)


@triton.jit
def store_rounded(ptr, value, mask, label, column, key, step_bits, WHICH: tl.constexpr, STOCHASTIC: tl.constexpr):
    """Stores float32 values in the dtype of ``ptr``; bfloat16 is rounded to nearest or by the bits of each place."""
    if ptr.dtype.element_ty == tl.bfloat16:
        raw = value.to(tl.uint32, bitcast=True)
        if STOCHASTIC:
            row_key = mix(mix(key ^ (step_bits + WHICH)) ^ label.to(tl.uint32))
            added = mix(row_key ^ (column.to(tl.uint32) * 0x9E3779B9)) >> 16
        else:
            # Round half to even by hand: the interpreter's own conversion cuts the bits off.
            added = ((raw >> 16) & 1) + 0x7FFF
        rounded = ((raw + added) & 0xFFFF0000).to(tl.float32, bitcast=True)
        # Keep a NaN: the addition could carry it over into another number.
        value = tl.where(value == value, rounded, value)
    tl.store(ptr, value.to(ptr.dtype.element_ty), mask=mask)


@triton.jit
def stepped(
    # float32 tensors of one shape: the gradient, the value, its moments, and what the second moment averages.
    gradient,
    value,
    first_moment,
    second_moment,
    square,
    # float32 numbers of the step.
    step_size,
    weight_scale,
    root_correction,
    # Constants of the rule.
    MOMENTUM: tl.constexpr,
    ONE_MINUS_BETA1: tl.constexpr,
    BETA2: tl.constexpr,
    ONE_MINUS_BETA2: tl.constexpr,
    EPS: tl.constexpr,
    L2_PENALTY: tl.constexpr,
    ADAMW: tl.constexpr,
    HAS_FIRST_MOMENT: tl.constexpr,
):
    """Value, first and second moment after a step."""
    if ADAMW:
        first_moment = first_moment + ONE_MINUS_BETA1 * (gradient - first_moment)
        second_moment = BETA2 * second_moment + ONE_MINUS_BETA2 * square
        denominator = tl.sqrt_rn(second_moment) / root_correction + EPS
        value = value * weight_scale - step_size * (first_moment / denominator)
    else:
        if L2_PENALTY != 0.0:
            gradient = gradient + L2_PENALTY * value
        if HAS_FIRST_MOMENT:
            first_moment = MOMENTUM * first_moment + gradient
            value = value - step_size * first_moment
        else:
            value = value - step_size * gradient
    return value, first_moment, second_moment


@triton.jit(do_not_specialize=["num_rows", "first_label"])
def classifier_update_kernel(
    # Gradients, float32: of the weight [num_rows, num_features], rows side by side; of the bias [num_rows].
    weight_gradient_ptr,
    bias_gradient_ptr,
    # The weight [num_rows, num_features] by weight_stride, its first moment [num_rows, num_features], and its second
    # moment: [num_rows, num_features], or [num_rows] with SECOND_MOMENT_A_ROW.
    weight_ptr,
    first_moment_ptr,
    second_moment_ptr,
    # The bias [num_rows] and its moments [num_rows], float32.
    bias_ptr,
    bias_first_moment_ptr,
    bias_second_moment_ptr,
    # The step: float64 [4] gradient_scale, step_size, weight_scale, root_correction; bool [], False changes nothing;
    # int64 [] each.
    numbers_ptr,
    finite_ptr,
    seed_ptr,
    step_number_ptr,
    # Shape of the chunk, and the label of its first row.
    num_rows,
    num_features,
    first_label,
    # Elements from one row of the weight to the next.
    weight_stride,
    # Largest norm of a label's gradient; read with CLIP.
    max_row_norm,
    # Constants of the rule.
    MOMENTUM: tl.constexpr,
    ONE_MINUS_BETA1: tl.constexpr,
    BETA2: tl.constexpr,
    ONE_MINUS_BETA2: tl.constexpr,
    EPS: tl.constexpr,
    L2_PENALTY: tl.constexpr,
    ADAMW: tl.constexpr,
    # Which tensors there are, and what is done with them.
    HAS_FIRST_MOMENT: tl.constexpr,
    SECOND_MOMENT_A_ROW: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    CLIP: tl.constexpr,
    STOCHASTIC: tl.constexpr,
    # Rows of one program, and the columns that it takes at once.
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Steps ROWS rows of the weight and the bias, with their moments, in place."""
    if tl.load(finite_ptr) == 0:
        return
    gradient_scale = tl.load(numbers_ptr).to(tl.float32)
    step_size = tl.load(numbers_ptr + 1).to(tl.float32)
    weight_scale = tl.load(numbers_ptr + 2).to(tl.float32)
    root_correction = tl.load(numbers_ptr + 3).to(tl.float32)
    key, step_bits = step_key(seed_ptr, step_number_ptr)
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    is_row = row < num_rows
    label = row + first_label
    lane = tl.arange(0, COLUMNS)

    if HAS_BIAS:
        bias_gradient = tl.load(bias_gradient_ptr + row, mask=is_row, other=0.0) * gradient_scale
    shrink = tl.full([ROWS], 1.0, tl.float32)
    mean_square = tl.zeros([ROWS], tl.float32)
    if CLIP or SECOND_MOMENT_A_ROW:
        # A pass of its own over the gradient: its norm must be known before the first element is stepped.
        total = tl.zeros([ROWS, COLUMNS], tl.float32)
        for start in range(0, num_features, COLUMNS):
            column = start + lane
            mask = is_row[:, None] & (column < num_features)[None, :]
            at = row[:, None] * num_features + column[None, :]
            gradient = tl.load(weight_gradient_ptr + at, mask=mask, other=0.0) * gradient_scale
            total += gradient * gradient
        row_total = tl.sum(total, axis=1)
        if CLIP:
            norm = row_total
            if HAS_BIAS:
                norm += bias_gradient * bias_gradient
            norm = tl.sqrt_rn(norm)
            # A NaN must stay visible in the weight.
            shrink = max_row_norm / tl.maximum(norm, max_row_norm, propagate_nan=tl.PropagateNan.ALL)
        # A square may be infinite where the gradient is finite; such a row is clipped to 0, and so is its square.
        mean_square = tl.where(shrink == 0.0, 0.0, row_total * shrink * shrink / num_features)

    if SECOND_MOMENT_A_ROW:
        row_second_moment = tl.load(second_moment_ptr + row, mask=is_row, other=0.0)
    for start in range(0, num_features, COLUMNS):
        column = start + lane
        mask = is_row[:, None] & (column < num_features)[None, :]
        at = row[:, None] * num_features + column[None, :]
        gradient = tl.load(weight_gradient_ptr + at, mask=mask, other=0.0) * gradient_scale
        if CLIP:
            gradient = gradient * shrink[:, None]
        weight_at = weight_ptr + row[:, None] * weight_stride + column[None, :]
        value = tl.load(weight_at, mask=mask, other=0.0).to(tl.float32)
        # Triton wants a value on every path: the gradient stands for moments that the rule does not keep.
        first_moment = gradient
        second_moment = gradient
        square = gradient * gradient
        if HAS_FIRST_MOMENT:
            first_moment = tl.load(first_moment_ptr + at, mask=mask, other=0.0).to(tl.float32)
        if ADAMW:
            if SECOND_MOMENT_A_ROW:
                second_moment = tl.broadcast_to(row_second_moment[:, None], gradient.shape)
                square = tl.broadcast_to(mean_square[:, None], gradient.shape)
            else:
                second_moment = tl.load(second_moment_ptr + at, mask=mask, other=0.0).to(tl.float32)
        value, first_moment, second_moment = stepped(
            gradient,
            value,
            first_moment,
            second_moment,
            square,
            step_size,
            weight_scale,
            root_correction,
            MOMENTUM,
            ONE_MINUS_BETA1,
            BETA2,
            ONE_MINUS_BETA2,
            EPS,
            L2_PENALTY,
            ADAMW,
            HAS_FIRST_MOMENT,
        )
        labels = label[:, None]
        columns = column[None, :]
        store_rounded(weight_at, value, mask, labels, columns, key, step_bits, WEIGHT, STOCHASTIC)
        if HAS_FIRST_MOMENT:
            to = first_moment_ptr + at
            store_rounded(to, first_moment, mask, labels, columns, key, step_bits, FIRST_MOMENT, STOCHASTIC)
        if ADAMW and not SECOND_MOMENT_A_ROW:
            to = second_moment_ptr + at
            store_rounded(to, second_moment, mask, labels, columns, key, step_bits, SECOND_MOMENT, STOCHASTIC)
    if SECOND_MOMENT_A_ROW:
        new_second_moment = BETA2 * row_second_moment + ONE_MINUS_BETA2 * mean_square
        tl.store(second_moment_ptr + row, new_second_moment, mask=is_row)

    if HAS_BIAS:
        gradient = bias_gradient * shrink
        value = tl.load(bias_ptr + row, mask=is_row, other=0.0).to(tl.float32)
        first_moment = gradient
        second_moment = gradient
        if HAS_FIRST_MOMENT:
            first_moment = tl.load(bias_first_moment_ptr + row, mask=is_row, other=0.0)
        if ADAMW:
            second_moment = tl.load(bias_second_moment_ptr + row, mask=is_row, other=0.0)
        value, first_moment, second_moment = stepped(
            gradient,
            value,
            first_moment,
            second_moment,
            gradient * gradient,
            step_size,
            weight_scale,
            root_correction,
            MOMENTUM,
            ONE_MINUS_BETA1,
            BETA2,
            ONE_MINUS_BETA2,
            EPS,
            L2_PENALTY,
            ADAMW,
            HAS_FIRST_MOMENT,
        )
        store_rounded(bias_ptr + row, value, is_row, label, label * 0, key, step_bits, BIAS, STOCHASTIC)
        if HAS_FIRST_MOMENT:
            tl.store(bias_first_moment_ptr + row, first_moment, mask=is_row)
        if ADAMW:
            tl.store(bias_second_moment_ptr + row, second_moment, mask=is_row)
