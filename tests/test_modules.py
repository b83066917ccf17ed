"""The losses as modules."""

import pytest
import torch
from agreement import assert_same_but_for_rounding
from torch import nn

import fused_balanced_loss as fbl
from fused_balanced_loss import BalancedLoss, DistributionBalancedLoss, LabelStatistics, LossSpec, SparseTargets

STATISTICS = LabelStatistics.from_counts([1, 30, 4, 70, 11, 2, 55], 100, mu=0.9)
OTHER = LabelStatistics.from_counts([90, 3, 60, 5, 2, 150, 12], 200, mu=0.3)
N, C = 6, 7

# module, settings, the spec they stand for
NAMED = [
    ("DistributionBalancedLoss", {}, LossSpec.preset("DB")),
    ("DistributionBalancedLoss", {"mu": 0.9}, LossSpec.preset("DB", corpus="reuters")),
    ("DistributionBalancedLoss", {"mu": 0.05}, LossSpec.preset("DB", corpus="pubmed")),
    ("DistributionBalancedLoss", {"gamma": 0}, LossSpec.preset("DB-0FL")),
    (
        "DistributionBalancedLoss",
        {"gamma": 1, "alpha": 0.2, "beta": 5, "mu": 0.3, "kappa": 0.1, "lam": 3},
        LossSpec(gamma=1, weighting="rebalanced", alpha=0.2, beta=5, mu=0.3, kappa=0.1, lam=3),
    ),
    ("RebalancedFocalLoss", {}, LossSpec.preset("R-FL")),
    (
        "RebalancedFocalLoss",
        {"gamma": 1, "alpha": 0.2, "beta": 5, "mu": 0.3},
        LossSpec(gamma=1, weighting="rebalanced", alpha=0.2, beta=5, mu=0.3),
    ),
    ("ClassBalancedFocalLoss", {}, LossSpec.preset("CB")),
    (
        "ClassBalancedFocalLoss",
        {"gamma": 1, "beta_cb": 0.99},
        LossSpec(gamma=1, weighting="class_balanced", beta_cb=0.99),
    ),
    ("NegativeTolerantFocalLoss", {}, LossSpec.preset("NTR-FL")),
    ("NegativeTolerantFocalLoss", {"gamma": 1, "kappa": 0.1, "lam": 3}, LossSpec(gamma=1, kappa=0.1, lam=3)),
    ("ClassBalancedNTRLoss", {}, LossSpec.preset("CB-NTR")),
    (
        "ClassBalancedNTRLoss",
        {"gamma": 1, "beta_cb": 0.99, "kappa": 0.1, "lam": 3},
        LossSpec(gamma=1, weighting="class_balanced", beta_cb=0.99, kappa=0.1, lam=3),
    ),
    ("FocalLoss", {}, LossSpec.preset("FL")),
    ("FocalLoss", {"gamma": 0}, LossSpec.preset("BCE")),
]


def batch(*shape, dtype=torch.float32, requires_grad=False, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = shape or (N, C)
    logits = (3 * torch.randn(shape, generator=generator)).to(dtype).requires_grad_(requires_grad)
    return logits, torch.rand(shape, generator=generator) < 0.3


def value_and_gradient(loss, *arguments, logits, **options):
    logits = logits.detach().clone().requires_grad_()
    value = loss(logits, *arguments, **options)
    return value.detach(), torch.autograd.grad(value.sum(), logits)[0]


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize(("name", "settings", "spec"), NAMED)
def test_named_modules_are_balanced_loss_with_their_spec(name, settings, spec, reduction):
    module = getattr(fbl, name)(STATISTICS, **settings, reduction=reduction)
    logits, targets = batch()
    got = value_and_gradient(module, targets, logits=logits)
    want = value_and_gradient(fbl.balanced_loss, targets, spec, STATISTICS, logits=logits, reduction=reduction)
    assert_same_but_for_rounding(got, want)
    assert got[0].shape == ((N, C) if reduction == "none" else ())
    # Settings that the loss does not use are free to differ.
    used = {"gamma", "weighting", "kappa", "lam"}
    used |= {"rebalanced": {"alpha", "beta", "mu"}, "class_balanced": {"beta_cb"}}.get(spec.weighting, set())
    assert all(getattr(module.spec, setting) == getattr(spec, setting) for setting in used)


@pytest.mark.parametrize("name", sorted({name for name, _, _ in NAMED}))
def test_named_modules_agree_with_the_reference(name):
    logits, targets = batch(dtype=torch.float64)
    got, want = (
        value_and_gradient(getattr(fbl, name)(STATISTICS, impl=impl), targets, logits=logits)
        for impl in ("auto", "reference")
    )
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-15)


