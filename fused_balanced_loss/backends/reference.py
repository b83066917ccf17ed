"""The equations read literally, forward only: autograd does the rest. The oracle that the implementations are held to.

It shares no code with them, is slow, and runs on any device, in float64 for float64 logits and float32 for all others.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..spec import LossSpec
from ..targets import SparseTargets
from .problem import Problem

# Takes the place of infinity in the equations. Every product with it is finite, and the sigmoid of it is 0 or 1.
_LARGE = 1e30


class _Finite(torch.autograd.Function):
    """Infinities become large numbers; the derivative by the number stands for the limit of the derivative."""

    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        return z.clamp(-_LARGE, _LARGE)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Tensor:
        return upstream


def loss(problem: Problem) -> Tensor:
    """Loss [N, C] of each element, differentiable by the logits (Huang et al., EMNLP 2021, equations 1 to 10)."""
    spec, statistics = problem.spec, problem.statistics
    mask, row_weight = _savable(problem.label_mask), _savable(problem.row_weight)
    z = problem.logits.double() if problem.logits.dtype == torch.float64 else problem.logits.float()
    finite: Tensor = _Finite.apply(z)
    if mask is not None:
        # What is masked must not meet the equations: zero times the derivative of a NaN is NaN.
        finite = torch.where(mask, finite, 0.0)
    targets = problem.targets.to_dense(torch.bool) if isinstance(problem.targets, SparseTargets) else problem.targets
    y = targets.double()
    valid = (y >= 0) & (y <= 1) if targets.dtype.is_floating_point else (y == 0) | (y == 1)
    y = torch.where(valid, y, 0.0)
    # The constants are rounded once, to the dtype of the result: N_train - n must not be.
    n = None if statistics is None else statistics.clamped_counts.to(z.device)

    v = torch.zeros(z.shape[1], dtype=torch.float64, device=z.device)
    if statistics is not None and n is not None and spec.kappa:
        v = spec.kappa * torch.log((statistics.num_samples - n) / n)
    margin = finite - v.to(z.dtype)
    gamma, gamma_negative = spec.gammas
    positive = spec.positive_factor * _part(margin, gamma, 0.0, spec.poly_epsilon)
    negative = _part(-spec.lam * margin, gamma_negative, spec.probability_margin, spec.poly_epsilon)
    negative = spec.negative_factor / spec.lam * negative
    share = y * (1 - spec.label_smoothing) + spec.label_smoothing / 2
    weight = _weight(spec, row_weight, y, n)
    pos_weight = None
    if problem.label_weights is not None:
        label_weight, pos_weight = (_savable(part) for part in problem.label_weights.factors(z.device))
        weight = weight if label_weight is None else weight * label_weight
    positive_share = share if pos_weight is None else share * pos_weight
    result = (weight * positive_share).to(z.dtype) * positive + (weight * (1 - share)).to(z.dtype) * negative

    wrong = (z == -math.inf) & (share > 0)
    if not spec.probability_margin:
        # The margin bounds the loss of a negative by -log(margin).
        wrong = wrong | (z == math.inf) & (share < 1)
    # The finite part keeps the derivative; a weight's sign is that of the infinity.
    result = result + torch.where(wrong, result.detach() * math.inf, 0.0)
    result = torch.where(valid, result, math.nan)
    return result if mask is None else torch.where(mask, result, 0.0)


def _part(t: Tensor, gamma: float, probability_margin: float, poly_epsilon: float) -> Tensor:
    """(1 - p)**gamma * (-log(p) + poly_epsilon * (1 - p)) for p = sigmoid(t), with 1 - p shifted down by the margin."""
    nll, minus_log_q = _softplus(-t), _softplus(t)
    if not probability_margin:
        # (1 - p)**gamma as exp(gamma * log(1 - p)), whose derivative is finite where 1 - p is 0.
        return torch.exp(-gamma * minus_log_q) * (nll + poly_epsilon * torch.exp(-minus_log_q))
    # The derivative of sigmoid(-t) by autograd would form 1 - q, which has no digits left where q is near 1.
    excess = torch.exp(-minus_log_q) - probability_margin
    # Not `clamp`: it would give a NaN the derivative 0.
    shifted = torch.where(excess <= 0, torch.zeros_like(excess), excess)
    return shifted**gamma * (-torch.log1p(-shifted) + poly_epsilon * shifted)


def _savable(tensor: Tensor | None) -> Tensor | None:
    """The tensor, or a copy of one that inference mode has made, which autograd cannot save."""
    return tensor.clone() if tensor is not None and tensor.is_inference() else tensor


def _softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)), to the last digit: ``torch.nn.functional.softplus`` is x from a threshold on."""
    return torch.logaddexp(x, torch.zeros_like(x))


def _weight(spec: LossSpec, row_weight: Tensor | None, y: Tensor, n: Tensor | None) -> Tensor:
    """Weight of each element, float64, [N, C] or what broadcasts to it."""
    w = torch.ones(y.shape, dtype=torch.float64, device=y.device)
    if row_weight is not None:
        w = w * row_weight[:, None].double()
    if n is None or spec.weighting == "none" or spec.pooling != "label":
        return w
    if spec.weighting == "rebalanced":
        assert spec.mu is not None
        r = (1 / n) / (y / n).sum(1, keepdim=True)
        return w * (spec.alpha + torch.sigmoid(spec.beta * (r - spec.mu)))
    if spec.weighting == "class_balanced":
        # -expm1(n log(beta)) is 1 - beta**n without the cancellation near beta = 1.
        log_beta = math.log(spec.beta_cb) if spec.beta_cb else -math.inf
        return w * ((1 - spec.beta_cb) / -torch.expm1(n * log_beta))
    inverse = 1 / n if spec.weighting == "inverse_frequency" else 1 / n.sqrt()
    return w * (inverse / inverse.mean())
