"""What is kept of a call for the next of its kind: nothing that could make the next one wrong."""

import weakref

import pytest
import torch
from test_losses import problem

from fused_balanced_loss import (
    DistributionBalancedLoss,
    LabelStatistics,
    LossSpec,
    SparseTargets,
    balanced_loss,
    functional,
    kept_calls,
)

DB = LossSpec.preset("DB", corpus="reuters")
IMPLS = ["auto", "eager", "cpp", "triton"]


def loss_and_gradient(logits, targets, *arguments, **options):
    z = logits.detach().clone().requires_grad_()
    loss = balanced_loss(z, targets, *arguments, **options)
    (gradient,) = torch.autograd.grad(loss.sum(), z)
    return loss.detach(), gradient


@pytest.mark.parametrize("impl", IMPLS, indirect=True)
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("gradient", ["auto", "backward"])
@pytest.mark.parametrize("sparse", [False, True])
def test_the_next_call_of_a_kind_gives_the_same(impl, reduction, gradient, sparse, device):
    logits, targets, statistics = problem(4, 70)
    given = SparseTargets.from_dense(targets) if sparse else targets
    logits, given = logits.to(device), given.to(device)
    options = {"impl": impl, "reduction": reduction, "gradient": gradient}
    first = loss_and_gradient(logits, given, DB, statistics, **options)
    assert len(kept_calls._calls) == 1
    for one, other in zip(first, loss_and_gradient(logits, given, DB, statistics, **options), strict=True):
        torch.testing.assert_close(one, other)
    with torch.no_grad():
        torch.testing.assert_close(balanced_loss(logits, given, DB, statistics, **options), first[0])


def test_checks_are_made_once_for_a_kind(monkeypatch):
    logits, targets, statistics = problem(4, 70)
    module = DistributionBalancedLoss(statistics, mu=0.9)
    expected = module(logits, targets)

    def fail(*arguments):
        raise AssertionError("was checked again")

    for check in ("check_settings", "check_logits", "flat_batch", "select"):
        monkeypatch.setattr(functional, check, fail)
    torch.testing.assert_close(module(logits, targets), expected)
    with pytest.raises(AssertionError, match="was checked again"):
        module(logits[:3], targets[:3])


def test_batches_of_one_size_are_one_kind():
    logits, _, statistics = problem(4, 70)
    for step in range(20):
        given = SparseTargets.from_lists([[k, k + 1 + step] for k in range(4)] if step % 2 else [[step]] * 4, 70)
        balanced_loss(logits, given, DB, statistics)
    assert len(kept_calls._calls) == 1


def test_kinds_are_forgotten_at_some_number():
    for rows in range(1, 300):
        balanced_loss(torch.zeros(rows, 3), torch.zeros(rows, 3), LossSpec())
    assert len(kept_calls._calls) == 256


def test_what_is_wrong_is_refused_after_calls_that_were_right():
    logits, targets, statistics = problem(4, 70)
    ids = SparseTargets.from_dense(targets)
    for given in (targets, targets.float(), ids):
        balanced_loss(logits, given, DB, statistics)
        balanced_loss(logits, given, DB, statistics)
    with pytest.raises(ValueError, match=r"targets: expected 0 or 1, got 2"):
        balanced_loss(logits, targets.to(torch.int64) * 2, DB, statistics)
    with pytest.raises(ValueError, match=r"targets: expected a number in \[0, 1\], got -1"):
        balanced_loss(logits, -targets.float(), DB, statistics)
    with pytest.raises(ValueError, match=r"targets: expected label ids in \[0, 70\), got 70"):
        balanced_loss(logits, SparseTargets(ids.crow, ids.col.clamp(min=70), 70, check=False), DB, statistics)
    with pytest.raises(ValueError, match=r"targets: expected a tensor without gradient"):
        balanced_loss(logits, targets.float().requires_grad_(), DB, statistics)
    with pytest.raises(ValueError, match=r"targets: expected the device of the logits"):
        balanced_loss(logits, targets.to("meta"), DB, statistics)
    with pytest.raises(TypeError, match=r"logits: expected float16"):
        balanced_loss(logits.long(), targets, DB, statistics)
    with pytest.raises(ValueError, match=r"logits: expected 60 labels"):
        balanced_loss(logits, targets, DB, LabelStatistics.from_counts([5] * 60, 100, mu=0.5))
    with pytest.raises((TypeError, ValueError), match=r"reduction: expected"):
        balanced_loss(logits, targets, DB, statistics, reduction=["mean"])
    with pytest.raises(TypeError, match=r"spec: expected a LossSpec"):
        balanced_loss(logits, targets, "DB", statistics)
    with pytest.raises(NotImplementedError, match=r"logits: expected no tangent"):
        torch.func.jvp(lambda z: balanced_loss(z, targets, DB, statistics), (logits,), (logits,))
    with pytest.raises(RuntimeError):
        torch.func.vmap(lambda z: balanced_loss(z[None], targets[:1], DB, statistics))(logits)


def test_views_without_plain_memory_are_another_kind():
    logits, targets, statistics = problem(4, 70)
    negated, zeros = torch.complex(logits, logits).conj().imag, torch._efficientzerotensor(logits.shape)
    assert negated.is_neg() and zeros._is_zerotensor()
    for view, plain in ((negated, -logits), (zeros, torch.zeros_like(logits))):
        expected = balanced_loss(plain, targets, DB, statistics)
        for _ in range(2):
            torch.testing.assert_close(balanced_loss(view, targets, DB, statistics), expected)


def test_what_a_transform_has_left_behind():
    logits, targets, statistics = problem(4, 70)
    expected = balanced_loss(logits, targets, DB, statistics)
    left = []

    def leak(z):
        left.append(z)
        return z.sum()

    torch.func.grad(leak)(logits)
    for _ in range(2):
        torch.testing.assert_close(balanced_loss(left[0], targets, DB, statistics), expected)


def test_others_at_the_same_place_in_memory_are_told_apart():
    logits, targets, statistics = problem(4, 70)
    balanced_loss(logits, targets, DB, statistics)
    (key,) = kept_calls._calls
    other = LabelStatistics.from_counts([7] * 70, 100, mu=0.9)
    assert kept_calls.kept_call(key, logits, targets, statistics) is not None
    assert kept_calls.kept_call(key, logits, targets, other) is None


def test_statistics_are_not_held():
    logits, targets, statistics = problem(4, 70)
    statistics = LabelStatistics.from_counts(statistics.counts, statistics.num_samples, mu=0.9, degenerate="ignore")
    for _ in range(2):
        balanced_loss(logits, targets, DB, statistics)
    gone = weakref.ref(statistics)
    del statistics
    assert gone() is None


def test_constants_that_are_kept_no_longer():
    logits, targets, statistics = problem(4, 70)
    expected = balanced_loss(logits, targets, DB, statistics)
    statistics.cache.clear()
    torch.testing.assert_close(balanced_loss(logits, targets, DB, statistics), expected)


@pytest.mark.parametrize("name", ["weight", "pos_weight", "sample_weight", "label_mask", "ignore_index"])
def test_calls_with_more_tensors_are_not_kept(name):
    logits, targets, statistics = problem(4, 70)
    more = {"sample_weight": torch.ones(4), "label_mask": torch.ones(70, dtype=torch.bool), "ignore_index": -100}
    balanced_loss(logits, targets, DB, statistics, **{name: more.get(name, torch.ones(70))})
    assert not kept_calls._calls
