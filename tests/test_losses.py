"""Values and gradients of all losses, conventions, target forms and dtypes, by every implementation."""

import pytest
import torch
from oracle import assert_within_rule, elements, plain

from fused_balanced_loss import LabelStatistics, LossSpec, SparseTargets, balanced_loss
from fused_balanced_loss.spec import PAPER_LOSSES

DIGITS = {torch.float64: 2.0**-50, torch.float32: 2.0**-22, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}
FORMS = {
    "bool": lambda y: y.bool(),
    "uint8": lambda y: y.byte(),
    "float": lambda y: y.float(),
    "csr": SparseTargets.from_dense,
    "torch-csr": lambda y: y.float().to_sparse_csr(),
}
KERNELS = ("eager", "cpp", "triton")  # the closed form by the same rules
IMPLS = ("reference", *KERNELS)


def problem(num_rows=6, num_labels=37, dtype=torch.float32, scale=3.0, seed=0, num_samples=500):
    generator = torch.Generator().manual_seed(seed)
    logits = (torch.randn(num_rows, num_labels, generator=generator) * scale - 1).to(dtype)
    targets = torch.rand(num_rows, num_labels, generator=generator) < 0.1
    if num_rows > 2:
        targets[2] = False
    counts = torch.randint(0, num_samples + 1, (num_labels,), generator=generator)
    return logits, targets, LabelStatistics.from_counts(counts, num_samples, degenerate="ignore")


def loss_and_gradient(logits, targets, statistics, spec, device, **options):
    z = logits.to(device).requires_grad_()
    targets = targets.to(device)
    loss = balanced_loss(z, targets, spec, statistics, **options)
    (gradient,) = torch.autograd.grad(loss.sum(), z)
    return loss.detach().cpu(), gradient.cpu()


@pytest.mark.parametrize("convention", ["paper", "authors"])
@pytest.mark.parametrize("corpus", ["reuters", "pubmed"])
@pytest.mark.parametrize("name", PAPER_LOSSES)
@pytest.mark.parametrize("impl", IMPLS, indirect=True)
def test_equals_the_equations_in_float64(impl, name, corpus, convention, device):
    logits, targets, statistics = problem(dtype=torch.float64)
    spec = LossSpec.preset(name, corpus=corpus, convention=convention)
    expected, gradient = elements(logits, targets, statistics.counts, statistics.num_samples, spec)
    for form in FORMS.values():
        ours, ours_gradient = loss_and_gradient(
            logits, form(targets), statistics, spec, device, reduction="none", impl=impl
        )
        torch.testing.assert_close(ours, expected, rtol=1e-11, atol=1e-14)
        torch.testing.assert_close(ours_gradient, gradient, rtol=1e-11, atol=1e-14)
        total, ours_gradient = loss_and_gradient(logits, form(targets), statistics, spec, device, impl=impl)
        torch.testing.assert_close(total, expected.mean(), rtol=1e-12, atol=0)
        torch.testing.assert_close(ours_gradient, gradient / logits.numel(), rtol=1e-11, atol=1e-17)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", PAPER_LOSSES)
@pytest.mark.parametrize("impl", IMPLS, indirect=True)
def test_error_is_at_most_twice_that_of_plain_torch(impl, name, dtype, device):
    logits, targets, statistics = problem(dtype=dtype, scale=6.0, seed=1)
    spec = LossSpec.preset(name, convention="authors", corpus="reuters")
    expected, gradient = elements(logits, targets, statistics.counts, statistics.num_samples, spec)
    plain_loss, plain_gradient = plain(logits.float(), targets, statistics, spec)
    for form in ("uint8", "csr"):
        for reduction in ("none", "sum"):
            ours, ours_gradient = loss_and_gradient(
                logits, FORMS[form](targets), statistics, spec, device, reduction=reduction, impl=impl
            )
            assert ours.dtype == torch.float32
            assert ours_gradient.dtype == dtype
            if reduction == "none":
                assert_within_rule(ours, (plain_loss.double() - expected).abs(), expected, DIGITS[torch.float32])
            else:
                torch.testing.assert_close(ours.double(), expected.sum(), rtol=1e-6, atol=0)
            error = (plain_gradient.to(dtype).double() - gradient).abs()
            assert_within_rule(ours_gradient, error, gradient, DIGITS[dtype])


