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

    z: logits [N, C]. y: targets [N, C], 0 where they are invalid. kept: bool [N, C], False where masked.
    weight: of samples, [N]. counts: [C], clamped to [1, N_train - 1].
    z_error: [N, C] or 0, how far a program's own logits may be off. label_weight, pos_weight: [C].
    """

    z: Tensor
    y: Tensor
    kept: Tensor
    weight: Tensor
    counts: Tensor
    num_train: int
    z_error: Tensor | float = 0.0
    label_weight: Tensor | float = 1.0
    pos_weight: Tensor | float = 1.0

    def shares(self, smoothing: float) -> Tensor:
        """Of target 1 in the loss, [N, C]."""
        return self.y * (1 - smoothing) + smoothing / 2


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
    # N/n - 1 without the cancellation of a label that nearly all samples carry.
    bias = spec.kappa * torch.log((batch.num_train - batch.counts) / batch.counts)
    d = batch.z - bias
    weight, weight_error = _weight(batch, spec, eps)
    weight, weight_error = weight * batch.label_weight, weight_error * batch.label_weight
    off = _UNITS * eps * (batch.z.abs() + bias.abs() + 1) + batch.z_error
    # N/n - 1, read literally in float64, loses the digits that N/n and 1 have in common.
    off = off + 4 * abs(spec.kappa) * torch.finfo(torch.float64).eps * batch.num_train / (
        batch.num_train - batch.counts
    )
    share = batch.shares(spec.label_smoothing)
    # A share is rounded once or twice, and its difference from 1 is off by as much.
    share_error = torch.where((share == 0) | (share == 1), 0.0, 3 * eps * share)
    gamma, gamma_negative = spec.gammas
    positive_factor = spec.positive_factor * batch.pos_weight
    zeros = torch.zeros_like(batch.z)
    results, free = [zeros, zeros, zeros, zeros], zeros.bool()
    negative_factor = spec.negative_factor / spec.lam
    for of_part, dt_dz, factor, settings in (
        (share, 1.0, positive_factor, (gamma, 0.0)),
        (1 - share, -spec.lam, negative_factor, (gamma_negative, spec.probability_margin)),
    ):
        t = d * dt_dz
        part_off = torch.where(torch.isfinite(t), off * abs(dt_dz), 0.0)
        middle, below, above = (_part(each, *settings, spec.poly_epsilon) for each in (t, t - part_off, t + part_off))
        # A power by exponential and logarithm is off by the exponent's share of units more.
        units = 8 + 4 * max(spec.gammas)
        # eps squared of an element's weight is below the last digit of whatever the element is added to.
        tiny = eps**2 * weight.abs().clamp(min=1e-20)
        for k, chain in ((0, factor), (1, factor * dt_dz)):
            value, size = middle[k], middle[k + 2].nan_to_num(0.0, 0.0, 0.0)
            moved = torch.maximum((value - below[k]).abs(), (value - above[k]).abs()).nan_to_num(0.0, 0.0, 0.0)
            margin = moved * weight.abs() + size * (weight_error.abs() + units * eps * weight.abs()) + tiny
            margin = margin * of_part + size * weight.abs() * share_error
            # A part without a share is no part, though it may be infinite.
            results[k] = results[k] + torch.where(of_part > 0, value * weight * chain * of_part, 0.0)
            results[k + 2] = results[k + 2] + margin * abs(chain)
        # An infinity meets a weight that is 0, or may be in float32.
        free = free | (of_part > 0) & ((weight * factor * of_part).abs() < 1e-36) & torch.isinf(t)
    loss, gradient, loss_margin, gradient_margin = (torch.where(batch.kept, each, 0.0) for each in results)
    return Exact(loss, gradient, loss_margin, gradient_margin, batch.kept & free)


def _part(t: Tensor, gamma: float, margin: float, poly_epsilon: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(1 - p)**gamma * (nll + poly_epsilon * (1 - p)) with the probability margin, and its derivative by t.

    And the size of each, which rounding is a share of: the same with all terms positive.
    """
    p, q = torch.sigmoid(t), torch.sigmoid(-t)
    if margin:
        excess = (q - margin).clamp(min=0)
        nll, focal = -torch.log1p(-excess), excess**gamma
        steep = gamma * torch.where(excess > 0, nll / excess, 1.0) + 1 / (1 - excess)
        pq, dead, q = p * q, excess == 0, excess
    else:
        nll, focal = (-t).clamp(min=0) + torch.log1p(torch.exp(-t.abs())), q**gamma
        # p is 0 where nll is infinite, and their product has the limit 0.
        steep = gamma * torch.where(p == 0, 0.0, p * nll) + q
        pq, dead = p * q, torch.zeros_like(q).bool()
    results = []
    for epsilon, sign in ((poly_epsilon, -1), (abs(poly_epsilon), 1)):
        slope = steep * pq if margin else steep
        slope = slope + epsilon * (gamma + 1) * pq
        results += [focal * (nll + epsilon * q), sign * focal * slope]
    loss, slope, loss_size, slope_size = (torch.where(dead, 0.0, each) for each in results)
    return loss, slope, loss_size, slope_size


