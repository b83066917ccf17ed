"""A backend's functions against the equations in float64, within the error rule."""

import torch
from oracle import assert_within_rule

from fused_balanced_loss import LossSpec, SparseTargets
from fused_balanced_loss.backends import cpp
from fused_balanced_loss.backends.constants import label_constants
from fused_balanced_loss.backends.problem import Problem, compute_dtype
from fused_balanced_loss.label_weights import LabelWeights

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
# What a correct result of a dtype may be off by, see `assert_within_rule`; the yardstick itself is float64.
DIGITS = {torch.float64: 2.0**-47, torch.float32: 2.0**-22, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}
DB = LossSpec.preset("DB", corpus="reuters")
SPECS = {
    "BCE": LossSpec.preset("BCE"),
    "CB-NTR": LossSpec.preset("CB-NTR", convention="authors"),
    "DB": LossSpec.preset("DB", convention="authors", corpus="reuters"),
    "ASL": LossSpec.preset("ASL"),
    "margin without focus": LossSpec(probability_margin=0.2),
    "margin, gamma 0.5": LossSpec(gamma=0.5, probability_margin=0.05),
    "margin, gamma 3.3, DB": DB.replace(gamma_negative=3.3, probability_margin=0.3),
    "gamma 0.3": LossSpec(gamma=0.3),
    "gamma 1.5": LossSpec(gamma=1.5, weighting="rebalanced", mu=0.9, kappa=0.05, lam=2),
    "gamma 7": LossSpec(gamma=7.0, lam=0.7),
    "gamma 0 and 2": LossSpec(gamma=0.0, gamma_negative=2.0),
    "gamma 2 and 0": LossSpec(gamma=2.0, gamma_negative=0.0, weighting="class_balanced"),
    "gamma 1 and 0.5": LossSpec(gamma=1.0, gamma_negative=0.5, positive_factor=3.0, negative_factor=0.4),
    "steep": LossSpec(gamma=2, weighting="rebalanced", beta=200, mu=0.9),
    "cliff": LossSpec(gamma=2, weighting="rebalanced", beta=2000, mu=0.5, alpha=0.3),
    "steep without floor": LossSpec(weighting="rebalanced", beta=100, mu=0.9, alpha=0.0),
    "flat": LossSpec(gamma=2, weighting="rebalanced", beta=1e-6, mu=0.9, alpha=0.0),
}


def as_problem(logits, targets, statistics, spec=DB, weight=None, pos_weight=None, **changes):
    weights = None
    if weight is not None or pos_weight is not None:
        weights = LabelWeights(weight, pos_weight, logits.shape[1], statistics, {})
    constants = label_constants(statistics, spec, compute_dtype(logits.dtype), logits.device, weights)
    made = Problem(logits, targets, spec, constants, statistics=statistics, label_weights=weights)
    return made._replace(**changes)


def exactly(call):
    """Loss [N, C] and gradient of its sum, float64."""
    return by_operators(call, torch.float64)


def plainly(call):
    """The same in the compute dtype: the yardstick of the error rule."""
    loss, gradient = by_operators(call, compute_dtype(call.logits.dtype))
    return loss, gradient.to(call.logits.dtype)


def by_operators(call, dtype):
    """The equations as one would write them in PyTorch, for finite logits and valid targets."""
    spec, statistics, targets = call.spec, call.statistics, call.targets
    z = call.logits.detach().to(dtype).requires_grad_()
    y = targets.to_dense() if isinstance(targets, SparseTargets) else targets
    y = y.to(dtype)
    n = statistics.clamped_counts.to(dtype)
    w = torch.ones((), dtype=dtype)
    if spec.weighting == "rebalanced":
        r = (1 / n) / (y * (1 / n)).sum(1, keepdim=True)
        w = spec.alpha + torch.sigmoid(spec.beta * (r - spec.mu))
    elif spec.weighting == "class_balanced":
        w = statistics.class_balanced_weight(spec.beta_cb).to(dtype)
    if call.row_weight is not None:
        w = w * call.row_weight[:, None].to(dtype)
    factors = (None, None) if call.label_weights is None else call.label_weights.factors(call.logits.device)
    weight, pos_weight = (torch.ones((), dtype=dtype) if one is None else one.to(dtype) for one in factors)
    d = z - spec.kappa * torch.log(statistics.num_samples / n - 1)
    positive = spec.positive_factor * pos_weight * _part(-d, spec.gammas[0], 0.0, spec.poly_epsilon)
    negative = _part(spec.lam * d, spec.gammas[1], spec.probability_margin, spec.poly_epsilon)
    share = y * (1 - spec.label_smoothing) + spec.label_smoothing / 2
    loss = w * weight * (share * positive + (1 - share) * spec.negative_factor / spec.lam * negative)
    if call.label_mask is not None:
        loss = torch.where(call.label_mask, loss, 0.0)
    (gradient,) = torch.autograd.grad(loss.sum(), z)
    return loss.detach(), gradient


def _part(u, gamma, margin, epsilon):
    # Not `softplus`, which leaves out the logarithm above 20.
    q, nll = torch.sigmoid(u), torch.logaddexp(u, torch.zeros_like(u))
    if margin:
        q = (q - margin).clamp(min=0)
        nll = -torch.log1p(-q)
    # A power has an infinite derivative at 0, where there is no loss.
    alive = q > 0
    return torch.where(alive, torch.where(alive, q, 1.0) ** gamma * (nll + epsilon * q), 0.0)


def check(call, scale=1.0, backend=cpp):
    """All three functions of the backend, within the error rule."""
    dtype, compute = call.logits.dtype, compute_dtype(call.logits.dtype)
    loss, gradient = exactly(call)
    plain_loss, plain_gradient = plainly(call)
    plain_loss, plain_gradient = plain_loss.double() * scale, plain_gradient.double() * scale
    gradient = gradient * scale
    elements = backend.value(call, "none")
    assert elements.dtype == compute
    assert_within_rule(elements, (plain_loss / scale - loss).abs(), loss, DIGITS[compute])
    total, ours = backend.value_and_gradient(call, scale)
    assert (total.dtype, ours.dtype) == (compute, dtype)
    torch.testing.assert_close(total.double(), loss.sum() * scale, rtol=DIGITS[compute] * 8, atol=0)
    assert_within_rule(ours, (plain_gradient - gradient).abs(), gradient, DIGITS[dtype])
    torch.testing.assert_close(backend.value(call, "sum", scale), total, rtol=DIGITS[compute], atol=0)
    by_scalar = backend.gradient(call, torch.tensor(scale, dtype=compute))
    assert torch.equal(by_scalar, ours)
    upstream = torch.linspace(-1, 2, loss.numel(), dtype=compute).view(loss.shape)
    by_element = backend.gradient(call, upstream)
    expected = gradient / scale * upstream.double()
    plain_error = ((plain_gradient - gradient) / scale).abs() * upstream.abs()
    assert_within_rule(by_element, plain_error, expected, DIGITS[dtype])
    return total, ours