EXTRAS = {
    "asl": LossSpec.preset("ASL"),
    "gamma 0.5": LossSpec(gamma=0.5, weighting="rebalanced", mu=0.9, kappa=0.05, lam=2),
    "gamma 3.3": LossSpec(gamma=3.3),
    "gamma 1": LossSpec(gamma=1, lam=0.7),
    "gamma 0 and 2": LossSpec(gamma=0, gamma_negative=2),
    "margin without focus": LossSpec(probability_margin=0.2),
    "steep": LossSpec(gamma=2, weighting="rebalanced", beta=200, mu=0.9),
    "flat": LossSpec(gamma=2, weighting="rebalanced", beta=1e-6, mu=0.9, alpha=0.0),
}


@pytest.mark.parametrize("name", EXTRAS)
@pytest.mark.parametrize("impl", IMPLS, indirect=True)
def test_other_settings(impl, name, device):
    logits, targets, statistics = problem(dtype=torch.float64, seed=2)
    expected, gradient = elements(logits, targets, statistics.counts, statistics.num_samples, EXTRAS[name])
    ours, ours_gradient = loss_and_gradient(
        logits, targets, statistics, EXTRAS[name], device, reduction="none", impl=impl
    )
    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(ours_gradient, gradient, rtol=1e-10, atol=1e-13)
    ours, ours_gradient = loss_and_gradient(
        logits.float(), targets, statistics, EXTRAS[name], device, reduction="none", impl=impl
    )
    torch.testing.assert_close(ours.double(), expected, rtol=2e-4, atol=1e-6)
    torch.testing.assert_close(ours_gradient.double(), gradient, rtol=2e-4, atol=1e-6)


