"""What an in-place optimizer's kernels read by pointer: state that is not as it was made is refused or made dense."""

import copy

import pytest
import torch

from fused_balanced_loss import AdamWUpdate, LabelStatistics, LinearBalancedLoss, LossSpec, SGDUpdate

C, D, N = 29, 16, 8
STATISTICS = LabelStatistics.from_counts(torch.arange(1, C + 1), 100)


def make(update, dtype=torch.float32):
    torch.manual_seed(0)
    return LinearBalancedLoss(LossSpec.preset("DB", corpus="reuters"), STATISTICS, D, update=update, dtype=dtype)


def batch(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(N, D, generator=generator), torch.rand(N, C, generator=generator) < 0.2


def step(loss, seed=0):
    features, targets = batch(seed)
    loss(features.to(loss.weight.dtype), targets).backward()


def scattered(tensor):
    """The same numbers, not side by side in memory."""
    if tensor.dim() == 0:
        return tensor.clone()
    wide = torch.zeros(*tensor.shape, 2, dtype=tensor.dtype)
    wide[..., 0] = tensor
    return wide[..., 0]


@pytest.mark.parametrize("state", ["float32", "bfloat16", "row"])
@pytest.mark.parametrize("change", [scattered, lambda t: torch._neg_view(-t) if t.is_floating_point() else t])
def test_a_state_assigned_by_a_checkpoint_is_made_dense(state, change):
    loss = make(AdamWUpdate(0.05, state=state))
    for seed in range(2):
        step(loss, seed)
    saved = {name: value.clone() for name, value in loss.state_dict().items()}
    odd = {name: change(value) if name.startswith("update.") else value.clone() for name, value in saved.items()}
    resumed = make(AdamWUpdate(0.05, state=state))
    resumed.load_state_dict(odd, assign=True)
    resumed.weight.requires_grad_()
    resumed.bias.requires_grad_()
    for seed in (2, 3):
        step(loss, seed)
        step(resumed, seed)
    torch.testing.assert_close(resumed.weight, loss.weight, rtol=1e-5, atol=1e-6)
    assert resumed.update.exp_avg.is_contiguous() and not resumed.update.exp_avg.is_neg()


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize(("saved", "own"), [("bfloat16", "float32"), ("float32", "bfloat16")])
def test_a_state_of_another_dtype_is_converted(saved, own, assign):
    first = make(AdamWUpdate(0.05, state=saved))
    step(first)
    second = make(AdamWUpdate(0.05, state=own))
    second.load_state_dict(copy.deepcopy(first.state_dict()), assign=assign)
    second.weight.requires_grad_()
    second.bias.requires_grad_()
    assert second.update.exp_avg.dtype == getattr(torch, own)
    torch.testing.assert_close(second.update.exp_avg.float(), first.update.exp_avg.float(), rtol=1e-2, atol=0)
    step(second, 1)
    step(first, 1)
    torch.testing.assert_close(second.weight, first.weight, rtol=0, atol=0.02)


def replace(name, change):
    def spoil(update):
        update._buffers[name] = change(update._buffers[name])

    return spoil


def overlap(update):
    update.exp_avg_sq = update.exp_avg


@torch.inference_mode()
def in_inference_mode(update):
    update.exp_avg = torch.zeros(C, D)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (replace("exp_avg", scattered), r"expected exp_avg contiguous.*got strides \[32, 2\]"),
        (replace("exp_avg", lambda t: torch.zeros(D, C).t()), r"expected exp_avg contiguous.*got strides \[1, 29\]"),
        (replace("exp_avg", torch._neg_view), "expected exp_avg contiguous and without the negative bit"),
        (replace("exp_avg_sq", lambda t: torch.zeros(1).expand(C, D)), "expected exp_avg_sq contiguous"),
        (replace("exp_avg_sq", lambda t: t.double()), "expected exp_avg_sq as torch.float32 .*got torch.float64"),
        (replace("exp_avg", lambda t: t[:-1]), r"expected exp_avg as .* \[29, 16\] .*got torch.float32 of shape \[28"),
        (replace("bias_exp_avg", lambda t: t.bfloat16()), "expected bias_exp_avg as torch.float32"),
        (
            replace("bias_exp_avg_sq", lambda t: t.to("meta")),
            "bias_exp_avg_sq as .* of the weight, cpu, got .* on meta",
        ),
        (replace("steps", lambda t: t.float()), "expected steps as torch.int64"),
        (replace("exp_avg", lambda t: None), "expected a tensor in exp_avg, got NoneType"),
        (overlap, "exp_avg and exp_avg_sq overlap|exp_avg_sq and exp_avg overlap"),
        (in_inference_mode, r"expected exp_avg made outside torch.inference_mode\(\)"),
    ],
)
def test_a_state_that_is_not_as_it_was_made_is_refused(spoil, message):
    loss = make(AdamWUpdate(0.05))
    step(loss)
    before = loss.weight.detach().clone()
    spoil(loss.update)
    with pytest.raises((TypeError, ValueError), match=message):
        step(loss)
    assert torch.equal(loss.weight, before)


