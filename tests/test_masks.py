"""What is masked takes part in nothing: targets that mark an unknown, `ignore_index`, and the weights of the row."""

import math

import pytest
import torch
from test_losses import IMPLS, loss_and_gradient, problem

from fused_balanced_loss import LossSpec, SparseTargets, balanced_loss, linear_balanced_loss

DB = LossSpec.preset("DB", corpus="reuters")
UNKNOWN = [-1.0, -100.0, math.nan, 0.5, 2.0]


def with_unknowns(value, dtype=torch.float32):
    """Logits, targets with zeros at some unknown places, the same with ``value`` there, a mask of the others."""
    logits, targets, statistics = problem(5, 70)
    generator = torch.Generator().manual_seed(3)
    mask = torch.rand(targets.shape, generator=generator) < 0.8
    clean = (targets & mask).to(dtype)
    return logits, clean, torch.where(mask, clean, value).to(dtype), mask, statistics


@pytest.mark.parametrize("impl", IMPLS, indirect=True)
@pytest.mark.parametrize("value", UNKNOWN)
def test_a_masked_unknown_target_counts_nowhere(value, impl, device):
    logits, clean, unknown, mask, statistics = with_unknowns(value)
    given = {"label_mask": mask.to(device), "impl": impl}
    expected = loss_and_gradient(logits, clean, statistics, DB, device, **given)
    loss, gradient = loss_and_gradient(logits, unknown, statistics, DB, device, **given)
    torch.testing.assert_close(loss, expected[0], rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient, expected[1], rtol=1e-6, atol=1e-9)
    assert not gradient[~mask].any()


@pytest.mark.parametrize("impl", IMPLS, indirect=True)
def test_a_masked_one_counts_in_the_weight_of_its_row(impl, device):
    logits, targets, statistics = problem(5, 70)
    targets[:, 3] = True
    mask = torch.ones_like(targets)
    mask[:, 3] = False
    whole, _ = loss_and_gradient(logits, targets, statistics, DB, device, impl=impl, reduction="none")
    masked, _ = loss_and_gradient(
        logits, targets, statistics, DB, device, impl=impl, reduction="none", label_mask=mask.to(device)
    )
    torch.testing.assert_close(masked, torch.where(mask, whole, 0.0), rtol=1e-6, atol=0)


@pytest.mark.parametrize("impl", IMPLS, indirect=True)
@pytest.mark.parametrize(
    ("value", "dtype"), [(-100, torch.int64), (-1, torch.int8), (-1.0, torch.float32), (255, torch.uint8)]
)
def test_ignore_index_masks_by_itself(value, dtype, impl, device):
    logits, clean, unknown, mask, statistics = with_unknowns(value, dtype)
    expected = loss_and_gradient(logits, clean, statistics, DB, device, impl=impl, label_mask=mask.to(device))
    loss, gradient = loss_and_gradient(logits, unknown, statistics, DB, device, impl=impl, ignore_index=value)
    torch.testing.assert_close(loss, expected[0], rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient, expected[1], rtol=1e-6, atol=1e-9)


def test_ignore_index_and_a_mask_leave_out_what_either_leaves_out(device):
    logits, _, unknown, mask, statistics = with_unknowns(-1)
    other = torch.arange(70) % 3 > 0
    both = (mask & other).to(device)
    given = [part.to(device) for part in (logits, unknown)]
    expected = balanced_loss(*given, DB, statistics, label_mask=both)
    loss = balanced_loss(*given, DB, statistics, label_mask=other.to(device), ignore_index=-1)
    torch.testing.assert_close(loss, expected)


def test_the_classifier_ignores_alike(device):
    _, clean, unknown, mask, statistics = with_unknowns(-100, torch.int64)
    weight = torch.randn(70, 6)
    features = torch.randn(5, 6)
    given = [part.to(device) for part in (features, weight)]
    expected = linear_balanced_loss(*given, None, clean.to(device), DB, statistics, label_mask=mask.to(device))
    loss = linear_balanced_loss(
        *given, None, unknown.to(device), DB, statistics, ignore_index=-100, chunk_size=16, impl="auto"
    )
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)


def test_ignore_index_that_the_dtype_cannot_hold_meets_nothing(device):
    logits, targets, statistics = problem(5, 70)
    given = targets.byte().to(device)
    given[0, 0] = 156  # -100, had the number been wrapped around
    with pytest.raises(ValueError, match=r"targets: expected 0 or 1, got 156 at \[0, 0\]"):
        balanced_loss(logits, given.cpu(), DB, statistics, ignore_index=-100)


@pytest.mark.parametrize(
    ("value", "error"), [(0, ValueError), (1.0, ValueError), (True, TypeError), ("x", TypeError), (math.nan, TypeError)]
)
def test_bad_ignore_index(value, error):
    logits, targets, statistics = problem(5, 70)
    with pytest.raises(error, match="ignore_index: expected a number"):
        balanced_loss(logits, targets, DB, statistics, ignore_index=value)


def test_label_ids_have_nothing_to_ignore():
    logits, targets, statistics = problem(5, 70)
    with pytest.raises(ValueError, match="ignore_index: expected None with label ids"):
        balanced_loss(logits, SparseTargets.from_dense(targets), DB, statistics, ignore_index=-1)


@pytest.mark.parametrize("impl", ["auto", "eager", "reference"])
@pytest.mark.parametrize("value", UNKNOWN)
def test_an_unknown_target_that_is_not_masked_raises(value, impl):
    logits, _, unknown, mask, statistics = with_unknowns(value)
    mask[0, 0], unknown[0, 0] = True, value
    with pytest.raises(ValueError, match=r"targets: expected 0 or 1, got .* at \[0, 0\]"):
        balanced_loss(logits, unknown, DB, statistics, label_mask=mask, impl=impl)


@pytest.mark.parametrize("targets", ["dense", "ids"])
def test_in_place_looks_at_the_targets_before_the_logits_are_gone(targets):
    logits, dense, statistics = problem(5, 70)
    z = logits.clone()
    if targets == "dense":
        given = dense.float()
        given[4, 69] = 3.0
    else:
        given = SparseTargets(torch.tensor([0, 1, 1, 1, 1, 2]), torch.tensor([3, 70]), 70, check=False)
    with pytest.raises(ValueError, match="targets: expected"):
        balanced_loss(z, given, DB, statistics, gradient="in_place")
    assert torch.equal(z, logits)
