"""The equations in float64, element by element in plain Python: nothing of the library is used but its settings."""

import math

import torch


def sigmoid(x):
    if x >= 0:
        return 1 / (1 + math.exp(-x))
    e = math.exp(x) if x > -745 else 0.0
    return e / (1 + e)


def softplus(x):
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def element(z, y, n, num_samples, row_sum, spec, row_weight=1.0):
    """(loss, d loss / d logit) of one element; ``row_sum`` is the sum of 1/n over the row's labels."""
    gamma, gamma_negative = spec.gamma, spec.gamma if spec.gamma_negative is None else spec.gamma_negative
    v = spec.kappa * math.log(num_samples / n - 1) if spec.kappa else 0.0
    t = (z - v) if y else -spec.lam * (z - v)
    dt_dz = 1.0 if y else -spec.lam
    s = spec.positive_factor if y else spec.negative_factor / spec.lam
    w = row_weight
    if spec.weighting == "rebalanced":
        r = (1 / n) / row_sum if row_sum else math.inf
        w *= spec.alpha + sigmoid(spec.beta * (r - spec.mu))
    elif spec.weighting == "class_balanced" and spec.pooling == "label":
        w *= (1 - spec.beta_cb) / (1 - spec.beta_cb**n)
    p, q = sigmoid(t), sigmoid(-t)
    g = gamma if y else gamma_negative
    if not y and spec.probability_margin:
        q_m = max(q - spec.probability_margin, 0.0)
        if q_m == 0:
            return (0.0 if g else s * w * 0.0), 0.0
        nll = -math.log1p(-q_m)
        loss = s * w * q_m**g * nll
        slope = (g * q_m ** (g - 1) * nll + q_m**g / (1 - q_m)) * -p * q
        return loss, s * w * slope * dt_dz
    nll = softplus(-t) if math.isfinite(t) else (0.0 if t > 0 else math.inf)
    loss = s * w * q**g * nll
    p_nll = p * nll if p else 0.0
    return loss, -s * w * q**g * (g * p_nll + q) * dt_dz


def elements(logits, targets, counts, num_samples, spec, row_weight=None):
    """(loss [N, C], gradient of their sum [N, C]), float64."""
    loss, gradient = torch.zeros(logits.shape, dtype=torch.float64), torch.zeros(logits.shape, dtype=torch.float64)
    counts = [min(max(int(n), 1), num_samples - 1) for n in counts]
    for k in range(logits.shape[0]):
        row_sum = sum(1 / n for n, y in zip(counts, targets[k].tolist(), strict=True) if y)
        for i in range(logits.shape[1]):
            weight = 1.0 if row_weight is None else float(row_weight[k])
            loss[k, i], gradient[k, i] = element(
                float(logits[k, i]), bool(targets[k, i]), counts[i], num_samples, row_sum, spec, weight
            )
    return loss, gradient


def plain(logits, targets, statistics, spec):
    """The formula as one would write it in PyTorch, in the dtype of the logits: the yardstick of the error rule."""
    z, y = logits.detach().clone().requires_grad_(), targets != 0
    n = statistics.clamped_counts.to(z.dtype)
    v = spec.kappa * torch.log(statistics.num_samples / n - 1)
    t = torch.where(y, z - v, -spec.lam * (z - v))
    w = torch.ones_like(z)
    if spec.weighting == "rebalanced":
        r = (1 / n) / (y * (1 / n)).sum(1, keepdim=True)
        w = spec.alpha + torch.sigmoid(spec.beta * (r - spec.mu))
    elif spec.weighting == "class_balanced":
        w = statistics.class_balanced_weight(spec.beta_cb).to(z.dtype)
    factor = torch.where(y, spec.positive_factor, spec.negative_factor / spec.lam).to(z.dtype)
    loss = factor * w * (1 - torch.sigmoid(t)) ** spec.gamma * torch.nn.functional.softplus(-t)
    (gradient,) = torch.autograd.grad(loss.sum(), z)
    return loss.detach(), gradient


def assert_within_rule(ours, plain_error, expected, digits):
    """|ours - float64| <= 2 |plain - float64| + tiny; tiny is 4 ulp of the element and 1 ulp of the largest."""
    ours, expected = ours.double(), expected.double()
    finite = torch.isfinite(expected)
    assert torch.equal(ours[~finite], expected[~finite])
    ours, expected, plain_error = ours[finite], expected[finite], plain_error[finite]
    largest = expected.abs().max() if expected.numel() else 0.0
    allowed = 2 * plain_error.nan_to_num(0.0) + digits * (4 * expected.abs() + largest)
    excess = ((ours - expected).abs() - allowed).max() if expected.numel() else torch.tensor(0.0)
    assert not torch.isnan(ours).any()
    assert excess <= 0, f"off by {excess:.3g} more than allowed, largest value {largest:.3g}"
