"""The oracle itself: nothing is rounded before it must be, and nothing hides a NaN."""

import pytest
import torch
from test_losses import problem

from fused_balanced_loss import LabelStatistics, LossSpec, balanced_loss


def test_counts_are_not_rounded_to_the_dtype_of_the_logits():
    """In float32, N_train / n - 1 loses its digits for a label that nearly all samples carry."""
    num_samples = 10_000_000
    statistics = LabelStatistics.from_counts([num_samples - 1], num_samples)
    logits, targets = torch.tensor([[0.3]]), torch.tensor([[1]])
    losses = [
        balanced_loss(logits.to(dtype), targets, LossSpec.preset("NTR-FL"), statistics, impl="reference")
        for dtype in (torch.float32, torch.float64)
    ]
    torch.testing.assert_close(losses[0].double(), losses[1], rtol=1e-6, atol=0)


@pytest.mark.parametrize("impl", ["reference", "eager", "cpp", "triton"])
@pytest.mark.parametrize("spec", [LossSpec.preset("ASL"), LossSpec(gamma=0.0, probability_margin=0.05), LossSpec()])
@pytest.mark.parametrize("target", [0, 1])
def test_a_nan_logit_has_a_nan_loss_and_gradient(spec, target, impl):
    logits = torch.tensor([[float("nan"), 0.5]], requires_grad=True)
    targets = torch.tensor([[target, 0]])
    loss = balanced_loss(logits, targets, spec, reduction="sum", impl=impl)
    loss.backward()
    assert loss.isnan() and logits.grad[0, 0].isnan() and logits.grad[0, 1].isfinite()


def test_it_can_be_differentiated_twice():
    logits, targets, statistics = problem(3, 20, torch.float64)
    z = logits.requires_grad_()
    loss = balanced_loss(z, targets, LossSpec.preset("DB", corpus="reuters"), statistics, impl="reference")
    (gradient,) = torch.autograd.grad(loss, z, create_graph=True)
    (second,) = torch.autograd.grad(gradient.square().sum(), z)
    assert second.isfinite().all() and second.any()


def test_the_margin_keeps_the_digits_of_the_derivative_of_saturated_logits():
    """p is 1 - exp(z) or so: a derivative by way of 1 - p, rounded first, would be off or zero."""
    spec = LossSpec(gamma=0.0, gamma_negative=1.0, probability_margin=0.05)
    z = torch.tensor([[30.0, 34.0, -40.0]], dtype=torch.float64, requires_grad=True)
    loss = balanced_loss(z, torch.tensor([[0, 0, 1]]), spec, impl="reference", reduction="sum")
    (gradient,) = torch.autograd.grad(loss, z)
    # By hand: with e = exp(-z) and r = p - margin, d(-r log(1 - r))/dz = p (1 - p) (r / (1 - r) - log(1 - r)).
    e = torch.exp(-z.detach()[0, :2])
    p, rest = 1 / (1 + e), e / (1 + e)
    r = p - 0.05
    expected = torch.cat([p * rest * (r / (1 - r) - torch.log(1 - r)), torch.tensor([-1.0], dtype=torch.float64)])
    torch.testing.assert_close(gradient[0], expected, rtol=1e-12, atol=0)