def test_db_0fl_is_db_without_focal_modulation():
    logits, targets = batch()
    zero = DistributionBalancedLoss(STATISTICS, gamma=0)(logits, targets)
    assert_same_but_for_rounding(zero, BalancedLoss(LossSpec.preset("DB-0FL"), STATISTICS)(logits, targets))
    assert abs(zero / DistributionBalancedLoss(STATISTICS)(logits, targets) - 1) > 1e-3


@pytest.mark.parametrize("impl", ["auto", "reference"])
def test_class_balanced_weight_near_beta_one_is_one_over_n(impl):
    logits, targets = batch(dtype=torch.float64)
    beta = 1 - 1e-12
    module = fbl.ClassBalancedFocalLoss(STATISTICS, gamma=0, beta_cb=beta, reduction="none", impl=impl)
    plain = nn.functional.binary_cross_entropy_with_logits(logits, targets.double(), reduction="none")
    torch.testing.assert_close(module(logits, targets), plain / STATISTICS.counts, rtol=1e-9, atol=0)


@pytest.mark.parametrize("loss", [fbl.FocalLoss(), fbl.FocalLoss(None), BalancedLoss(LossSpec.preset("FL"))])
def test_focal_loss_without_statistics(loss):
    logits, targets = batch()
    p = torch.where(targets, logits, -logits).sigmoid()
    torch.testing.assert_close(loss(logits, targets), (-((1 - p) ** 2) * p.log()).mean())
    assert loss.state_dict() == {}


@pytest.mark.parametrize(
    "loss", [fbl.FocalLoss(gamma=0), BalancedLoss(LossSpec.preset("BCE")), BalancedLoss(LossSpec())]
)
def test_binary_cross_entropy_without_statistics(loss):
    logits, targets = batch()
    want = nn.functional.binary_cross_entropy_with_logits(logits, targets.float())
    torch.testing.assert_close(loss(logits, targets), want)


@pytest.mark.parametrize("name", sorted({name for name, _, _ in NAMED} - {"FocalLoss"}))
def test_statistics_are_needed_at_the_first_call(name):
    loss = getattr(fbl, name)(None)
    with pytest.raises(ValueError, match=r"^statistics: expected LabelStatistics.*got None"):
        loss(*batch())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_result_is_float32_or_float64(dtype):
    logits, targets = batch(dtype=dtype, requires_grad=True)
    loss = DistributionBalancedLoss(STATISTICS)(logits, targets)
    loss.backward()
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert logits.grad.dtype == dtype


@pytest.mark.parametrize("name", sorted({name for name, _, _ in NAMED}))
def test_training_steps_lower_the_loss(name):
    torch.manual_seed(0)
    features = torch.randn(24, 5)
    targets = features @ torch.randn(5, C) > 1
    model = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, C))
    loss = getattr(fbl, name)(STATISTICS, reduction="sum")
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    values = []
    for _ in range(30):
        optimizer.zero_grad()
        value = loss(model(features), targets)
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[-1] < 0.6 * values[0]
    assert not list(loss.parameters())


def test_in_place_gradient_trains_as_the_others():
    features, targets = torch.randn(N, 5, generator=torch.Generator().manual_seed(1)), batch()[1]
    gradients = []
    for gradient in ("forward", "backward", "in_place"):
        torch.manual_seed(0)
        model = nn.Linear(5, C)
        DistributionBalancedLoss(STATISTICS, gradient=gradient)(model(features), targets).backward()
        gradients.append(model.weight.grad)
    for other in gradients[1:]:
        assert_same_but_for_rounding(gradients[0], other)


