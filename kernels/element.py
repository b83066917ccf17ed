"""The algebra of the loss for one element: its value and its derivative by the logit."""

import triton
import triton.language as tl

LN2 = tl.constexpr(0.6931471805599453)
LOG2E = tl.constexpr(1.4426950408889634)
# Largest exponent taken, base 2: keeps products of two exponentials finite, and cuts nothing that shows.
BOUND = tl.constexpr(60.0)
# From this beta * mu * log2(e) on the rebalanced weight is steep. Its exponent, a small difference of large numbers, is
# then made of the difference r - mu, with a division that is rounded once, for some ten operations more.
STEEP = tl.constexpr(32.0)

# Where each setting of the loss stands in SPEC, the tuple that the kernels get.
GAMMA_AT = tl.constexpr(0)
GAMMA_NEGATIVE_AT = tl.constexpr(1)
MARGIN_AT = tl.constexpr(2)
LAM_AT = tl.constexpr(3)
ALPHA_AT = tl.constexpr(4)
MU_AT = tl.constexpr(5)
POSITIVE_FACTOR_AT = tl.constexpr(6)
NEGATIVE_FACTOR_AT = tl.constexpr(7)
SMOOTHING_AT = tl.constexpr(8)
POLY_AT = tl.constexpr(9)
BETA_AT = tl.constexpr(10)