def test_a_state_spoilt_between_forward_and_backward_is_refused():
    loss = make(AdamWUpdate(0.05))
    features, targets = batch()
    value = loss(features, targets)
    loss.update.exp_avg = torch.zeros(D, C).t()
    before = loss.weight.detach().clone()
    with pytest.raises(ValueError, match="expected exp_avg contiguous"):
        value.backward()
    assert torch.equal(loss.weight, before) and loss.update.steps == 0


def test_memory_formats_leave_the_state():
    loss = make(AdamWUpdate(0.05)).to(memory_format=torch.channels_last)
    step(loss)
    assert loss.update.steps == 1


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (lambda: torch.zeros(1, D).expand(C, D), "weight: expected rows of their own memory"),
        (lambda: torch.zeros(C * D).as_strided((C, D), (D // 2, 1)), "weight: expected rows of their own memory"),
        (lambda: torch._neg_view(torch.zeros(C, D)), "weight: expected a tensor without the negative bit"),
    ],
)
def test_weights_that_cannot_be_changed_by_pointer(weight, message):
    with pytest.raises(ValueError, match=message):
        SGDUpdate(1.0).prepare(weight(), None)


def test_allocations_name_their_device():
    with torch.device("meta"):
        update = AdamWUpdate(0.1)
    weight = torch.zeros(C, D)
    with torch.device("meta"):
        update.prepare(weight, None)
    assert {buffer.device.type for buffer in update.buffers()} == {"cpu"}


def test_a_classifier_with_update_loads_one_without():
    trained = make(None)
    loss = make(AdamWUpdate(0.05))
    step(loss)
    loss.load_state_dict(trained.state_dict())
    assert torch.equal(loss.weight, trained.weight) and loss.update.steps == 1
    part = {name: value for name, value in loss.state_dict().items() if name != "update.exp_avg"}
    with pytest.raises(RuntimeError, match=r"Missing key.*update.exp_avg"):
        loss.load_state_dict(part)
    with pytest.raises(RuntimeError, match="Missing key"):
        loss.update.load_state_dict({})


def test_a_classifier_without_update_loads_one_with():
    trained, plain = make(AdamWUpdate(0.05)), make(None)
    step(trained)
    plain.load_state_dict(trained.state_dict())
    assert torch.equal(plain.weight, trained.weight)
    nested = torch.nn.ModuleDict({"head": plain})
    nested.load_state_dict(torch.nn.ModuleDict({"head": trained}).state_dict())
    with pytest.raises(RuntimeError, match=r"Unexpected key.*updates"):
        plain.load_state_dict(trained.state_dict() | {"updates": torch.zeros(1)})


@pytest.mark.parametrize("backward", ["sum", "grad", "shared"])
def test_two_calls_in_one_backward_change_nothing(backward):
    loss = make(AdamWUpdate(0.05))
    before = copy.deepcopy(loss.state_dict())
    features, targets = batch()
    features.requires_grad_()
    one, two = loss(features, targets), loss(features * 2, targets)
    run = {
        "sum": lambda: (one + two).backward(),
        "grad": lambda: torch.autograd.grad(one + two, features),
        "shared": lambda: torch.autograd.backward([one, two]),
    }[backward]
    with pytest.raises(RuntimeError, match=r"expected one call of the classifier for each backward.*got 2"):
        run()
    for name, value in loss.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_a_call_without_backward_does_not_hinder_the_next_step():
    """Losses that are kept, dropped, or cut off by an exception, before a step."""
    loss, plain = make(AdamWUpdate(0.05)), make(AdamWUpdate(0.05))
    features, targets = batch()
    kept = [loss(features, targets) for _ in range(3)]
    loss(features, targets)
    with pytest.raises(RuntimeError, match="on purpose"):
        _fail(loss(features, targets))
    step(loss)
    step(plain)
    assert loss.update.steps == 1 and torch.allclose(loss.weight, plain.weight)
    # The weight has changed since the losses that were kept.
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        kept[0].backward()
    assert loss.update.steps == 1
    step(loss)
    assert loss.update.steps == 2


def _fail(value):
    raise RuntimeError("on purpose")


def test_calls_that_wait_are_not_copied():
    loss = make(AdamWUpdate(0.05))
    features, targets = batch()
    value = loss(features, targets)
    twin = copy.deepcopy(loss)
    value.backward()
    step(twin)
    assert loss.update.steps == twin.update.steps == 1


def test_lr_factor_multiplies_the_learning_rate():
    whole, shared = make(AdamWUpdate(0.05)), make(AdamWUpdate(0.5))
    shared.update.lr_factor = torch.tensor(0.1)
    for loss in (whole, shared):
        step(loss)
    torch.testing.assert_close(shared.weight, whole.weight)
    with pytest.raises(ValueError, match="lr_factor: "):
        shared.update.lr_factor = -1.0
