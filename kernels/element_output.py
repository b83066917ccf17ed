"""What is done with computed elements: mask, upstream gradient, and the stores."""

import triton
import triton.language as tl

from .element import balanced_element, mixed_element


@triton.jit
def compute_and_store(
    z,
    y,
    shift,
    inverse_frequency,
    weight_slope,
    weight,
    positive_weight,
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
    HAS_POSITIVE_WEIGHT: tl.constexpr,
    MIXED: tl.constexpr,
    HAS_MASK: tl.constexpr,
    EXACT: tl.constexpr,
    PTX: tl.constexpr,
):
    """Computes elements, applies mask and upstream gradient, stores what is wanted, and returns the masked value.

    y: as ``balanced_element`` takes it, which says what the others up to negative_slope are; if MIXED, the share that
        ``mixed_element`` takes, or None.
    positive_weight: the weight of labels, if HAS_POSITIVE_WEIGHT.
    unit: that of the values of ``balanced_element``.
    gradient_at: where the gradient goes; None unless wanted.
    """
    if y is None:
        value, dz = balanced_element(
            z, None, shift, inverse_frequency, weight_slope, weight, positive_slope, negative_slope, SPEC, HAS_BIAS,
            REBALANCED, HAS_WEIGHT, EXACT, PTX,
        )  # fmt: skip
    elif MIXED:
        value, dz = mixed_element(
            z, y, shift, inverse_frequency, weight_slope, weight, positive_weight, positive_slope, negative_slope, SPEC,
            HAS_BIAS, REBALANCED, HAS_WEIGHT, HAS_POSITIVE_WEIGHT, EXACT, PTX,
        )  # fmt: skip
    else:
        own_weight = tl.where(y, positive_weight, weight) if HAS_POSITIVE_WEIGHT else weight
        value, dz = balanced_element(
            z, y, shift, inverse_frequency, weight_slope, own_weight, positive_slope, negative_slope, SPEC, HAS_BIAS,
            REBALANCED, HAS_WEIGHT or HAS_POSITIVE_WEIGHT, EXACT, PTX,
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
