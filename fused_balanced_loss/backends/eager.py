"""Value and gradient in closed form with few operators: for small inputs, and where nothing compiles."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..targets import SparseTargets
from ..terms import Problem, compute_dtype, sparse_row_sum


def value(problem: Problem, reduction: str, scale: float = 1.0) -> Tensor:
    """Loss: [N, C] for reduction "none", else ``scale`` times the sum of its elements."""
    loss, _ = _elements(problem, gradient=False)
    return loss if reduction == "none" else loss.sum() * scale


def gradient(problem: Problem, upstream: Tensor, scale: float = 1.0) -> Tensor:
    """Gradient [N, C] of the logits, times ``scale`` and ``upstream`` (no dimension, or [N, C])."""
    _, dz = _elements(problem, value=False)
    return (dz * (upstream.to(dz.dtype) * scale)).to(problem.logits.dtype)


def value_and_gradient(problem: Problem, scale: float, out: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """``scale`` times the sum of the loss, and its gradient [N, C], written to ``out`` where that is given."""
    loss, dz = _elements(problem)
    total = loss.sum() * scale
    dz = dz.mul_(scale)
    return total, dz.to(problem.logits.dtype) if out is None else out.copy_(dz)


def scale_gradient(gradient: Tensor, upstream: Tensor) -> None:
    """Multiplies ``gradient`` in place by ``upstream`` (no dimension)."""
    # On the CPU the host knows the number, and nearly always it is 1.
    if upstream.device.type != "cpu" or upstream.item() != 1:
        gradient.mul_(upstream)


def _elements(problem: Problem, *, value: bool = True, gradient: bool = True) -> tuple[Tensor, Tensor]:
    """Loss and its derivative by the logit, [N, C] each; empty where not asked for."""
    spec, terms, targets = problem.spec, problem.terms, problem.targets
    dtype = compute_dtype(problem.logits.dtype)
    row_sum = None
    if isinstance(targets, SparseTargets):
        if terms.inverse_frequency is not None:
            row_sum = sparse_row_sum(targets, terms.inverse_frequency)
        targets = targets.to_dense(torch.bool)
    y = targets if targets.dtype == torch.bool else targets != 0
    d = problem.logits.detach().to(dtype)
    if terms.bias is not None:
        d = d - terms.bias
    t = torch.where(y, d, d * -spec.lam)
    if targets.dtype != torch.bool:
        t = torch.where(targets == y, t, math.nan)
    p, q = torch.sigmoid(t), torch.sigmoid(-t)
    log_p = torch.nn.functional.logsigmoid(t)

    w: Tensor | None = None
    if terms.inverse_frequency is not None:
        if row_sum is None:
            # Not a matrix product: its threads cost more than they do here.
            row_sum = (y * terms.inverse_frequency).sum(1)
        rate = (spec.beta / row_sum)[:, None]
        w = torch.sigmoid(rate * terms.inverse_frequency - spec.beta * spec.mu).add_(spec.alpha)
    for factor in (terms.weight, None if problem.row_weight is None else problem.row_weight[:, None]):
        if factor is not None:
            w = factor if w is None else w * factor

    gamma, gamma_negative = spec.gammas
    modulation = power(q, gamma)
    slope = q
    if gamma == gamma_negative:
        if gamma:
            # p = 0 where log_p is infinite.
            slope = torch.addcmul(q, p, log_p.clamp(min=-1e4), value=-gamma)
    else:
        gammas = torch.as_tensor(_either(y, gamma, gamma_negative, dtype))
        modulation = q.pow(gammas)
        slope = q - gammas * p * log_p.clamp(min=-1e4)
    if spec.probability_margin:
        shifted = (q - spec.probability_margin).clamp(min=0)
        log_shifted = torch.log1p(-shifted)
        ratio = torch.where(shifted > 0, -log_shifted / shifted, 1.0)
        slope_shifted = (gamma_negative * ratio + 1 / (1 - shifted)) * p * q
        slope = torch.where(y, slope, torch.where(shifted > 0, slope_shifted, 0.0))
        modulation = torch.where(y, q.pow(gamma), shifted.pow(gamma_negative))
        log_p = torch.where(y, log_p, log_shifted)
    if modulation is not None:
        w = modulation if w is None else w * modulation

    loss = dz = problem.logits.new_empty(0)
    if value:
        loss = log_p * _either(y, -spec.positive_factor, -spec.negative_factor / spec.lam, dtype)
        loss = loss if w is None else loss * w
    if gradient:
        dz = slope * _either(y, -spec.positive_factor, spec.negative_factor, dtype)
        dz = dz if w is None else dz * w
    if problem.label_mask is not None:
        loss, dz = (part if part.numel() == 0 else torch.where(problem.label_mask, part, 0.0) for part in (loss, dz))
    return loss, dz


def power(q: Tensor, gamma: float) -> Tensor | None:
    """q**gamma, or None for 1."""
    if gamma == 0:
        return None
    return q if gamma == 1 else q * q if gamma == 2 else q.pow(gamma)


def _either(y: Tensor, positive: float, negative: float, dtype: torch.dtype) -> Tensor | float:
    if positive == negative:
        return positive
    if dtype == torch.float32:
        return torch.where(y, positive, negative)
    # Numbers alone would make a float32 result.
    return torch.where(y, torch.full((), positive, dtype=dtype, device=y.device), negative)
