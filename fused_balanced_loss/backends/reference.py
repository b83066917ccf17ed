"""The equations read literally: the oracle. Slow, any device, float64 for float64 logits, else float32."""

from __future__ import annotations

import torch
from torch import Tensor

from ..targets import SparseTargets, check_binary
from .problem import Problem


def value(problem: Problem, reduction: str, scale: float = 1.0) -> Tensor:
    """Loss: [N, C] for reduction "none", else ``scale`` times the sum of its elements."""
    loss, _ = _elements(problem)
    return loss if reduction == "none" else loss.sum() * scale


def gradient(problem: Problem, upstream: Tensor, scale: float = 1.0) -> Tensor:
    """Gradient [N, C] of the logits, times ``scale`` and ``upstream`` (no dimension, or [N, C])."""
    _, dz = _elements(problem)
    return (dz * (upstream.to(dz.dtype) * scale)).to(problem.logits.dtype)


def value_and_gradient(problem: Problem, scale: float, out: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """``scale`` times the sum of the loss, and its gradient [N, C], written to ``out`` where that is given."""
    loss, dz = _elements(problem)
    dz = (dz * scale).to(problem.logits.dtype)
    return loss.sum() * scale, dz if out is None else out.copy_(dz)


def scale_gradient(gradient: Tensor, upstream: Tensor) -> None:
    """Multiplies ``gradient`` in place by ``upstream`` (no dimension)."""
    gradient.mul_(upstream)


def _elements(problem: Problem) -> tuple[Tensor, Tensor]:
    """Loss and its derivative by the logit, [N, C] each (Huang et al., 2021, equations 1 to 10)."""
    spec = problem.spec
    z = problem.logits.double() if problem.logits.dtype == torch.float64 else problem.logits.float()
    dense = problem.targets
    if isinstance(dense, SparseTargets):
        dense = dense.to_dense(torch.bool)
    check_binary(dense)
    y = dense != 0
    n = None if problem.terms.counts is None else problem.terms.counts.to(z.dtype)
    ones = torch.ones_like(z)

    v = torch.zeros_like(z)
    if n is not None and spec.kappa:
        v = v + spec.kappa * torch.log(problem.num_samples / n - 1)
    t = torch.where(y, z - v, -spec.lam * (z - v))
    dt_dz = torch.where(y, ones, -spec.lam * ones)

    w = ones
    if n is not None and spec.weighting == "rebalanced":
        row_sum = torch.where(y, 1 / n, 0.0).sum(1, keepdim=True)
        if problem.row_sum is not None:
            row_sum = problem.row_sum[:, None].to(z.dtype)
        r = (1 / n) / row_sum
        w = spec.alpha + torch.sigmoid(spec.beta * (r - spec.mu))
    elif problem.terms.weight is not None and n is not None:
        w = w * _label_weight(n.double(), spec.weighting, spec.beta_cb).to(z.dtype)
    if problem.row_weight is not None:
        w = w * problem.row_weight[:, None]
    s = torch.where(y, ones * spec.positive_factor, ones * (spec.negative_factor / spec.lam))

    gamma = torch.where(y, ones * spec.gammas[0], ones * spec.gammas[1])
    p, q = torch.sigmoid(t), torch.sigmoid(-t)
    nll = torch.logaddexp(-t, torch.zeros_like(t))
    p_nll = torch.where(p > 0, p * nll, 0.0)
    loss = s * w * q**gamma * nll
    dt = -s * w * q**gamma * (gamma * p_nll + q)
    if spec.probability_margin:
        shifted = (q - spec.probability_margin).clamp(min=0)
        nll_m = -torch.log1p(-shifted)
        # d loss / d shifted, times d shifted / dt = -p q where it is not clamped.
        ratio = torch.where(shifted > 0, nll_m / shifted, 1.0)
        slope = shifted**gamma * (gamma * ratio + 1 / (1 - shifted))
        loss = torch.where(y, loss, s * w * shifted**gamma * nll_m)
        dt = torch.where(y, dt, torch.where(shifted > 0, -s * w * slope * p * q, 0.0))
    dz = dt * dt_dz
    if problem.label_mask is not None:
        loss, dz = (torch.where(problem.label_mask, part, 0.0) for part in (loss, dz))
    return loss, dz


def _label_weight(n: Tensor, weighting: str, beta: float) -> Tensor:
    if weighting == "class_balanced":
        return (1 - beta) / (1 - beta**n)
    weight = 1 / n if weighting == "inverse_frequency" else 1 / n.sqrt()
    return weight / weight.mean()