@triton.jit
def exp2(x, PTX: tl.constexpr):
    """2**x. PTX: one instruction that flushes denormals, where the portable form takes four."""
    if PTX:
        return tl.inline_asm_elementwise(
            "ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    else:
        return tl.exp2(x)


@triton.jit
def log2(x, PTX: tl.constexpr):
    """log2(x); with PTX within 2**-22 of it for x near 1, not to the last digit."""
    if PTX:
        return tl.inline_asm_elementwise(
            "lg2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    else:
        return tl.log2(x)


@triton.jit
def reciprocal(x, PTX: tl.constexpr):
    """1 / x, for x within 2**126 of 1."""
    if PTX:
        return tl.inline_asm_elementwise(
            "rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    else:
        return 1.0 / x


@triton.jit
def divided(a, b):
    """a / b, rounded once."""
    if a.dtype == tl.float64:
        return a / b
    else:
        return tl.div_rn(a, b)


@triton.jit
def minus_log1p(m):
    """-log(1 - m) for m in [0, 1/2], to the last digits of m's dtype."""
    if m.dtype == tl.float64:
        # log(u) * m / (1 - u) makes good what rounding took from u = 1 - m.
        u = 1.0 - m
        lost = 1.0 - u
        return tl.where(lost > 0, -tl.log2(u) * LN2 * m / tl.where(lost > 0, lost, 1.0), m)
    else:
        # Fitted for least relative error, 3.5e-9 before rounding.
        total = 1.7756375074386597
        total = total * m - 2.552624225616455
        total = total * m + 2.046745777130127
        total = total * m - 0.6334813237190247
        total = total * m + 0.35335680842399597
        total = total * m + 0.17329253256320953
        total = total * m + 0.25216183066368103
        total = total * m + 0.3332453966140747
        total = total * m + 0.5000013709068298
        return (total * m + 1.0) * m


@triton.jit
def power(q, GAMMA: tl.constexpr, PTX: tl.constexpr):
    """q**GAMMA for GAMMA > 0."""
    if GAMMA == 1.0:
        return q
    elif GAMMA == 2.0:
        return q * q
    elif GAMMA == 4.0:
        return (q * q) * (q * q)
    else:
        return exp2(GAMMA * log2(q, PTX), PTX)


@triton.jit
def modulation(q, y, shifted, GAMMA: tl.constexpr, GAMMA_NEGATIVE: tl.constexpr, SAME: tl.constexpr, PTX: tl.constexpr):
    """(1 - p)**gamma of each class; SAME: one gamma and no probability margin."""
    negative = tl.full(q.shape, 1.0, q.dtype) if GAMMA_NEGATIVE == 0.0 else power(shifted, GAMMA_NEGATIVE, PTX)
    if SAME:
        return negative
    else:
        positive = tl.full(q.shape, 1.0, q.dtype) if GAMMA == 0.0 else power(q, GAMMA, PTX)
        return choose(y, positive, negative)


@triton.jit
def choose(y, positive, negative):
    """``positive`` where y, else ``negative``; y None: no element is a label; y True: all are."""
    if y is None:
        return negative
    elif y is True:
        return positive
    else:
        return tl.where(y, positive, negative)


@triton.jit
def either(y, A: tl.constexpr, B: tl.constexpr, like):
    """A where y, else B, in the dtype of ``like``; numbers alone would become float32."""
    return choose(y, tl.full(like.shape, A, like.dtype), tl.full(like.shape, B, like.dtype))


@triton.jit
def load_shift(bias_ptr, inside, SPEC: tl.constexpr, READY: tl.constexpr):
    """The biases, in the units that ``balanced_element`` takes them in. READY: they are in these units."""
    bias = tl.load(bias_ptr, mask=inside, other=0.0)
    if READY:
        return bias
    else:
        return bias * (SPEC[LAM_AT] * LOG2E)


@triton.jit
def balanced_element(
    z,
    y,
    shift,
    inverse_frequency,
    weight_slope,
    weight,
    positive_slope,
    negative_slope,
    SPEC: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    REBALANCED: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    EXACT: tl.constexpr,
    PTX: tl.constexpr,
):
    """Loss and d loss / d logit of each element; the loss in units of negative_factor / lam, times log(2) unless EXACT.

    z: logits, float32 or float64; -inf where there is no element: value and slope are then 0. With label smoothing 0,
        and the caller leaves the value out.
    y: whether the element is a label; None: none is; True: all are.
    shift: ``load_shift`` of the biases.
    weight_slope: -beta * log2(e) / (sum of 1/n over the row's labels); where the weight is steep, the sum itself.
    positive_slope, negative_slope: factors on the derivative, -scale * positive_factor and scale * negative_factor.
    SPEC: the settings of the loss, each at its place.
    EXACT: the logarithm to the last digit of the dtype, also of probabilities near 1.
    """
    GAMMA: tl.constexpr = SPEC[GAMMA_AT]
    GAMMA_NEGATIVE: tl.constexpr = SPEC[GAMMA_NEGATIVE_AT]
    MARGIN: tl.constexpr = SPEC[MARGIN_AT]
    LAM: tl.constexpr = SPEC[LAM_AT]
    ALPHA: tl.constexpr = SPEC[ALPHA_AT]
    POLY: tl.constexpr = SPEC[POLY_AT]
    SAME: tl.constexpr = GAMMA == GAMMA_NEGATIVE and MARGIN == 0.0

    # -t in units of log(2): large where the prediction is wrong.
    u = z * (LAM * LOG2E)
    if HAS_BIAS:
        u -= shift
    u *= either(y, -1.0 / LAM, 1.0, z)
    bounded = tl.minimum(u, BOUND, propagate_nan=tl.PropagateNan.ALL)
    e = exp2(bounded, PTX)
    e1 = 1.0 + e
    if REBALANCED:
        MIDPOINT: tl.constexpr = SPEC[BETA_AT] * SPEC[MU_AT] * LOG2E
        if MIDPOINT < STEEP:
            exponent = weight_slope * inverse_frequency + MIDPOINT
        else:
            exponent = (SPEC[MU_AT] - divided(inverse_frequency, weight_slope)) * (SPEC[BETA_AT] * LOG2E)
        if MIDPOINT < BOUND:
            # One reciprocal for the two sigmoids.
            f1 = 1.0 + exp2(exponent, PTX)
            both = reciprocal(e1 * f1, PTX)
            p = both * f1
            w = both * e1 + ALPHA
        else:
            p = reciprocal(e1, PTX)
            w = reciprocal(1.0 + exp2(tl.minimum(exponent, 2 * BOUND), PTX), PTX) + ALPHA
        if HAS_WEIGHT:
            w = w * weight
    else:
        p = reciprocal(e1, PTX)
    q = e * p

    # nll = max(u, 0) + log2(1 + 2**-|u|), times log(2); ``finite`` is it without the infinity that meets p = 0.
    if EXACT:
        UNIT: tl.constexpr = 1.0
        log_part = minus_log1p(tl.minimum(p, q, propagate_nan=tl.PropagateNan.ALL))
        nll = tl.maximum(u, 0.0, propagate_nan=tl.PropagateNan.ALL) * LN2 + log_part
        finite = tl.maximum(bounded, 0.0, propagate_nan=tl.PropagateNan.ALL) * LN2 + log_part
    else:
        UNIT: tl.constexpr = LN2
        finite = log2(e1, PTX)
        nll = tl.maximum(u, finite, propagate_nan=tl.PropagateNan.ALL)

    shifted = q
    if MARGIN > 0.0:
        shifted = tl.maximum(q - MARGIN, 0.0, propagate_nan=tl.PropagateNan.ALL)
    m = modulation(q, y, shifted, GAMMA, GAMMA_NEGATIVE, SAME, PTX)
    if REBALANCED:
        m = m * w
    elif HAS_WEIGHT:
        m = m * weight
    slope = q
    if SAME:
        if GAMMA > 0.0:
            slope = (p * finite) * (GAMMA * UNIT) + q
    else:
        slope = (p * finite) * either(y, GAMMA * UNIT, GAMMA_NEGATIVE * UNIT, q) + q
    if POLY != 0.0:
        nll += q * (POLY / UNIT)
        slope += (p * q) * either(y, POLY * (GAMMA + 1.0), POLY * (GAMMA_NEGATIVE + 1.0), q)
    if MARGIN > 0.0:
        kept = 1.0 - shifted
        near = minus_log1p(tl.minimum(shifted, 0.5, propagate_nan=tl.PropagateNan.ALL))
        nll_shifted = tl.where(shifted > 0.5, -log2(kept, PTX) * LN2, near)
        ratio = tl.where(shifted == 0.0, 1.0, nll_shifted / tl.where(shifted == 0.0, 1.0, shifted))
        by_q = GAMMA_NEGATIVE * ratio + 1.0 / kept
        if POLY != 0.0:
            by_q += POLY * (GAMMA_NEGATIVE + 1.0)
            nll_shifted += shifted * POLY
        slope_shifted = by_q * p * q
        # A comparison with NaN is false: the slope of a NaN stays NaN.
        slope = choose(y, slope, tl.where(shifted == 0.0, 0.0, slope_shifted))
        nll = choose(y, nll, nll_shifted * (1.0 / UNIT))

    value = m * (nll * either(y, SPEC[POSITIVE_FACTOR_AT] * LAM / SPEC[NEGATIVE_FACTOR_AT], 1.0, q))
    dz = m * (slope * choose(y, positive_slope, negative_slope))
    return value, dz


@triton.jit
def mixed_element(
    z,
    share,
    shift,
    inverse_frequency,
    weight_slope,
    weight,
    positive_weight,
    positive_slope,
    negative_slope,
    SPEC: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    REBALANCED: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    HAS_POSITIVE_WEIGHT: tl.constexpr,
    EXACT: tl.constexpr,
    PTX: tl.constexpr,
):
    """``balanced_element`` of elements that are labels by ``share``, in [0, 1]: both parts, each by its share.

    positive_weight: that of the positive part, if HAS_POSITIVE_WEIGHT; else both parts have ``weight``.
    """
    positive, positive_dz = balanced_element(
        z, True, shift, inverse_frequency, weight_slope, positive_weight if HAS_POSITIVE_WEIGHT else weight,
        positive_slope, negative_slope, SPEC, HAS_BIAS, REBALANCED, HAS_WEIGHT or HAS_POSITIVE_WEIGHT, EXACT, PTX,
    )  # fmt: skip
    negative, negative_dz = balanced_element(
        z, None, shift, inverse_frequency, weight_slope, weight, positive_slope, negative_slope, SPEC, HAS_BIAS,
        REBALANCED, HAS_WEIGHT, EXACT, PTX,
    )  # fmt: skip
    rest = 1.0 - share
    dz = share * positive_dz + rest * negative_dz
    positive = share * positive
    negative = rest * negative
    # Smoothed shares are not 0 and not 1, unless the smoothing is lost to rounding.
    if SPEC[SMOOTHING_AT] < 1e-6:
        # The infinity of a part without share must not make a NaN. The slopes are never infinite.
        positive = tl.where(share == 0.0, 0.0, positive)
        negative = tl.where(rest == 0.0, 0.0, negative)
    return positive + negative, dz
