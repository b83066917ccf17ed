"""The caller's weights of the labels, soft targets and smoothing: what torch and the equations give, and the checks."""

import copy
import gc
import math
import weakref

import numpy as np
import pytest
import torch

from fused_balanced_loss import (
    BalancedLoss,
    DistributionBalancedLoss,
    LabelStatistics,
    LinearBalancedLoss,
    LossSpec,
    SparseTargets,
    balanced_loss,
    linear_balanced_loss,
    weight_arguments,
)

N, C, D = 6, 37, 5
DB = LossSpec.preset("DB", corpus="reuters")


def drawn(seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(N, C, generator=generator) * 3
    targets = torch.rand(N, C, generator=generator) < 0.2
    soft = torch.rand(N, C, generator=generator) * targets
    weight, pos_weight = torch.rand(C, generator=generator) + 0.1, torch.rand(C, generator=generator) * 4
    statistics = LabelStatistics.from_counts(torch.randint(1, 300, (C,), generator=generator), 400)
    return logits, targets, soft, weight, pos_weight, statistics


def value_and_gradient(loss, logits):
    logits = logits.detach().clone().requires_grad_()
    value = loss(logits)
    value.sum().backward()
    return value.detach(), logits.grad


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize(("has_weight", "has_pos_weight"), [(False, False), (False, True), (True, False), (True, True)])
@pytest.mark.parametrize("is_soft", [False, True])
def test_bce_gives_what_torch_gives(is_soft, has_weight, has_pos_weight, reduction):
    logits, targets, soft, weight, pos_weight, _ = drawn()
    given = {"weight": weight if has_weight else None, "pos_weight": pos_weight if has_pos_weight else None}
    targets = soft if is_soft else targets.float()
    ours = value_and_gradient(lambda z: BalancedLoss(LossSpec(), **given, reduction=reduction)(z, targets), logits)
    torchs = value_and_gradient(lambda z: torch.nn.BCEWithLogitsLoss(**given, reduction=reduction)(z, targets), logits)
    for one, other in zip(ours, torchs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("impl", ["auto", "eager", "reference"])
@pytest.mark.parametrize("name", ["BCE", "CB", "DB", "ASL"])
def test_weights_multiply_the_parts_of_each_label(name, impl):
    logits, targets, _, weight, pos_weight, statistics = drawn()
    spec = LossSpec.preset(name, corpus="reuters")
    plain = balanced_loss(logits, targets, spec, statistics, reduction="none", impl=impl)
    given = balanced_loss(
        logits, targets, spec, statistics, weight=weight, pos_weight=pos_weight, reduction="none", impl=impl
    )
    expected = plain * weight * torch.where(targets, pos_weight, 1.0)
    torch.testing.assert_close(given, expected, rtol=1e-5, atol=1e-7)
    numbers = balanced_loss(logits, targets, spec, statistics, weight=2, pos_weight=3.0, reduction="none", impl=impl)
    torch.testing.assert_close(numbers, plain * 2 * torch.where(targets, 3.0, 1.0), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("impl", ["auto", "eager"])
@pytest.mark.parametrize("name", ["BCE", "FL", "CB", "R-FL", "NTR-FL", "DB-0FL", "DB", "ASL"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("poly_epsilon", [0.0, 1.5, -1.0])
@pytest.mark.parametrize("form", ["soft", "uint8", "ids"])
def test_both_parts_are_those_of_the_equations(name, smoothing, poly_epsilon, form, impl):
    logits, targets, soft, weight, pos_weight, statistics = drawn()
    spec = LossSpec.preset(name, corpus="reuters").replace(label_smoothing=smoothing, poly_epsilon=poly_epsilon)
    given = {"soft": soft, "uint8": targets.byte(), "ids": SparseTargets.from_dense(targets)}[form]

    def loss(impl, dtype):
        return value_and_gradient(
            lambda z: balanced_loss(
                z, given, spec, statistics, weight=weight, pos_weight=pos_weight, reduction="none", impl=impl
            ),
            logits.to(dtype),
        )

    for ours, expected in zip(loss(impl, torch.float32), loss("reference", torch.float64), strict=True):
        torch.testing.assert_close(ours.double(), expected, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("impl", ["auto", "eager", "reference"])
def test_a_part_without_share_adds_no_nan_of_its_infinity(impl):
    logits = torch.tensor([[math.inf, -math.inf, math.inf, -math.inf]], requires_grad=True)
    targets = torch.tensor([[1.0, 0.0, 0.5, 0.5]])
    elements = balanced_loss(logits, targets, LossSpec(), reduction="none", impl=impl)
    assert elements.tolist() == [[0.0, 0.0, math.inf, math.inf]]
    elements.sum().backward()
    assert logits.grad.tolist() == [[0.0, 0.0, 0.5, -0.5]]


@pytest.mark.parametrize("form", ["soft", "ids"])
@pytest.mark.parametrize("chunk_size", [None, 8])
def test_the_classifier_takes_them_chunk_by_chunk(chunk_size, form):
    _, targets, soft, class_weight, pos_weight, statistics = drawn()
    given = soft if form == "soft" else SparseTargets.from_dense(targets)
    features, weight = torch.randn(N, D), torch.randn(C, D)
    spec = DB.replace(label_smoothing=0.1, poly_epsilon=0.5)

    def run(loss):
        parts = [part.clone().requires_grad_() for part in (features, weight)]
        value = loss(*parts)
        return value, *torch.autograd.grad(value, parts)

    fused = run(
        lambda x, w: linear_balanced_loss(
            x,
            w,
            None,
            given,
            spec,
            statistics,
            class_weight=class_weight,
            pos_weight=pos_weight,
            chunk_size=chunk_size,
        )
    )
    whole = run(
        lambda x, w: balanced_loss(x @ w.T, given, spec, statistics, weight=class_weight, pos_weight=pos_weight)
    )
    for one, other in zip(fused, whole, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    head = LinearBalancedLoss(spec, statistics, D, class_weight=class_weight, pos_weight=2.0, chunk_size=chunk_size)
    head(features, given).backward()
    assert "class_weight" in head.state_dict() and "pos_weight" not in head.state_dict()


def test_weights_are_buffers():
    logits, targets, _, weight, pos_weight, statistics = drawn()
    module = DistributionBalancedLoss(statistics, mu=0.3, weight=weight, pos_weight=pos_weight)
    before = module(logits, targets)
    weight.zero_()
    assert module(logits, targets) == before, "the module holds a copy"
    assert copy.deepcopy(module)(logits, targets) == before
    other = DistributionBalancedLoss(statistics, mu=0.3, weight=torch.ones(C), pos_weight=torch.ones(C))
    assert other(logits, targets) != before
    other.load_state_dict(module.state_dict())
    assert other(logits, targets) == before
    module.weight.mul_(2)
    torch.testing.assert_close(module(logits, targets), 2 * before)
    assert module.double()(logits.double(), targets).dtype == torch.float64


def test_compiled_calls_take_weights_that_change():
    logits, targets, soft, weight, pos_weight, statistics = drawn()
    module = BalancedLoss(DB.replace(label_smoothing=0.1), statistics, weight=weight, pos_weight=pos_weight)
    compiled = torch.compile(module, fullgraph=True)
    for given in (targets, soft):
        torch.testing.assert_close(compiled(logits, given), module(logits, given))
    with torch.no_grad():
        module.pos_weight.mul_(3)
    torch.testing.assert_close(compiled(logits, targets), module(logits, targets))


NANS, GRADED = torch.full((C,), math.nan), torch.ones(C, requires_grad=True)
BAD = {
    "text": (TypeError, r"^weight: expected a number or a tensor", {"weight": "balanced"}),
    "bool": (TypeError, r"^pos_weight: expected a number or a tensor", {"pos_weight": True}),
    "short": (ValueError, r"^weight: expected shape \[37\], one for .* got \[36\]", {"weight": torch.ones(36)}),
    "matrix": (ValueError, r"^pos_weight: expected shape \[37\]", {"pos_weight": torch.ones(N, C)}),
    "negative": (ValueError, r"^weight: expected finite numbers >= 0, got -1", {"weight": -torch.ones(C)}),
    "nan": (ValueError, r"^pos_weight: expected finite numbers >= 0, got nan", {"pos_weight": NANS}),
    "infinite": (ValueError, r"^pos_weight: expected a finite number >= 0, got inf", {"pos_weight": math.inf}),
    "complex": (TypeError, r"^weight: expected a dense tensor of real", {"weight": torch.ones(C) * 1j}),
    "gradient": (ValueError, r"^weight: expected a tensor without gradient", {"weight": GRADED}),
    "device": (ValueError, r"^weight: expected the device of the logits", {"weight": torch.ones(C, device="meta")}),
}  # fmt: skip


@pytest.mark.parametrize(("error", "message", "given"), BAD.values(), ids=BAD)
def test_bad_weights_are_refused(error, message, given):
    logits, targets, *_, statistics = drawn()
    with pytest.raises(error, match=message):
        balanced_loss(logits, targets, DB, statistics, **given)
    renamed = {"class_weight" if name == "weight" else name: value for name, value in given.items()}
    if "device" in message:
        return
    with pytest.raises(error, match=message.replace("^weight", "^class_weight")):
        linear_balanced_loss(torch.ones(N, D), torch.ones(C, D), None, targets, DB, statistics, **renamed)
    with pytest.raises(error, match=message):
        BalancedLoss(DB, statistics, **given)
    with pytest.raises(error, match=message.replace("^weight", "^class_weight")):
        LinearBalancedLoss(DB, statistics, D, **renamed)


@pytest.mark.parametrize(
    "settings", [{"label_smoothing": 1.1}, {"label_smoothing": -0.1}, {"poly_epsilon": -2}, {"poly_epsilon": "1"}]
)
def test_bad_settings_are_refused(settings):
    (name,) = settings
    with pytest.raises((TypeError, ValueError), match=f"^{name}: expected"):
        LossSpec(**settings)


def test_a_weight_is_converted_once(monkeypatch):
    logits, targets, _, weight, _, statistics = drawn()
    looks = []
    check = weight_arguments.check_weight
    monkeypatch.setattr(
        weight_arguments, "check_weight", lambda *given, **more: (looks.append(given), check(*given, **more))
    )
    first = balanced_loss(logits, targets, DB, statistics, weight=weight)
    assert balanced_loss(logits, targets, DB, statistics, weight=weight) == first and len(looks) == 1
    weight.mul_(2)
    torch.testing.assert_close(balanced_loss(logits, targets, DB, statistics, weight=weight), 2 * first)
    assert len(looks) == 2
    weight[0] = -1
    with pytest.raises(ValueError, match="weight: expected finite numbers"):
        balanced_loss(logits, targets, DB, statistics, weight=weight)


def test_a_change_without_a_version_is_seen():
    logits, targets, *_ = drawn()
    array = np.ones(C, np.float32)
    weight = torch.from_numpy(array)
    first = balanced_loss(logits, targets, LossSpec(), weight=weight)
    array[:] = 2
    torch.testing.assert_close(balanced_loss(logits, targets, LossSpec(), weight=weight), 2 * first)
    module = BalancedLoss(LossSpec(), weight=torch.ones(C))
    assert module(logits, targets) == first
    module.weight.data.fill_(3)
    torch.testing.assert_close(module(logits, targets), 3 * first)


def test_true_is_no_number_also_after_one():
    logits, targets, *_ = drawn()
    balanced_loss(logits, targets, LossSpec(), weight=1.0)
    with pytest.raises(TypeError, match=r"^weight: expected a number"):
        balanced_loss(logits, targets, LossSpec(), weight=True)


def test_a_weight_that_changes_before_the_backward_does_not_change_the_gradient():
    """The constants are made when the loss is computed; they lie in memory of their own."""
    logits, targets, _, weight, pos_weight, _ = drawn()
    logits = logits.double().requires_grad_()

    def gradient(changed):
        weights = {"weight": weight.double(), "pos_weight": pos_weight.double()}
        loss = balanced_loss(logits, targets, LossSpec(), **weights, gradient="backward")
        for each in weights.values():
            each.mul_(changed)
        return torch.autograd.grad(loss, logits)[0]

    assert torch.equal(gradient(1.0), gradient(3.0))


@pytest.mark.parametrize("impl", ["auto", "eager", "reference"])
def test_weights_with_a_negative_bit(impl):
    logits, targets, _, weight, _, _ = drawn()
    logits, weight = logits.double(), weight.double()
    expected = balanced_loss(logits, targets, LossSpec(), weight=weight, pos_weight=weight, impl=impl)
    negative = torch._neg_view(-weight)
    ours = balanced_loss(logits, targets, LossSpec(), weight=negative, pos_weight=negative, impl=impl)
    torch.testing.assert_close(ours, expected)


def test_what_is_kept_goes_with_the_weights():
    logits, targets, _, weight, pos_weight, statistics = drawn()
    module = BalancedLoss(LossSpec(), statistics, weight=weight, pos_weight=pos_weight.tolist())
    module(logits, targets)
    held = [weakref.ref(part) for part in (module.weight, module.pos_weight)]
    number = len(weight_arguments._kept)
    del module
    gc.collect()
    assert [ref() for ref in held] == [None, None] and len(weight_arguments._kept) < number


def test_repr_shows_weights():
    assert "weight=[37], pos_weight=2.0" in repr(BalancedLoss(LossSpec(), weight=torch.ones(C), pos_weight=2))