def _weight(batch: Batch, spec: LossSpec, eps: float) -> tuple[Tensor, Tensor]:
    """Weight [N, C] of each element, without the caller's of the labels, and how far rounding may take it."""
    n, rows, y = batch.counts, batch.weight[:, None], batch.y
    label = y > 0
    if spec.weighting == "none":
        weight = rows.expand(batch.z.shape)
        return weight, torch.zeros_like(weight)
    if spec.weighting == "rebalanced":
        inverse = 1 / n
        r = inverse / (y * inverse).sum(1, keepdim=True)
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
    number = y.sum(1)
    one = torch.where(number > 0, number, 1.0)
    if spec.pooling == "rarest":
        pooled = at(torch.where(label, n, float(batch.num_train)).amin(1))
    elif spec.pooling == "mean_count":
        mean = (y * n).sum(1) / one
        pooled = at(torch.where(number == 0, float(batch.num_train), mean))
    else:
        mean = (y * at(n)).sum(1) / one
        pooled = torch.where(number == 0, at(torch.tensor(float(batch.num_train), dtype=n.dtype)), mean)
    weight = (pooled[:, None] * rows).expand(batch.z.shape)
    return weight, eps * (_UNITS + 2 * label.sum(1).sqrt()[:, None]) * weight.abs()


def plain(batch: Batch, spec: LossSpec, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Loss and gradient [N, C] as one would write them in PyTorch in ``dtype``: the yardstick of the error rule."""
    z = batch.z.to(dtype).requires_grad_()
    y, n = batch.y.to(dtype), batch.counts.to(dtype)
    d = z - spec.kappa * torch.log(batch.num_train / n - 1) if spec.kappa else z
    parts = []
    for t, gamma, margin in ((d, spec.gammas[0], 0.0), (-spec.lam * d, spec.gammas[1], spec.probability_margin)):
        q, nll = 1 - torch.sigmoid(t), torch.nn.functional.softplus(-t)
        if margin:
            q = (q - margin).clamp(min=0)
            nll = -torch.log1p(-q)
        parts.append(q**gamma * (nll + spec.poly_epsilon * q))
    weight, _ = _weight(batch._replace(z=batch.z.to(dtype), y=y, counts=n, weight=batch.weight.to(dtype)), spec, 0.0)
    label_weight, pos_weight = (torch.as_tensor(one).to(dtype) for one in (batch.label_weight, batch.pos_weight))
    positive = spec.positive_factor * pos_weight * parts[0]
    negative = spec.negative_factor / spec.lam * parts[1]
    share = batch._replace(y=y).shares(spec.label_smoothing)
    if bool(((share == 0) | (share == 1)).all()):
        mixed = torch.where(share == 1, positive, negative)
    else:
        mixed = share * positive + (1 - share) * negative
    loss = torch.where(batch.kept, weight * label_weight * mixed, 0.0)
    (gradient,) = torch.autograd.grad(loss.sum(), z)
    return loss.detach().double(), gradient.double()
