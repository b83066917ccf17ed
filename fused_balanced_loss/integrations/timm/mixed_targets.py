"""timm's asymmetric loss and Poly-1 loss of targets between 0 and 1, which are no sum of two parts.

For targets of 0 and 1 these losses are :class:`LossSpec`'s formula. For a target y between them that formula adds y
times the loss of target 1 and 1 - y times that of target 0. timm's asymmetric and Poly-1 losses mix what the parts are
made of, and only then take the power::

    q = y * q1 + (1 - y) * q0            probability of being wrong
    g = y * gamma1 + (1 - y) * gamma0
    loss = (y * pos_weight * -log(1 - q1) + (1 - y) * -log(1 - q0) + poly_epsilon * q) * q**g * (y * f1 + (1 - y) * f0)

with ``q1 = 1 - sigmoid(z)``, ``q0 = max(sigmoid(z) - probability_margin, 0)`` and the factors ``f``. On the CPU a C++
kernel of its own computes value and gradient in one pass; elsewhere PyTorch's operators do.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ...arguments import Reduction, check_logits, check_targets_of, flat_batch, flat_rows
from ...backends.problem import compute_dtype
from ...first_order import first_order
from ...label_weights import Weight
from ...spec import LossSpec
from ...targets import SparseTargets
from ...weight_arguments import label_weights
from . import mixed_targets_cpp

_LARGEST_LOGIT = 1e20


def mixed_loss(
    logits: Tensor,
    targets: Tensor | SparseTargets,
    spec: LossSpec,
    *,
    weight: Weight | None = None,
    pos_weight: Weight | None = None,
    factors: tuple[float, float] = (1.0, 1.0),
    reduction: Reduction = "mean",
) -> Tensor:
    """timm's loss of soft targets.

    Args:
        logits: [..., C], float16, bfloat16, float32 or float64.
        targets: as of :func:`~fused_balanced_loss.balanced_loss`; smoothed here by ``spec.label_smoothing``.
        spec: gamma, gamma_negative, probability_margin, poly_epsilon and label_smoothing count.
        weight, pos_weight: as of :func:`~fused_balanced_loss.balanced_loss`.
        factors: of target 1 and of target 0.
        reduction: "mean", "batchmean", "sum" or "none".

    Returns:
        float32 (float64 for float64 logits): no dimensions, or the shape of the logits for reduction "none".

    Raises:
        TypeError, ValueError: as :func:`~fused_balanced_loss.balanced_loss`; on the CPU also for a target outside
            [0, 1], which makes the loss NaN elsewhere.
    """
    check_logits(logits, None)
    shape, flat = logits.shape, flat_rows(logits)
    if not flat.shape[0] and reduction in ("mean", "batchmean"):
        raise ValueError(f"logits: expected at least one sample for reduction {reduction!r}, got shape {list(shape)}")
    batch = flat_batch(shape, logits.device, targets, None, None, None)
    dense = batch.targets if isinstance(batch.targets, Tensor) else batch.targets.to_dense(torch.uint8)
    label_weights(weight, pos_weight, None, shape[-1], logits.device)
    loss: Tensor = _MixedLoss.apply(flat, dense, spec, weight, pos_weight, factors, reduction == "none")
    check_targets_of(loss, batch.targets, batch.label_mask)
    if reduction == "none":
        return loss.reshape(shape)
    return loss / {"mean": flat.numel(), "batchmean": flat.shape[0], "sum": 1}[reduction]


class _MixedLoss(torch.autograd.Function):
    """The loss [N, C], or its sum; the gradient is made in the same pass."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        targets: Tensor,
        spec: LossSpec,
        weight: Weight | None,
        pos_weight: Weight | None,
        factors: tuple[float, float],
        elements: bool,
    ) -> Tensor:
        if not torch.compiler.is_compiling() and mixed_targets_cpp.can_take(logits):
            loss, gradient = mixed_targets_cpp.value_and_gradient(
                logits, targets, spec, weight, pos_weight, factors, elements
            )
        else:
            loss, slope = _value_and_slope(logits, targets, spec, weight, pos_weight, factors)
            loss, gradient = loss if elements else loss.sum(), slope.to(logits.dtype)
        ctx.save_for_backward(gradient)
        return loss

    @staticmethod
    @first_order
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return (gradient * upstream).to(gradient.dtype), None, None, None, None, None, None


def _value_and_slope(
    logits: Tensor,
    targets: Tensor,
    spec: LossSpec,
    weight: Weight | None,
    pos_weight: Weight | None,
    factors: tuple[float, float],
) -> tuple[Tensor, Tensor]:
    """The loss of each element [N, C] and its derivative by the logit."""
    dtype = compute_dtype(logits.dtype)
    # An infinite loss times a share of 0 would be NaN. No sum of losses this large leaves float32's range.
    z = logits.to(dtype).clamp(-_LARGEST_LOGIT, _LARGEST_LOGIT)
    y = targets.to(dtype)
    y = torch.where((y >= 0) & (y <= 1), y, math.nan)
    if spec.label_smoothing:
        y = y * (1 - spec.label_smoothing) + spec.label_smoothing / 2
    no = 1 - y
    yes = y if pos_weight is None else y * _of_dtype(pos_weight, dtype)
    gamma, gamma_negative = spec.gammas
    p, q = torch.sigmoid(z), torch.sigmoid(-z)
    both = p * q
    nll = yes * nn.functional.softplus(-z)
    nll_slope = yes * -q
    if spec.probability_margin:
        shifted = (p - spec.probability_margin).clamp_(min=0)
        nll -= no * torch.log1p(-shifted)
        live = no * (shifted > 0)
        nll_slope += live * both / (1 - shifted)
    else:
        shifted, live = p, no
        nll += no * nn.functional.softplus(z)
        nll_slope += no * p
    wrong = y * q + no * shifted
    wrong_slope = both * (live - y)
    if spec.poly_epsilon:
        nll += spec.poly_epsilon * wrong
        nll_slope += spec.poly_epsilon * wrong_slope
    if gamma or gamma_negative:
        power = gamma if gamma == gamma_negative else y * gamma + no * gamma_negative
        focal = wrong**power
        # The power's derivative is power * focal / wrong. Where nothing is wrong, `wrong_slope` is 0: no 0 / 0 there.
        tiny = torch.finfo(dtype).tiny
        nll_slope = focal * (nll_slope + nll * power * wrong_slope / wrong.clamp_(min=tiny))
        nll *= focal
    if factors != (1.0, 1.0):
        factor = y * factors[0] + no * factors[1]
        nll, nll_slope = nll * factor, nll_slope * factor
    if weight is not None:
        nll, nll_slope = nll * _of_dtype(weight, dtype), nll_slope * _of_dtype(weight, dtype)
    return nll, nll_slope


def _of_dtype(weight: Weight, dtype: torch.dtype) -> Weight:
    return weight.to(dtype) if isinstance(weight, Tensor) else weight
