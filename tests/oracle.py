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


def part(t, gamma, margin, epsilon):
    """(1 - p)**gamma * (-log(p) + epsilon * (1 - p)) with 1 - p shifted down by the margin, and its derivative by t."""
    p, q = sigmoid(t), sigmoid(-t)
    if margin:
        shifted = max(q - margin, 0.0)
        if shifted == 0:
            return 0.0, 0.0
        nll = -math.log1p(-shifted)
        slope = gamma * shifted ** (gamma - 1) * nll + shifted**gamma / (1 - shifted)
        slope += epsilon * (gamma + 1) * shifted**gamma
        return shifted**gamma * (nll + epsilon * shifted), slope * -p * q
    nll = softplus(-t) if math.isfinite(t) else (0.0 if t > 0 else math.inf)
    p_nll = p * nll if p else 0.0
    return q**gamma * (nll + epsilon * q), -(q**gamma) * (gamma * p_nll + q + epsilon * (gamma + 1) * p * q)


def element(z, y, n, num_samples, row_sum, spec, row_weight=1.0, weight=1.0, pos_weight=1.0):
    """(loss, d loss / d logit) of one element of target ``y``; ``row_sum`` is the sum of y/n over the row."""
    gamma, gamma_negative = spec.gamma, spec.gamma if spec.gamma_negative is None else spec.gamma_negative
    v = spec.kappa * math.log(num_samples / n - 1) if spec.kappa else 0.0
    w = row_weight * weight
    if spec.weighting == "rebalanced":
        r = (1 / n) / row_sum if row_sum else math.inf
        w *= spec.alpha + sigmoid(spec.beta * (r - spec.mu))
    elif spec.weighting == "class_balanced" and spec.pooling == "label":
        w *= (1 - spec.beta_cb) / (1 - spec.beta_cb**n)
    share = y * (1 - spec.label_smoothing) + spec.label_smoothing / 2
    loss = slope = 0.0
    # A part without a share is no part, though it may be infinite.
    if share > 0:
        value, by_t = part(z - v, gamma, 0.0, spec.poly_epsilon)
        factor = w * share * pos_weight * spec.positive_factor
        loss, slope = factor * value, factor * by_t
    if share < 1:
        value, by_t = part(-spec.lam * (z - v), gamma_negative, spec.probability_margin, spec.poly_epsilon)
        factor = w * (1 - share) * spec.negative_factor / spec.lam
        loss, slope = loss + factor * value, slope + factor * by_t * -spec.lam
    return loss, slope


def elements(logits, targets, counts, num_samples, spec, row_weight=None, weight=None, pos_weight=None):
    """(loss [N, C], gradient of their sum [N, C]), float64; weight and pos_weight: [C], a number, or None for 1."""
    loss, gradient = torch.zeros(logits.shape, dtype=torch.float64), torch.zeros(logits.shape, dtype=torch.float64)
    counts = [min(max(int(n), 1), num_samples - 1) for n in counts]
    factors = [
        [1.0] * len(counts) if one is None else torch.as_tensor(one).double().expand(len(counts)).tolist()
        for one in (weight, pos_weight)
    ]
    for k in range(logits.shape[0]):
        row = [float(y) for y in targets[k].tolist()]
        row_sum = sum(y / n for n, y in zip(counts, row, strict=True))
        for i in range(logits.shape[1]):
            of_row = 1.0 if row_weight is None else float(row_weight[k])
            loss[k, i], gradient[k, i] = element(
                float(logits[k, i]), row[i], counts[i], num_samples, row_sum, spec, of_row, *(one[i] for one in factors)
            )
    return loss, gradient


def plain(logits, targets, statistics, spec, weight=None, pos_weight=None):
    """The formula as one would write it in PyTorch, in the dtype of the logits: the yardstick of the error rule."""
    z = logits.detach().clone().requires_grad_()
    given = targets.to(z.dtype)
    n = statistics.clamped_counts.to(z.dtype)
    d = z - spec.kappa * torch.log(statistics.num_samples / n - 1)
    w = torch.ones_like(z)
    if spec.weighting == "rebalanced":
        r = (1 / n) / (given * (1 / n)).sum(1, keepdim=True)
        w = spec.alpha + torch.sigmoid(spec.beta * (r - spec.mu))
    elif spec.weighting == "class_balanced":
        w = statistics.class_balanced_weight(spec.beta_cb).to(z.dtype)
    if weight is not None:
        w = w * torch.as_tensor(weight).to(z.dtype)
    gamma, gamma_negative = spec.gammas
    parts = []
    for t, exponent, margin in ((d, gamma, 0.0), (-spec.lam * d, gamma_negative, spec.probability_margin)):
        q, nll = 1 - torch.sigmoid(t), torch.nn.functional.softplus(-t)
        if margin:
            q = (q - margin).clamp(min=0)
            nll = -torch.log1p(-q)
        parts.append(q**exponent * (nll + spec.poly_epsilon * q if spec.poly_epsilon else nll))
    positive = spec.positive_factor * parts[0]
    if pos_weight is not None:
        positive = torch.as_tensor(pos_weight).to(z.dtype) * positive
    share = given * (1 - spec.label_smoothing) + spec.label_smoothing / 2
    loss = w * (share * positive + (1 - share) * spec.negative_factor / spec.lam * parts[1])
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
