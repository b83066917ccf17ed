"""Value and gradient in closed form with few operators: for small inputs, and where nothing compiles."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..targets import SparseTargets
from .problem import Problem, compute_dtype


def value(problem: Problem, reduction: str, scale: float = 1.0) -> Tensor:
    """Loss: [N, C] for reduction "none", else ``scale`` times the sum of its elements."""
    w, nll, _ = _factors(problem, 1.0 if reduction == "none" else scale, slope=False)
    loss = nll.mul_(w)
    return loss if reduction == "none" else loss.sum()


def gradient(problem: Problem, upstream: Tensor, scale: float = 1.0) -> Tensor:
    """Gradient [N, C] of the logits, times ``scale`` and ``upstream`` (no dimension, or [N, C])."""
    w, _, slope = _factors(problem, scale)
    return slope.mul_(w).mul_(upstream).to(problem.logits.dtype)


def value_and_gradient(problem: Problem, scale: float, out: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """``scale`` times the sum of the loss, and its gradient [N, C], written to ``out`` where that is given."""
    w, nll, slope = _factors(problem, scale)
    total, dz = nll.mul_(w).sum(), slope.mul_(w)
    return total, dz.to(problem.logits.dtype) if out is None else out.copy_(dz)


def scale_gradient(gradient: Tensor, upstream: Tensor) -> None:
    """Multiplies ``gradient`` in place by ``upstream`` (no dimension)."""
    # On the CPU the host knows the number, and nearly always it is 1.
    if upstream.device.type != "cpu" or upstream.item() != 1:
        gradient.mul_(upstream)


def _factors(problem: Problem, scale: float, *, slope: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    """Three tensors [N, C]: the loss, times ``scale``, is the first times the second, its derivative by the logit the
    first times the third (empty where not asked for)."""
    spec, terms, targets = problem.spec, problem.terms, problem.targets
    dtype, device = compute_dtype(problem.logits.dtype), problem.logits.device
    if isinstance(targets, SparseTargets):
        targets = targets.to_dense(torch.bool)
    y = targets if targets.dtype == torch.bool else targets != 0
    d = problem.logits.to(dtype)
    if terms.bias is not None:
        d = d - terms.bias
    # Minus the derivative of t by the logit.
    sign = _either(y, -1.0, spec.lam, dtype)
    u = d * sign
    if targets.dtype != torch.bool:
        u = torch.where(targets == y, u, math.nan)
    q = torch.sigmoid(u)
    nll = torch.nn.functional.softplus(u, threshold=_LINEAR_FROM[dtype])

    factor = _either(y, scale * spec.positive_factor, scale * spec.negative_factor / spec.lam, dtype)
    if terms.inverse_frequency is not None:
        if problem.row_sum is None:
            # Not a matrix product: its threads cost more than they do here.
            row_sum = (y * terms.inverse_frequency).sum(1, keepdim=True)
        else:
            row_sum = problem.row_sum[:, None]
        start = torch.full((), -spec.beta * spec.mu, dtype=dtype, device=device)
        w = torch.addcdiv(start, terms.inverse_frequency, row_sum, value=spec.beta)
        w = w.sigmoid_().add_(spec.alpha).mul_(factor)
    elif isinstance(factor, Tensor):
        w = factor
    else:
        w = torch.full_like(q, factor)
    for each in (terms.weight, None if problem.row_weight is None else problem.row_weight[:, None]):
        if each is not None:
            w = w.mul_(each)

    gamma, gamma_negative = spec.gammas
    gammas = _either(y, gamma, gamma_negative, dtype)
    modulation = power(q, gammas) if isinstance(gammas, float) else q.pow(gammas)
    derivative = q.new_empty(0)
    if slope:
        derivative = q
        if gamma or gamma_negative:
            # p = 0 where nll is infinite.
            part = torch.sigmoid(-u).mul_(nll.clamp(max=1e4))
            derivative = torch.addcmul(q, part, gammas) if isinstance(gammas, Tensor) else q.add(part, alpha=gammas)
    if spec.probability_margin:
        shifted = (q - spec.probability_margin).clamp(min=0)
        nll_shifted = -torch.log1p(-shifted)
        modulation = torch.where(y, q.pow(gamma), shifted.pow(gamma_negative))
        nll = torch.where(y, nll, nll_shifted)
        if slope:
            ratio = torch.where(shifted > 0, nll_shifted / shifted, 1.0)
            slope_shifted = (gamma_negative * ratio + 1 / (1 - shifted)) * torch.sigmoid(-u) * q
            derivative = torch.where(y, derivative, torch.where(shifted > 0, slope_shifted, 0.0))
    if modulation is not None:
        w = w.mul_(modulation)
    if slope:
        derivative = derivative * sign
    if problem.label_mask is not None:
        # All of them: zero times an infinite loss is NaN.
        w, nll, derivative = (
            part if part.numel() == 0 else torch.where(problem.label_mask, part, 0.0) for part in (w, nll, derivative)
        )
    return w, nll, derivative


# Where log(1 + exp(u)) is u; the exponential must not overflow before.
_LINEAR_FROM = {torch.float32: 80.0, torch.float64: 700.0}


def power(q: Tensor, gamma: float) -> Tensor | None:
    """q**gamma, or None for 1."""
    if gamma == 0:
        return None
    return q if gamma == 1 else q * q if gamma == 2 else q.pow(gamma)


def _either(y: Tensor, positive: float, negative: float, dtype: torch.dtype) -> Tensor | float:
    if positive == negative:
        return positive
    if dtype == torch.get_default_dtype():
        return torch.where(y, positive, negative)
    # Numbers alone would make a result of the default dtype.
    return torch.where(y, torch.full((), positive, dtype=dtype, device=y.device), negative)
