"""Classifier and loss in one: equal to F.linear and the loss over logits, however the labels are cut."""

import math

import pytest
import torch
import torch.nn.functional as F
from agreement import assert_same_but_for_rounding
from oracle import elements, plain
from test_losses import FORMS, loss_and_gradient

from fused_balanced_loss import (
    LabelStatistics,
    LinearBalancedLoss,
    LossSpec,
    SGDUpdate,
    SparseTargets,
    balanced_loss,
    linear_balanced_loss,
)
from fused_balanced_loss.backends.constants import label_constants
from fused_balanced_loss.backends.problem import Problem, to_arguments
from fused_balanced_loss.classifier.operator import linear_operator
from fused_balanced_loss.classifier.prediction import predict_topk
from fused_balanced_loss.spec import PAPER_LOSSES

IMPLS = ("eager", "cpp", "triton")
DB = LossSpec.preset("DB", corpus="reuters")


def problem(num_rows=6, num_features=8, num_labels=37, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(num_rows, num_features, generator=generator).to(dtype)
    weight = (torch.randn(num_labels, num_features, generator=generator) * 0.7).to(dtype)
    bias = (torch.randn(num_labels, generator=generator) - 1).to(dtype)
    targets = torch.rand(num_rows, num_labels, generator=generator) < 0.1
    if num_rows > 2:
        targets[2] = False
    counts = torch.randint(0, 501, (num_labels,), generator=generator)
    return (features, weight, bias), targets, LabelStatistics.from_counts(counts, 500, degenerate="ignore")


def loss_and_gradients(classifier, targets, statistics, spec, device="cpu", upstream=1.0, **options):
    leaves = [part.detach().to(device).requires_grad_() for part in classifier]
    loss = linear_balanced_loss(*leaves, targets.to(device), spec, statistics, **options)
    gradients = torch.autograd.grad(loss * upstream, leaves)
    return [loss.detach().cpu(), *(part.cpu() for part in gradients)]


def in_float64(classifier, targets, statistics, spec):
    """The sum of the loss and its gradients, by the equations."""
    features, weight, bias = (part.double() for part in classifier)
    loss, dz = elements(features @ weight.T + bias, targets, statistics.counts, statistics.num_samples, spec)
    return [loss.sum(), dz @ weight, dz.T @ features, dz.sum(0)]


def by_plain_torch(classifier, targets, statistics, spec):
    """F.linear in the dtype of the classifier, then the formula in float32, as autograd multiplies it out."""
    features, weight, bias = classifier
    logits = F.linear(features, weight, bias)
    loss, dz = plain(logits.float(), targets, statistics, spec)
    dz = dz.to(logits.dtype)
    return [loss.sum(), dz @ weight, dz.T @ features, dz.sum(0)]


def assert_as_exact_as_plain(ours, plain_parts, expected, digits):
    for one, other, exact in zip(ours, plain_parts, expected, strict=True):
        scale = exact.norm()
        error, plain_error = (one.double() - exact).norm(), (other.double() - exact).norm()
        assert error <= 2 * plain_error + digits * scale, (float(error / scale), float(plain_error / scale))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", PAPER_LOSSES)
@pytest.mark.parametrize("impl", IMPLS, indirect=True)
def test_error_is_at_most_twice_that_of_linear_and_formula(impl, name, dtype, device):
    classifier, targets, statistics = problem(dtype=dtype)
    spec = LossSpec.preset(name, convention="authors", corpus="reuters")
    expected = in_float64(classifier, targets, statistics, spec)
    plain_parts = by_plain_torch(classifier, targets, statistics, spec)
    for form in ("uint8", "csr"):
        for chunk_size in (16, None):
            ours = loss_and_gradients(
                classifier,
                FORMS[form](targets),
                statistics,
                spec,
                device,
                reduction="sum",
                chunk_size=chunk_size,
                impl=impl,
            )
            assert ours[0].dtype == torch.float32 and all(part.dtype == dtype for part in ours[1:])
            assert_as_exact_as_plain(ours, plain_parts, expected, 4 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", PAPER_LOSSES)
def test_float64_equals_the_equations_for_any_chunk_size(name, form):
    classifier, targets, statistics = problem(dtype=torch.float64)
    spec = LossSpec.preset(name, corpus="reuters")
    expected = in_float64(classifier, targets, statistics, spec)
    for chunk_size in (1, 5, 36, 37, 1000, None):
        for gradient in ("forward", "backward"):
            ours = loss_and_gradients(
                classifier, FORMS[form](targets), statistics, spec, chunk_size=chunk_size, gradient=gradient
            )
            for one, exact in zip(ours, expected, strict=True):
                torch.testing.assert_close(one, exact / targets.numel(), rtol=1e-10, atol=1e-15)


@pytest.mark.parametrize("impl", ["auto", "compile", "reference"])
def test_18211_labels_twice(impl):
    classifier, targets, statistics = problem(4, 24, 18_211)
    sparse = SparseTargets.from_dense(targets)
    expected = in_small_float64(classifier, targets, statistics)
    previous = None
    for chunk_size in (1024, 5000, 18_211):
        ours = loss_and_gradients(classifier, sparse, statistics, DB, chunk_size=chunk_size, impl=impl)
        again = loss_and_gradients(classifier, sparse, statistics, DB, chunk_size=chunk_size, impl=impl)
        # The chunks' logits may lie elsewhere the second time, and a product take another path.
        assert_same_but_for_rounding(ours, again)
        for one, exact in zip(ours, expected, strict=True):
            # The compiled sum of a chunk is made in float32, in an order of its own.
            assert (one.double() - exact).norm() <= 16 * torch.finfo(torch.float32).eps * exact.norm()
        if previous is not None:
            for one, other in zip(ours, previous, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6 * float(other.abs().max()))
        previous = ours


def in_small_float64(classifier, targets, statistics):
    """As ``in_float64``, vectorised."""
    leaves = [part.double().requires_grad_() for part in classifier]
    loss = linear_balanced_loss(*leaves, targets, DB, statistics, impl="reference")
    return [loss.detach(), *torch.autograd.grad(loss, leaves)]


EXTRAS = {
    "asl": LossSpec.preset("ASL"),
    "any gamma": LossSpec(gamma=1.5, gamma_negative=0.5),
    "pooled": LossSpec(gamma=2.0, weighting="class_balanced", pooling="mean_count"),
    "rarest": LossSpec(weighting="inverse_frequency", pooling="rarest"),
    "db": DB,
}


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("masked", [None, "labels", "elements"])
@pytest.mark.parametrize("name", EXTRAS)
@pytest.mark.parametrize("impl", IMPLS, indirect=True)
def test_weights_and_masks_equal_those_over_logits(impl, name, masked, reduction, device):
    classifier, targets, statistics = problem()
    options = {"sample_weight": torch.rand(6).to(device), "reduction": reduction}
    if masked:
        options["label_mask"] = (torch.rand(37 if masked == "labels" else (6, 37)) < 0.7).to(device)
    features, weight, bias = classifier
    logits = F.linear(features, weight, bias)
    loss, dz = loss_and_gradient(logits, targets, statistics, EXTRAS[name], device, impl="reference", **options)
    for form in (targets, SparseTargets.from_dense(targets)):
        ours = loss_and_gradients(
            classifier, form, statistics, EXTRAS[name], device, chunk_size=16, impl=impl, **options
        )
        for one, other in zip(ours, (loss, dz @ weight, dz.T @ features, dz.sum(0)), strict=True):
            torch.testing.assert_close(one, other, rtol=2e-4, atol=2e-6 * float(other.abs().max()))


@pytest.mark.parametrize("wanted", range(1, 8))
def test_gradients_of_any_subset(wanted):
    classifier, targets, statistics = problem()
    full = loss_and_gradients(classifier, targets, statistics, DB, chunk_size=16)
    leaves = [part.requires_grad_(bool(wanted >> k & 1)) for k, part in enumerate(classifier)]
    linear_balanced_loss(*leaves, targets, DB, statistics, chunk_size=16).backward()
    for leaf, gradient in zip(leaves, full[1:], strict=True):
        if leaf.requires_grad:
            assert_same_but_for_rounding(leaf.grad, gradient)
        else:
            assert leaf.grad is None


def test_no_bias_no_gradient_and_many_dimensions():
    (features, weight, _), targets, statistics = problem()
    expected = F.linear(features, weight)
    loss, _ = loss_and_gradient(expected, targets, statistics, DB, torch.device("cpu"), impl="reference")
    ours = linear_balanced_loss(features, weight, None, targets, DB, statistics, chunk_size=8)
    torch.testing.assert_close(ours, loss)
    assert not ours.requires_grad
    ours = linear_balanced_loss(
        features.view(2, 3, 8).requires_grad_(), weight, None, targets.view(2, 3, 37), DB, statistics
    )
    torch.testing.assert_close(ours.detach(), loss)


@pytest.mark.parametrize("gradient", ["forward", "backward"])
def test_second_backward_and_accumulation(gradient):
    classifier, targets, statistics = problem()
    once = loss_and_gradients(classifier, targets, statistics, DB)
    leaves = [part.requires_grad_() for part in classifier]
    loss = linear_balanced_loss(*leaves, targets, DB, statistics, gradient=gradient)
    loss.backward(retain_graph=True)
    loss.backward(torch.tensor(2.0))
    for leaf, gradient_once in zip(leaves, once[1:], strict=True):
        torch.testing.assert_close(leaf.grad, 3 * gradient_once, rtol=1e-5, atol=1e-8)
    loss = linear_balanced_loss(*leaves, targets, DB, statistics, gradient=gradient)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(loss, leaves, create_graph=True)


def test_checkpointed_encoder_and_autocast():
    (features, weight, bias), targets, statistics = problem()
    encoder = torch.nn.Linear(8, 8)
    for checkpointed in (False, True):
        encoder.zero_grad()
        hidden = (
            torch.utils.checkpoint.checkpoint(encoder, features, use_reentrant=False)
            if checkpointed
            else encoder(features)
        )
        linear_balanced_loss(hidden, weight, bias, targets, DB, statistics, chunk_size=16).backward()
        if not checkpointed:
            expected = encoder.weight.grad.clone()
    assert_same_but_for_rounding(encoder.weight.grad, expected)
    w = weight.clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = encoder(features)
        loss = linear_balanced_loss(hidden, w, bias, targets, DB, statistics, chunk_size=16)
    loss.backward()
    assert hidden.dtype == torch.bfloat16 and w.grad.dtype == torch.float32
    low = loss_and_gradients((hidden.detach(), weight.bfloat16(), bias.bfloat16()), targets, statistics, DB)
    torch.testing.assert_close(w.grad, low[2].float(), rtol=2e-2, atol=1e-2 * float(low[2].abs().max()))


@pytest.mark.parametrize("gradient", ["forward", "backward"])
def test_a_second_backward_notices_changed_targets(gradient):
    classifier, targets, statistics = problem(4, 8, 50)
    weight = classifier[1].clone().requires_grad_()
    loss = linear_balanced_loss(classifier[0], weight, classifier[2], targets, DB, statistics, gradient=gradient)
    torch.autograd.grad(loss, weight, retain_graph=True)
    targets.fill_(True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(loss, weight)


def test_float16_autocast_leaves_room_for_sums_over_the_batch():
    features, targets = torch.rand(4096, 8) * 40, torch.zeros(4096, 64, dtype=torch.bool)
    weight = torch.zeros(64, 8, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.float16):
        loss = linear_balanced_loss(features, weight, None, targets, LossSpec.preset("BCE"), None)
    loss.backward()
    expected = features.half().float().mean(0) * 0.5 / 64
    torch.testing.assert_close(weight.grad, expected.expand(64, 8), rtol=1e-3, atol=0)


@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
def test_float16_gradients_of_a_mean_do_not_flush_to_zero(autocast):
    """Of an unscaled mean over 32 x 18,211 most element gradients are below float16's range; their sums need not be."""
    classifier, targets, statistics = problem(32, 16, 18_211, torch.float16)
    expected = in_small_float64(classifier, targets, statistics)
    with torch.autocast("cpu", autocast, enabled=autocast is not None):
        ours = loss_and_gradients(classifier, SparseTargets.from_dense(targets), statistics, DB, upstream=65536.0)
    tolerance = 5e-3 if autocast is None else 2e-2
    for one, exact in zip(ours[1:], expected[1:], strict=True):
        assert (one.double() / 65536 - exact).norm() <= tolerance * exact.norm()
        assert ((one == 0) & (exact.abs() > 1e-12)).float().mean() < 1e-3


@pytest.mark.parametrize("form", ["uint8", "csr"])
def test_full_graph_equals_eager(form):
    (features, weight, _), targets, statistics = problem()
    given = FORMS[form](targets)
    layer = torch.nn.Linear(8, 8)
    module = LinearBalancedLoss(DB, statistics, 8, chunk_size=16)
    with torch.no_grad():
        module.weight.copy_(weight)

    def run(x):
        return module(layer(x), given)

    results = []
    for call in (run, torch.compile(run, fullgraph=True, backend="aot_eager")):
        layer.zero_grad()
        module.zero_grad()
        loss = call(features)
        loss.backward()
        results.append([loss.detach(), layer.weight.grad.clone(), module.weight.grad.clone(), module.bias.grad.clone()])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-8)


def test_operator_registrations():
    (features, weight, bias), targets, statistics = problem()
    labels = label_constants(statistics, DB, torch.float32, features.device)
    one = Problem(features.requires_grad_(), targets, DB, labels)
    rest = ("mean", "auto", 16, 0, 37, 37, torch.float32, [True, True, True])
    torch.library.opcheck(linear_operator, (*to_arguments(one), weight.requires_grad_(), bias.requires_grad_(), *rest))


def test_empty_batch():
    (features, weight, bias), targets, statistics = problem()
    weight[0, 0] = torch.inf
    leaves = [part.requires_grad_() for part in (features[:0], weight, bias)]
    loss = linear_balanced_loss(*leaves, targets[:0], DB, statistics, reduction="sum")
    loss.backward()
    assert loss == 0 and all(leaf.grad.shape == leaf.shape and not leaf.grad.any() for leaf in leaves)
    module = LinearBalancedLoss(DB, statistics, 8, reduction="sum", update=SGDUpdate(lr=0.1))
    module(features[:0].detach(), targets[:0]).backward()
    assert module.weight.grad is None
    x = features[:0]
    with pytest.raises(ValueError, match="features: expected at least one sample"):
        linear_balanced_loss(x, weight, bias, targets[:0], DB, statistics)


BAD = {
    "chunk_size: expected at least 1": {"chunk_size": 0},
    "chunk_size: expected an integer": {"chunk_size": 2.0},
    "reduction: expected 'mean', 'batchmean' or 'sum'": {"reduction": "none"},
    "gradient: expected one of": {"gradient": "in_place"},
    "impl: expected one of": {"impl": "cuda"},
    "bias: expected \\[37\\]": {"bias": torch.zeros(36)},
    "features: expected \\[..., 9\\]": {"weight": torch.zeros(37, 9)},
    "weight: expected 37 rows": {"weight": torch.zeros(36, 8), "bias": None},
    "weight: expected the dtype": {"weight": torch.zeros(37, 8, dtype=torch.float64)},
    "features: expected \\[..., D\\]": {"features": torch.zeros(8)},
    "features: expected float16": {"features": torch.zeros(6, 8, dtype=torch.int64)},
    "weight: expected a tensor": {"weight": None},
    "targets: expected shape": {"targets": torch.zeros(6, 36)},
    "targets: expected a number in": {"targets": torch.full((6, 37), 1.5)},
    "sample_weight: expected shape": {"sample_weight": torch.zeros(5)},
    "label_mask: expected a dense bool": {"label_mask": torch.zeros(37)},
    "weight: expected the device": {"weight": torch.zeros(37, 8, device="meta")},
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input(message):
    (features, weight, bias), targets, statistics = problem()
    arguments = {"features": features, "weight": weight, "bias": bias, "targets": targets} | BAD[message]
    with pytest.raises((TypeError, ValueError), match=message):
        linear_balanced_loss(statistics=statistics, spec=DB, **arguments)


def test_update_is_checked_before_the_forward():
    (features, weight, bias), targets, statistics = problem()
    update = SGDUpdate(lr=0.1)
    with pytest.raises(RuntimeError, match="update: expected prepare"):
        linear_balanced_loss(features, weight, bias, targets, DB, statistics, update=update)
    update.prepare(weight, bias)
    with pytest.raises(ValueError, match="update: expected None with impl 'reference'"):
        linear_balanced_loss(features, weight, bias, targets, DB, statistics, update=update, impl="reference")


def test_backward_notices_targets_changed_since_the_forward():
    (features, weight, bias), targets, statistics = problem()
    loss = linear_balanced_loss(features, weight.requires_grad_(), bias, targets, DB, statistics, gradient="backward")
    targets.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    module = LinearBalancedLoss(DB, statistics, 8, update=SGDUpdate(lr=0.1))
    loss = module(features, targets)
    targets.fill_(True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_update_leaves_a_frozen_classifier_alone():
    (features, _, _), targets, statistics = problem()
    module = LinearBalancedLoss(DB, statistics, 8, update=SGDUpdate(lr=10.0))
    before = module.weight.detach().clone()
    module.requires_grad_(False)
    features.requires_grad_()
    module(features, targets).backward()
    assert torch.equal(module.weight, before) and features.grad.any() and module.update.steps == 0
    module.weight.requires_grad_()
    with pytest.raises(ValueError, match="bias: expected to require grad where the weight does"):
        module(features, targets)


def test_update_needs_parameters():
    (features, _, _), targets, statistics = problem()
    module = LinearBalancedLoss(DB, statistics, 8, update=SGDUpdate(lr=0.1))
    torch.nn.utils.parametrizations.weight_norm(module)
    with pytest.raises(ValueError, match="weight: expected a parameter for update"):
        module(features, targets)


def test_module_shares_a_linear_layer_and_carries_its_statistics():
    classifier, targets, statistics = problem()
    linear = torch.nn.Linear(8, 37)
    module = LinearBalancedLoss.from_linear(linear, DB, statistics)
    assert module.weight is linear.weight and module.bias is linear.bias
    expected = linear_balanced_loss(classifier[0], linear.weight, linear.bias, targets, DB, statistics)
    assert_same_but_for_rounding(module(classifier[0], targets), expected)
    assert_same_but_for_rounding(module.logits(classifier[0]), linear(classifier[0]))
    other = LinearBalancedLoss(DB, LabelStatistics.from_counts(torch.ones(37, dtype=torch.int64), 100), 8)
    other.load_state_dict(module.state_dict())
    assert_same_but_for_rounding(other(classifier[0], targets), expected)
    with pytest.raises(ValueError, match="linear: expected 37 outputs"):
        LinearBalancedLoss.from_linear(torch.nn.Linear(8, 36), DB, statistics)
    with pytest.raises(ValueError, match="num_labels"):
        LinearBalancedLoss(LossSpec(), None, 8)


@pytest.mark.parametrize("num_labels", [129, 300])
@pytest.mark.parametrize("chunk_size", [None, 131])
@pytest.mark.parametrize(("dtype", "update"), [(torch.bfloat16, False), (torch.bfloat16, True), (torch.float16, False)])
def test_what_lies_between_rows_is_no_part_of_a_product(dtype, update, chunk_size, num_labels):
    """Some products of half precision read the number behind a row of odd width, and multiply it by 0; NaN shows it."""
    generator = torch.Generator().manual_seed(0)
    apart = [torch.full((rows, 40), math.nan, dtype=dtype) for rows in (65, num_labels)]
    tensors = [one[:, :33].copy_(torch.randn(len(one), 33, generator=generator) / 4) for one in apart]
    targets = torch.rand(65, num_labels, generator=generator) < 0.05
    results = []
    for features, weight in (tensors, [one.clone(memory_format=torch.contiguous_format) for one in tensors]):
        features.requires_grad_(), weight.requires_grad_()
        options = {}
        if update and weight.is_contiguous():
            options["update"] = SGDUpdate(lr=0.01)
            options["update"].prepare(weight, None)
        loss = linear_balanced_loss(features, weight, None, targets, LossSpec(), chunk_size=chunk_size, **options)
        loss.backward()
        results.append((loss.detach(), features.grad))
        assert predict_topk(features.detach(), weight.detach(), None, 3).logits.isfinite().all()
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-6)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_batchmean_is_that_of_the_loss_over_logits(masked, compiled):
    (features, weight, bias), targets, statistics = problem()
    mask = torch.arange(targets.shape[1]) % 3 > 0 if masked else None
    options = {"reduction": "batchmean", "label_mask": mask}
    run = torch.compile(linear_balanced_loss, fullgraph=True) if compiled else linear_balanced_loss
    inputs = [part.detach().clone().requires_grad_() for part in (features, weight, bias)]
    loss = run(*inputs, targets, DB, statistics, chunk_size=10, **options)
    expected = balanced_loss(F.linear(*inputs), targets, DB, statistics, **options)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    for one, other in zip(torch.autograd.grad(loss, inputs), torch.autograd.grad(expected, inputs), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