@pytest.mark.parametrize("weighting", ["class_balanced", "inverse_frequency", "sqrt_inverse_frequency"])
@pytest.mark.parametrize("pooling", ["label", "mean_count", "mean_weight", "rarest"])
@pytest.mark.parametrize("impl", IMPLS, indirect=True)
def test_weights_by_label_and_pooled(impl, pooling, weighting, device):
    logits, targets, statistics = problem(dtype=torch.float64, seed=3)
    n = statistics.counts.clamp(1, statistics.num_samples - 1).double()
    exponent = {"inverse_frequency": 1.0, "sqrt_inverse_frequency": 0.5}.get(weighting)

    def weight(count):
        if exponent is None:
            return 0.1 / (1 - 0.9**count)
        return count**-exponent / (n**-exponent).mean()

    rows = []
    for row in targets:
        of_row = n[row] if row.any() else torch.tensor([float(statistics.num_samples)], dtype=torch.float64)
        pooled = {"mean_count": weight(of_row.mean()), "mean_weight": weight(of_row).mean()}
        pooled["rarest"] = weight(of_row.min())
        rows.append(weight(n) if pooling == "label" else pooled[pooling].expand(len(n)))
    spec = LossSpec(gamma=2, weighting=weighting, pooling=pooling)
    expected, gradient = elements(logits, targets, statistics.counts, statistics.num_samples, LossSpec(gamma=2))
    for form in ("bool", "csr"):
        ours, ours_gradient = loss_and_gradient(
            logits, FORMS[form](targets), statistics, spec, device, reduction="none", impl=impl
        )
        torch.testing.assert_close(ours, expected * torch.stack(rows), rtol=1e-11, atol=1e-14)
        torch.testing.assert_close(ours_gradient, gradient * torch.stack(rows), rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("impl", IMPLS, indirect=True)
@pytest.mark.parametrize("gradient_mode", ["forward", "backward", "in_place"])
@pytest.mark.parametrize("by_element", [False, True])
def test_sample_weight_and_label_mask(by_element, gradient_mode, impl, device):
    logits, targets, statistics = problem(dtype=torch.float64, seed=4)
    spec = LossSpec.preset("DB", corpus="reuters")
    weight = torch.rand(len(logits))
    mask = torch.rand(logits.shape if by_element else logits.shape[1:]) < 0.7
    z = logits.masked_fill(~mask, float("inf")).to(device).requires_grad_()
    expected, gradient = elements(logits, targets, statistics.counts, 500, spec, weight)
    whole = mask.expand(logits.shape)
    count = whole.sum()
    loss = balanced_loss(
        z * 1, targets.to(device), spec, statistics, sample_weight=weight.to(device), label_mask=mask.to(device),
        impl=impl, gradient=gradient_mode,
    )  # fmt: skip
    (ours,) = torch.autograd.grad(loss, z)
    torch.testing.assert_close(loss.detach().cpu(), torch.where(whole, expected, 0).sum() / count, rtol=1e-7, atol=0)
    torch.testing.assert_close(ours.cpu(), torch.where(whole, gradient, 0) / count, rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("name", PAPER_LOSSES)
@pytest.mark.parametrize("corpus", ["reuters", "pubmed"])
@pytest.mark.parametrize("impl", IMPLS, indirect=True)
def test_published_experiments(impl, corpus, name, golden, device):
    statistics = LabelStatistics.from_counts(golden["class_freq"], int(golden["train_num"]))
    logits = torch.from_numpy(golden["logits"]).double()
    targets = torch.from_numpy(golden["labels"])
    spec = LossSpec.preset(name, corpus=corpus, convention="authors")
    loss, gradient = loss_and_gradient(logits, targets, statistics, spec, device, impl=impl)
    assert abs(loss.item() - golden[f"{corpus}.{name}|loss"]) < 1e-12
    assert (gradient - torch.from_numpy(golden[f"{corpus}.{name}|grad"])).abs().max() < 1e-14


@pytest.mark.parametrize("name", [*PAPER_LOSSES, "ASL"])
@pytest.mark.parametrize("impl", ["reference", "eager", "cpp", "triton"])
@pytest.mark.parametrize("gradient_mode", ["forward", "backward"])
def test_gradcheck(gradient_mode, impl, name, device):
    logits, targets, statistics = problem(3, 5, torch.float64, scale=1.0)
    # Away from the corner that the probability margin has.
    spec = LossSpec.preset(name, corpus="reuters")
    targets = targets.to(device)
    for reduction in ("mean", "none"):
        assert torch.autograd.gradcheck(
            lambda z, reduction=reduction: balanced_loss(
                z, targets, spec, statistics, reduction=reduction, impl=impl, gradient=gradient_mode
            ),
            (logits.to(device).requires_grad_(),),
            nondet_tol=0.0,
        )


@pytest.mark.parametrize("impl", [*IMPLS, "compile"], indirect=True)
@pytest.mark.parametrize("form", ["uint8", "csr"])
@pytest.mark.parametrize("masked", [False, True])
def test_batchmean_sums_over_the_labels_and_averages_over_the_samples(masked, form, impl, device):
    logits, targets, statistics = problem(dtype=torch.float64)
    spec = LossSpec.preset("DB", corpus="reuters")
    options = {"label_mask": (torch.arange(targets.shape[1]) % 3 > 0).to(device)} if masked else {}
    expected, gradient = (
        loss_and_gradient(logits, FORMS[form](targets), statistics, spec, device, impl="reference", **options, **how)
        for how in ({"reduction": "none"}, {"reduction": "sum"})
    )
    loss, ours = loss_and_gradient(
        logits, FORMS[form](targets), statistics, spec, device, impl=impl, reduction="batchmean", **options
    )
    torch.testing.assert_close(loss, expected[0].sum(1).mean(), rtol=1e-11, atol=0)
    torch.testing.assert_close(ours, gradient[1] / len(logits), rtol=1e-11, atol=1e-16)
    with pytest.raises(ValueError, match="expected at least one sample for reduction 'batchmean'"):
        balanced_loss(logits[:0].to(device), targets[:0].to(device), spec, statistics, reduction="batchmean", impl=impl)
