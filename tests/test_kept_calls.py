"""What is kept of a call for the next of its kind: nothing that could make the next one wrong."""

import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from test_losses import KERNELS, loss_and_gradient, problem

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
IMPLS = ("auto", *KERNELS)


@pytest.mark.parametrize("impl", IMPLS, indirect=True)
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("gradient", ["auto", "backward"])
@pytest.mark.parametrize("sparse", [False, True])
def test_the_next_call_of_a_kind_gives_the_same(impl, reduction, gradient, sparse, device):
    logits, targets, statistics = problem(4, 70)
    given = SparseTargets.from_dense(targets) if sparse else targets
    logits, given = logits.to(device), given.to(device)
    options = {"impl": impl, "reduction": reduction, "gradient": gradient}
    first = loss_and_gradient(logits, given, statistics, DB, device, **options)
    assert len(kept_calls._calls) == 1
    for one, other in zip(first, loss_and_gradient(logits, given, statistics, DB, device, **options), strict=True):
        torch.testing.assert_close(one, other)
    with torch.no_grad():
        torch.testing.assert_close(balanced_loss(logits, given, DB, statistics, **options).cpu(), first[0])


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
    (call,) = kept_calls._calls.values()
    settings = ("mean", "auto", "auto")
    assert kept_calls.find_call(logits, targets, DB, statistics, *settings)[:2] == (key, call)
    # As if the other had the first one's identity.
    kept_calls._calls[kept_calls.find_call(logits, targets, DB, other, *settings)[0]] = call
    assert kept_calls.find_call(logits, targets, DB, other, *settings)[1] is None


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


@pytest.mark.parametrize("options", [{"gradient": "in_place"}, {"impl": "reference"}])
def test_calls_that_need_a_look_each_time_are_not_kept(options):
    logits, targets, statistics = problem(4, 70)
    balanced_loss(logits * 1, targets, DB, statistics, **options)
    assert not kept_calls._calls
    pooled = LossSpec(weighting="class_balanced", pooling="rarest")
    balanced_loss(logits, targets, pooled, statistics)
    assert not kept_calls._calls


@pytest.mark.parametrize("impl", IMPLS, indirect=True)
def test_a_second_backward_of_a_kept_call(impl, device):
    logits, targets, statistics = problem(4, 70)
    ids, z = SparseTargets.from_dense(targets).to(device), logits.to(device).requires_grad_()
    balanced_loss(z, ids, DB, statistics, impl=impl)
    loss = balanced_loss(z, ids, DB, statistics, impl=impl)
    first, second = (
        torch.autograd.grad(loss, z, torch.tensor(3.0, device=device), retain_graph=True)[0] for _ in range(2)
    )
    torch.testing.assert_close(second, first)
    ids.col.sub_(1).clamp_(min=0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(loss, z)


@pytest.mark.parametrize("gradient", ["forward", "backward"])
@pytest.mark.parametrize("impl", ["auto", "triton"], indirect=True)
def test_saved_logits_come_back_with_other_strides(impl, gradient, device):
    logits, targets, statistics = problem(4, 70)
    whole = torch.zeros(4, 75, device=device)
    whole[:, :70] = logits
    z = whole[:, :70].requires_grad_()
    (expected,) = torch.autograd.grad(balanced_loss(z, targets.to(device), DB, statistics, impl=impl), z)
    for _ in range(2):
        with torch.autograd.graph.saved_tensors_hooks(lambda t: t.clone(), lambda t: t.contiguous()):
            loss = balanced_loss(z, targets.to(device), DB, statistics, impl=impl, gradient=gradient)
        for _ in range(2):
            torch.testing.assert_close(torch.autograd.grad(loss, z, retain_graph=True)[0], expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_parameters(dtype):
    logits, targets, statistics = problem(4, 70, dtype)
    z = torch.nn.Parameter(logits)
    losses = [balanced_loss(z, targets, DB, statistics) for _ in range(3)]
    (call,) = kept_calls._calls.values()
    assert call.gradient == ("backward" if dtype == torch.float16 else "forward")
    gradients = [torch.autograd.grad(loss, z)[0] for loss in losses]
    expected = loss_and_gradient(logits, targets, statistics, DB, logits.device)
    for loss, gradient in zip(losses, gradients, strict=True):
        torch.testing.assert_close(loss.detach(), expected[0])
        torch.testing.assert_close(gradient, expected[1])


def test_threads_share_what_is_kept(device):
    logits, targets, statistics = problem(4, 70)
    expected = loss_and_gradient(logits, targets, statistics, DB, device)

    def several(_):
        return [loss_and_gradient(logits, targets, statistics, DB, device) for _ in range(5)]

    with ThreadPoolExecutor(4) as pool:
        for results in pool.map(several, range(4)):
            for result in results:
                torch.testing.assert_close(result, expected)