@pytest.mark.parametrize(
    "form", [lambda y: y, lambda y: y.to(torch.uint8), torch.Tensor.float, SparseTargets.from_dense]
)
def test_every_form_of_targets(form):
    logits, targets = batch()
    module = DistributionBalancedLoss(STATISTICS)
    torch.testing.assert_close(module(logits, form(targets)), module(logits, targets), rtol=1e-6, atol=0)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_sample_weight_scales_each_sample_and_the_mean_still_divides_by_all(reduction):
    logits, targets = batch()
    weight = torch.tensor([0.0, 0.5, 2.0, 1.0, 3.0, 10.0])
    elements = DistributionBalancedLoss(STATISTICS, reduction="none")(logits, targets) * weight[:, None]
    want = {"none": elements, "sum": elements.sum(), "mean": elements.sum() / (N * C)}[reduction]
    got, gradient = value_and_gradient(
        DistributionBalancedLoss(STATISTICS, reduction=reduction), targets, logits=logits, sample_weight=weight
    )
    torch.testing.assert_close(got, want)
    assert not gradient[0].any()
    assert gradient[1:].any(1).all()


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("per_label", [True, False])
def test_label_mask_leaves_out_and_the_mean_divides_by_the_kept(per_label, reduction):
    logits, targets = batch()
    mask = torch.tensor([True, False, True, True, False, True, True])
    if not per_label:
        mask = torch.rand(N, C, generator=torch.Generator().manual_seed(2)) < 0.5
    kept = mask.expand(N, C)
    elements = DistributionBalancedLoss(STATISTICS, reduction="none")(logits, targets) * kept
    want = {"none": elements, "sum": elements.sum(), "mean": elements.sum() / kept.sum()}[reduction]
    got, gradient = value_and_gradient(
        DistributionBalancedLoss(STATISTICS, reduction=reduction), targets, logits=logits, label_mask=mask
    )
    torch.testing.assert_close(got, want)
    assert torch.equal(gradient != 0, kept)
    whole = value_and_gradient(DistributionBalancedLoss(STATISTICS, reduction="sum"), targets, logits=logits)[1]
    scale = 1 / kept.sum() if reduction == "mean" else 1
    torch.testing.assert_close(gradient, whole * kept * scale)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_mask_that_keeps_nothing_gives_zero(reduction):
    logits, targets = batch()
    module = DistributionBalancedLoss(STATISTICS, reduction=reduction)
    value, gradient = value_and_gradient(module, targets, logits=logits, label_mask=torch.zeros(N, C, dtype=torch.bool))
    assert value == 0
    assert not gradient.any()


def test_sample_weight_and_label_mask_together_by_position():
    logits, targets = batch()
    weight, mask = torch.arange(1.0, N + 1), torch.arange(C) % 2 == 0
    elements = DistributionBalancedLoss(STATISTICS, reduction="none")(logits, targets)
    want = (elements * weight[:, None] * mask).sum() / (N * int(mask.sum()))
    torch.testing.assert_close(DistributionBalancedLoss(STATISTICS)(logits, targets, weight, mask), want)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_three_dimensions_are_samples_in_rows(reduction, transposed):
    logits, targets = batch(2, 3, C)
    if transposed:
        logits, targets = batch(3, 2, C)
        logits, targets = logits.transpose(0, 1), targets.transpose(0, 1)
    weight = torch.tensor([[1.0, 2.0, 0.0], [3.0, 0.5, 1.0]])
    mask = torch.rand(2, 3, C, generator=torch.Generator().manual_seed(2)) < 0.7
    module = DistributionBalancedLoss(STATISTICS, reduction=reduction)
    got, gradient = value_and_gradient(module, targets, weight, mask, logits=logits)
    want, want_gradient = value_and_gradient(
        module,
        targets.reshape(6, C),
        weight.reshape(6),
        mask.reshape(6, C),
        logits=logits.reshape(6, C),
    )
    assert got.shape == (logits.shape if reduction == "none" else ())
    assert_same_but_for_rounding(got, want.reshape(got.shape))
    assert_same_but_for_rounding(gradient, want_gradient.reshape(logits.shape))
    sparse = SparseTargets.from_dense(targets.reshape(6, C))
    torch.testing.assert_close(module(logits, sparse, weight, mask), got, rtol=1e-6, atol=1e-7)
    assert_same_but_for_rounding(
        module(logits, targets, weight, mask[0, 0]), module(logits, targets, weight, mask[:1, :1].expand(2, 3, C))
    )


def test_inputs_are_not_modified():
    logits, targets = batch(requires_grad=True)
    weight, mask = torch.rand(N), torch.rand(N, C) < 0.5
    before = [part.detach().clone() for part in (logits, targets, weight, mask)]
    DistributionBalancedLoss(STATISTICS)(logits, targets, weight, mask).backward()
    assert all(torch.equal(part, old) for part, old in zip((logits, targets, weight, mask), before, strict=True))


def test_extra_repr():
    text = repr(DistributionBalancedLoss(STATISTICS, mu=0.05, reduction="sum"))
    assert text.startswith("DistributionBalancedLoss(gamma=2.0, ")
    for part in (
        "weighting='rebalanced'",
        "mu=0.05",
        "kappa=0.05",
        "lam=2.0",
        "statistics=LabelStatistics(num_labels=7, num_samples=100, mu=0.9)",
        "reduction='sum'",
        "impl='auto'",
    ):
        assert part in text
    assert "statistics=None" in repr(fbl.FocalLoss())
