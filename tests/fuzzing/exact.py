"""The equations of the losses in float64, and what rounding may change; of the library only the settings are used.

Loss and gradient are those of DESIGN section 2. The margins follow from the rule for numerical programs: the result is
that of inputs which are off by a few roundings. So every quantity that a program has to round (the margin t, the
exponent of the rebalanced weight) is moved by some units in its last place, and how far the result moves is allowed.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from fused_balanced_loss import LossSpec

# Units in the last place by which t and the weight's exponent may be off.
_UNITS = 4.0


class Batch(NamedTuple):
    """The arguments as numbers, float64 or bool.

    z: logits [N, C]. y: targets [N, C]. kept: bool [N, C], False where masked. weight: of samples, [N].
    counts: [C], clamped to [1, N_train - 1]. z_error: [N, C] or 0, how far a program's own logits may be off.
    """

    z: Tensor
    y: Tensor
    kept: Tensor
    weight: Tensor
    counts: Tensor
    num_train: int
    z_error: Tensor | float = 0.0


class Exact(NamedTuple):
    """Loss of each element and its derivative by the logit, [N, C], and what rounding may add to each.

    free: bool [N, C], where a weight below float32's range meets an infinite loss: 0 times infinity means nothing.
    """

    loss: Tensor
    gradient: Tensor
    loss_margin: Tensor
    gradient_margin: Tensor
    free: Tensor


def exact(batch: Batch, spec: LossSpec, eps: float) -> Exact:
    """Loss and gradient; ``eps`` is that of the dtype a program computes in."""
    label = batch.y == 1
    # N/n - 1 without the cancellation of a label that nearly all samples carry.
    bias = spec.kappa * torch.log((batch.num_train - batch.counts) / batch.counts)
    d = batch.z - bias
    dt_dz = _either(label, 1.0, -spec.lam)
    t = d * dt_dz
    weight, weight_error = _weight(batch, label, spec, eps)
    factor = _either(label, spec.positive_factor, spec.negative_factor / spec.lam)
    off = _UNITS * eps * (batch.z.abs() + bias.abs() + 1) + batch.z_error
    # N/n - 1, read literally in float64, loses the digits that N/n and 1 have in common.
    off = off + 4 * abs(spec.kappa) * torch.finfo(torch.float64).eps * batch.num_train / (
        batch.num_train - batch.counts
    )
    off = torch.where(torch.isfinite(t), off * dt_dz.abs(), 0.0)

    loss, slope = _parts(t, label, spec)
    below, above = _parts(t - off, label, spec), _parts(t + off, label, spec)
    kept, results = batch.kept, []
    # A power by exponential and logarithm is off by the exponent's share of units more.
    units = 8 + 4 * max(spec.gammas)
    # eps squared of an element's weight is below the last digit of whatever the element is added to.
    tiny = eps**2 * weight.abs().clamp(min=1e-20)
    for value, low, high, chain in (
        (loss, below[0], above[0], factor),
        (slope, below[1], above[1], factor * dt_dz),
    ):
        moved = torch.maximum((value - low).abs(), (value - high).abs()).nan_to_num(0.0, 0.0, 0.0)
        size = value.abs().nan_to_num(0.0, 0.0, 0.0)
        margin = (moved * weight.abs() + size * (weight_error + units * eps * weight.abs()) + tiny) * chain.abs()
        results.append((torch.where(kept, value * weight * chain, 0.0), torch.where(kept, margin, 0.0)))
    (loss, loss_margin), (gradient, gradient_margin) = results
    free = kept & (weight.abs() < 1e-36) & torch.isinf(t)
    return Exact(loss, gradient, loss_margin, gradient_margin, free)


def _either(label: Tensor, positive: float, negative: float) -> Tensor:
    """float64: numbers alone would make a tensor of the default dtype."""
    return torch.where(label, torch.full((), positive, dtype=torch.float64), negative)


def _parts(t: Tensor, label: Tensor, spec: LossSpec) -> tuple[Tensor, Tensor]:
    """(1 - p)**gamma * nll and its derivative by t, with the probability margin for the targets that are 0."""
    positive, negative = spec.gamma, spec.gamma if spec.gamma_negative is None else spec.gamma_negative
    gamma: Tensor | float = positive
    if positive != negative:
        gamma = _either(label, positive, negative)
    p, q = torch.sigmoid(t), torch.sigmoid(-t)
    nll = (-t).clamp(min=0) + torch.log1p(torch.exp(-t.abs()))
    focal = q**gamma
    # p is 0 where nll is infinite, and their product has the limit 0.
    p_nll = torch.where(p == 0, 0.0, p * nll)
    loss, slope = focal * nll, -focal * (gamma * p_nll + q)
    if spec.probability_margin:
        shifted = (q - spec.probability_margin).clamp(min=0)
        nll = -torch.log1p(-shifted)
        focal = shifted**negative
        steep = negative * torch.where(shifted > 0, nll / shifted, 1.0) + 1 / (1 - shifted)
        slope = torch.where(label, slope, torch.where(shifted == 0, 0.0, -focal * steep * p * q))
        loss = torch.where(label, loss, torch.where(shifted == 0, 0.0, focal * nll))
    return loss, slope


def _weight(batch: Batch, label: Tensor, spec: LossSpec, eps: float) -> tuple[Tensor, Tensor]:
    """Weight [N, C] of each element, and how far rounding may take it."""
    n, rows = batch.counts, batch.weight[:, None]
    if spec.weighting == "none":
        weight = rows.expand(batch.z.shape)
        return weight, torch.zeros_like(weight)
    if spec.weighting == "rebalanced":
        inverse = 1 / n
        r = inverse / torch.where(label, inverse, 0.0).sum(1, keepdim=True)
        x = spec.beta * (r - spec.mu)
        # A sum of k terms in some order is off by less than sqrt(k) units, but in constructed cases.
        units = _UNITS + label.sum(1, keepdim=True).sqrt()
        off = eps * (units * spec.beta * r + _UNITS * abs(spec.beta * spec.mu) + _UNITS)
        off = torch.where(torch.isinf(r), 0.0, off)
        share = torch.sigmoid(x)
        moved = torch.maximum(torch.sigmoid(x + off) - share, share - torch.sigmoid(x - off))
        return (spec.alpha + share) * rows, moved * rows.abs()
    scale = {"inverse_frequency": -1.0, "sqrt_inverse_frequency": -0.5}.get(spec.weighting)

    def at(count: Tensor) -> Tensor:
        if scale is None:
            return (1 - spec.beta_cb) / -torch.expm1(count * (math.log(spec.beta_cb) if spec.beta_cb else -math.inf))
        return count**scale / (n**scale).mean()

    if spec.pooling == "label":
        weight = at(n) * rows
        return weight, torch.zeros_like(weight)
    number = label.sum(1)
    one = number.clamp(min=1)
    if spec.pooling == "rarest":
        pooled = at(torch.where(label, n, float(batch.num_train)).amin(1))
    elif spec.pooling == "mean_count":
        mean = torch.where(label, n, 0.0).sum(1) / one
        pooled = at(torch.where(number == 0, float(batch.num_train), mean))
    else:
        mean = torch.where(label, at(n), 0.0).sum(1) / one
        pooled = torch.where(number == 0, at(torch.tensor(float(batch.num_train), dtype=n.dtype)), mean)
    weight = (pooled[:, None] * rows).expand(batch.z.shape)
    return weight, eps * (_UNITS + 2 * number.sqrt()[:, None]) * weight.abs()


def plain(batch: Batch, spec: LossSpec, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Loss and gradient [N, C] as one would write them in PyTorch in ``dtype``: the yardstick of the error rule."""
    z = batch.z.to(dtype).requires_grad_()
    label, n = batch.y == 1, batch.counts.to(dtype)
    t = z - spec.kappa * torch.log(batch.num_train / n - 1) if spec.kappa else z
    t = torch.where(label, t, -spec.lam * t)
    q, nll = 1 - torch.sigmoid(t), torch.nn.functional.softplus(-t)
    positive, negative = spec.gamma, spec.gamma if spec.gamma_negative is None else spec.gamma_negative
    if spec.probability_margin:
        shifted = (q - spec.probability_margin).clamp(min=0)
        q, nll = torch.where(label, q, shifted), torch.where(label, nll, -torch.log1p(-shifted))
    weight, _ = _weight(batch._replace(z=batch.z.to(dtype), counts=n, weight=batch.weight.to(dtype)), label, spec, 0.0)
    factor = _either(label, spec.positive_factor, spec.negative_factor / spec.lam).to(dtype)
    loss = factor * weight * torch.where(label, q**positive, q**negative) * nll
    loss = torch.where(batch.kept, loss, 0.0)
    (gradient,) = torch.autograd.grad(loss.sum(), z)
    return loss.detach().double(), gradient.double()
