"""Shapes, layouts, extremes and autograd behaviour, by every implementation."""

import math

import pytest
import torch
from agreement import assert_same_but_for_rounding
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oracle import elements
from test_losses import FORMS, IMPLS, KERNELS, loss_and_gradient, problem

from fused_balanced_loss import LabelStatistics, LossSpec, SparseTargets, balanced_loss, linear_balanced_loss
from fused_balanced_loss.spec import PAPER_LOSSES

DB = LossSpec.preset("DB", corpus="reuters")


@pytest.mark.parametrize("impl", IMPLS, indirect=True)
@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (5, 1), (3, 90), (2, 127), (2, 128), (1, 129), (3, 255), (9, 257)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_shapes(dtype, shape, impl, device):
    logits, targets, statistics = problem(*shape, dtype=dtype)
    targets[0, 0] = targets[-1, -1] = True
    expected, gradient = elements(logits, targets, statistics.counts, statistics.num_samples, DB)
    digits = {torch.float64: 1e-11, torch.float32: 2e-5, torch.bfloat16: 1e-2}[dtype]
    for form in (targets, SparseTargets.from_dense(targets)):
        loss, ours = loss_and_gradient(logits, form, statistics, DB, device, impl=impl, reduction="sum")
        torch.testing.assert_close(loss.double(), expected.sum(), rtol=min(digits, 1e-5), atol=1e-6)
        torch.testing.assert_close(ours.double(), gradient, rtol=digits, atol=digits * 1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_wide_rows_of_odd_width(dtype, device):
    """C = 18,211: rows begin at every offset to 16 bytes, tiles and fringe meet."""
    logits, targets, statistics = problem(2, 18_211, dtype=dtype, num_samples=10_000)
    # As few labels as real rows have: Triton's interpreter takes long for each.
    targets &= torch.rand(targets.shape) < 0.005
    targets[:, 0] = targets[:, -1] = targets[1, 1023:1026] = True
    expected = loss_and_gradient(logits.double(), targets, statistics, DB, device, impl="reference", reduction="sum")
    digits = 2e-5 if dtype == torch.float32 else 1e-2
    for form in (targets.float(), SparseTargets.from_dense(targets)):
        loss, gradient = loss_and_gradient(logits, form, statistics, DB, device, impl="triton", reduction="sum")
        torch.testing.assert_close(loss.double(), expected[0], rtol=1e-5, atol=0)
        torch.testing.assert_close(gradient.double(), expected[1], rtol=digits, atol=1e-5)


@pytest.mark.parametrize("impl", IMPLS, indirect=True)
@pytest.mark.parametrize("name", [*PAPER_LOSSES, "ASL"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_extreme_logits(dtype, name, impl, device):
    values = [math.inf, -math.inf, 1e4, -1e4, 100.0, -100.0, 40.0, -40.0]
    logits = torch.tensor([values, values], dtype=dtype)
    targets = torch.stack([torch.ones(8), torch.zeros(8)]).bool()
    statistics = LabelStatistics.from_counts([10] * 8, 100)
    spec = LossSpec.preset(name, corpus="reuters")
    loss, gradient = loss_and_gradient(logits, targets, statistics, spec, device, reduction="none", impl=impl)
    assert not torch.isnan(loss).any()
    assert torch.isfinite(gradient).all()
    assert loss[0, 0] == loss[1, 1] == gradient[0, 0] == gradient[1, 1] == 0
    assert loss[0, 1] == math.inf
    if name != "ASL":  # whose margin bounds the loss of a wrong negative
        assert loss[1, 0] == math.inf
    expected, expected_gradient = elements(logits, targets, [10] * 8, 100, spec)
    torch.testing.assert_close(loss[:, 2:].double(), expected[:, 2:], rtol=2e-3, atol=1e-6)
    torch.testing.assert_close(gradient.double(), expected_gradient, rtol=2e-3, atol=1e-6)
    fewer = LabelStatistics.from_counts([10] * 6, 100)
    total, _ = loss_and_gradient(logits[:, 2:], targets[:, 2:], fewer, spec, device, impl=impl)
    assert torch.isfinite(total)


@pytest.mark.parametrize("impl", IMPLS, indirect=True)
def test_small_gamma_has_a_finite_gradient_at_saturation(impl, device):
    spec = LossSpec(gamma=0.5)
    logits = torch.tensor([[200.0, -200.0, 30.0, math.inf]])
    targets = torch.tensor([[1, 0, 1, 1]]).bool()
    loss, gradient = loss_and_gradient(logits, targets, None, spec, device, impl=impl, reduction="sum")
    assert torch.isfinite(loss)
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("impl", IMPLS, indirect=True)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_nan_logit_shows(reduction, impl, device):
    logits, targets, statistics = problem()
    logits[1, 3] = math.nan
    loss, gradient = loss_and_gradient(logits, targets, statistics, DB, device, impl=impl, reduction=reduction)
    assert torch.isnan(loss).any()
    assert torch.isnan(gradient[1, 3])
    assert torch.isfinite(gradient[0]).all()


@pytest.mark.parametrize("impl", IMPLS, indirect=True)
def test_row_without_labels_is_weighed_alpha_plus_one(impl, device):
    logits, targets, statistics = problem(2, 9, torch.float64)
    targets[0] = False
    spec = LossSpec(weighting="rebalanced", mu=0.9)
    loss, _ = loss_and_gradient(logits, targets, statistics, spec, device, reduction="none", impl=impl)
    torch.testing.assert_close(loss[0], 1.1 * torch.nn.functional.softplus(logits[0]), rtol=1e-12, atol=0)


@pytest.mark.parametrize("impl", IMPLS, indirect=True)
def test_strided_offset_and_many_dimensional_logits(impl, device):
    logits, targets, statistics = problem(6, 37, torch.float64)
    expected, gradient = loss_and_gradient(logits, targets, statistics, DB, device, impl="reference")
    padded = torch.zeros(6, 64, dtype=torch.float64)
    padded[:, 3:40] = logits
    views = {
        "offset and row stride": padded.to(device)[:, 3:40],
        "columns apart": logits.t().contiguous().to(device).t(),
        "every other": torch.stack([logits, logits], 2).to(device)[:, :, 0],
    }
    for view in views.values():
        for form in (targets, SparseTargets.from_dense(targets), targets.t().contiguous().t()):
            z = view.detach().requires_grad_()
            loss = balanced_loss(z, form.to(device), DB, statistics, impl=impl)
            (ours,) = torch.autograd.grad(loss, z)
            torch.testing.assert_close(loss.detach().cpu(), expected, rtol=1e-12, atol=0)
            torch.testing.assert_close(ours.cpu(), gradient, rtol=1e-11, atol=1e-17)
    z = logits.view(2, 3, 37).to(device).requires_grad_()
    loss = balanced_loss(z, targets.view(2, 3, 37).to(device), DB, statistics, impl=impl)
    (ours,) = torch.autograd.grad(loss, z)
    torch.testing.assert_close(ours.cpu(), gradient.view(2, 3, 37), rtol=1e-11, atol=1e-17)


@pytest.mark.parametrize("impl", KERNELS, indirect=True)
@pytest.mark.parametrize("mode", ["forward", "backward", "in_place"])
def test_upstream_gradient_and_second_backward(mode, impl, device):
    logits, targets, statistics = problem(4, 11, torch.float64)
    _, gradient = loss_and_gradient(logits, targets, statistics, DB, device, impl="reference")
    z = logits.to(device).requires_grad_()
    loss = balanced_loss(z * 1, targets.to(device), DB, statistics, impl=impl, gradient=mode)
    (first,) = torch.autograd.grad(loss, z, torch.tensor(-3.0, dtype=torch.float64, device=device), retain_graph=True)
    torch.testing.assert_close(first.cpu(), -3 * gradient, rtol=1e-11, atol=1e-17)
    if mode == "in_place":
        with pytest.raises(RuntimeError, match="overwritten the logits"):
            torch.autograd.grad(loss, z)
        return
    (second,) = torch.autograd.grad(loss, z, torch.tensor(0.5, dtype=torch.float64, device=device), retain_graph=True)
    torch.testing.assert_close(second.cpu(), 0.5 * gradient, rtol=1e-11, atol=1e-17)
    torch.testing.assert_close(first.cpu(), -3 * gradient, rtol=1e-11, atol=1e-17)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(loss, z, create_graph=True)


@pytest.mark.parametrize("impl", IMPLS, indirect=True)
def test_inputs_stay_and_bits_repeat(impl, device):
    logits, targets, statistics = problem(7, 300, torch.float32)
    for form in (targets.byte(), SparseTargets.from_dense(targets)):
        form, z = form.to(device), logits.to(device)
        kept = (z.clone(), form.to("cpu"))
        weight = torch.rand(7, device=device)
        results = []
        for _ in range(2):
            leaf = z.requires_grad_()
            loss = balanced_loss(leaf, form, DB, statistics, sample_weight=weight, impl=impl)
            results.append((loss.detach(), torch.autograd.grad(loss, leaf)[0]))
        assert torch.equal(results[0][0], results[1][0])
        assert torch.equal(results[0][1], results[1][1])
        assert torch.equal(z.detach(), kept[0])
        same = form.to("cpu") == kept[1]
        assert same if isinstance(same, bool) else bool(same.all())


@pytest.mark.parametrize("impl", KERNELS, indirect=True)
def test_in_place_writes_over_the_logits_and_autograd_notices(impl, device):
    logits, targets, statistics = problem(4, 300)
    _, gradient = loss_and_gradient(logits, targets, statistics, DB, device, impl=impl)
    leaf = logits.to(device).requires_grad_()
    z = leaf * 1
    storage = z.data_ptr()
    loss = balanced_loss(z, targets.to(device), DB, statistics, impl=impl, gradient="in_place")
    assert z.data_ptr() == storage
    torch.testing.assert_close(z.detach().cpu(), gradient)
    loss.backward()
    torch.testing.assert_close(leaf.grad.cpu(), gradient)
    leaf = logits.to(device).requires_grad_()
    z = leaf.exp()  # saves its result
    loss = balanced_loss(z, targets.to(device), DB, statistics, impl=impl, gradient="in_place")
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("impl", KERNELS, indirect=True)
@pytest.mark.parametrize("which", ["targets", "label ids", "sample_weight", "label_mask"])
def test_a_backward_notices_what_was_changed_since_the_forward(which, impl, device):
    logits, dense, statistics = problem(4, 300)
    targets = SparseTargets.from_dense(dense) if which == "label ids" else dense.float()
    options = {"sample_weight": torch.rand(4), "label_mask": torch.rand(4, 300) < 0.5}
    options = {name: value.to(device) for name, value in options.items() if name == which}
    targets = targets.to(device)
    z = logits.to(device).requires_grad_()
    loss = balanced_loss(z, targets, DB, statistics, impl=impl, gradient="backward", **options)
    changed = targets.col if which == "label ids" else options.get(which, targets)
    changed.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("impl", IMPLS, indirect=True)
def test_forward_mode_differentiation_raises(impl, device):
    logits, targets, statistics = problem(4, 300)
    features, weight = torch.randn(4, 8, device=device), torch.randn(300, 8, device=device)
    targets = targets.to(device)
    with torch.autograd.forward_ad.dual_level():
        z, x = (torch.autograd.forward_ad.make_dual(part, part) for part in (logits.to(device), features))
        for differentiated in (
            lambda: balanced_loss(z, targets, DB, statistics, impl=impl),
            lambda: linear_balanced_loss(x, weight, None, targets, DB, statistics, impl=impl),
        ):
            with pytest.raises(NotImplementedError, match="jvp"):
                differentiated()
            # Without gradients the tangent would be dropped silently.
            with torch.no_grad(), pytest.raises(NotImplementedError, match="jvp"):
                differentiated()


@pytest.mark.parametrize("gradient", ["forward", "backward"])
def test_targets_made_in_inference_mode(gradient, device):
    logits, dense, statistics = problem(4, 300)
    with torch.inference_mode():
        targets = dense.to(device).float()
    z = logits.to(device).requires_grad_()
    balanced_loss(z, targets, DB, statistics, gradient=gradient).backward()
    assert z.grad.any()


@pytest.mark.parametrize("impl", IMPLS, indirect=True)
def test_float16_gradient_of_a_mean_survives_a_grad_scaler(impl, device):
    logits, targets, statistics = problem(8, 300, torch.float16)
    z = logits.to(device).requires_grad_()
    scale = 2.0**16
    loss = balanced_loss(z, targets.to(device), DB, statistics, impl=impl)
    (ours,) = torch.autograd.grad(loss, z, torch.tensor(scale, device=device))
    _, expected = loss_and_gradient(logits.double(), targets, statistics, DB, device, impl="reference")
    torch.testing.assert_close(ours.double().cpu(), expected * scale, rtol=2e-3, atol=1e-6)


@pytest.mark.parametrize("impl", ["auto", "triton"])
def test_targets_on_a_gpu_outside_0_to_1_give_nan(impl, device):
    """The CPU raises instead; the value is the same under the interpreter, where the host looks."""
    logits, targets, statistics = problem(3, 40)
    bad = targets.float()
    bad[1, 1] = 1.5
    if device.type == "cpu":
        with pytest.raises(ValueError, match=r"targets: expected a number in \[0, 1\], got 1\.5"):
            balanced_loss(logits, bad, DB, statistics, impl=impl)
    else:
        assert torch.isnan(balanced_loss(logits.to(device), bad.to(device), DB, statistics, impl=impl))


SETTINGS = st.builds(
    LossSpec,
    gamma=st.sampled_from([0.0, 0.5, 1.0, 2.0, 4.0]),
    gamma_negative=st.sampled_from([None, 0.0, 2.0, 3.5]),
    probability_margin=st.sampled_from([0.0, 0.05]),
    weighting=st.sampled_from(["none", "rebalanced", "class_balanced"]),
    kappa=st.sampled_from([0.0, 0.05, -0.2]),
    lam=st.sampled_from([0.5, 1.0, 2.0]),
    mu=st.sampled_from([0.05, 0.9]),
    positive_factor=st.sampled_from([1.0, 0.5]),
)


@pytest.mark.slow
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    spec=SETTINGS,
    num_rows=st.integers(1, 5),
    num_labels=st.integers(1, 40),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
    seed=st.integers(0, 1000),
    impl=st.sampled_from(["auto", "triton"]),
    form=st.sampled_from(["bool", "uint8", "csr"]),
    gradient=st.sampled_from(["forward", "backward", "in_place"]),
)
def test_any_problem_equals_the_reference(spec, num_rows, num_labels, dtype, seed, impl, form, gradient):
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    logits, targets, statistics = problem(num_rows, num_labels, dtype, seed=seed)
    expected = loss_and_gradient(logits.double(), targets, statistics, spec, device, impl="reference")
    given_form = {"bool": targets, "uint8": targets.byte(), "csr": SparseTargets.from_dense(targets)}[form]
    z = logits.to(device).requires_grad_()
    loss = balanced_loss(z * 1, given_form.to(device), spec, statistics, impl=impl, gradient=gradient)
    (ours,) = torch.autograd.grad(loss, z)
    digits = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 1e-2, torch.float16: 4e-3}[dtype]
    torch.testing.assert_close(loss.detach().double().cpu(), expected[0], rtol=min(digits, 1e-4), atol=1e-7)
    largest = expected[1].abs().max().item()
    torch.testing.assert_close(ours.double().cpu(), expected[1], rtol=digits, atol=digits * 0.1 * largest + 6e-8)


@pytest.mark.parametrize("impl", IMPLS, indirect=True)
@pytest.mark.parametrize("odd", [math.nan, math.inf])
def test_a_masked_element_may_be_anything(odd, impl, device):
    logits, targets, statistics = problem(3, 60)
    mask = torch.ones(3, 60, dtype=torch.bool)
    mask[1] = False
    expected = loss_and_gradient(logits, targets, statistics, DB, device, impl=impl, label_mask=mask.to(device))
    logits = logits.detach().clone()
    logits[1, ::3] = odd
    ours = loss_and_gradient(logits, targets, statistics, DB, device, impl=impl, label_mask=mask.to(device))
    assert_same_but_for_rounding(ours, expected)


@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", ["NTR-FL", "DB", "ASL"])
def test_the_default_dtype_does_not_matter(name, default):
    logits, targets, statistics = problem(3, 60)
    spec, cpu = LossSpec.preset(name, corpus="reuters"), torch.device("cpu")
    expected = loss_and_gradient(logits, targets, statistics, spec, cpu)
    torch.set_default_dtype(default)
    try:
        ours = loss_and_gradient(logits, targets, statistics, spec, cpu)
    finally:
        torch.set_default_dtype(torch.float32)
    assert ours[0].dtype == torch.float32
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-9)


BAD_IDS = {
    "too large": ([0, 2, 3], [1, 300, 5]),
    "far too large": ([0, 2, 3], [1, 10**9, 5]),
    "negative": ([0, 2, 3], [-1, 7, 5]),
    "far too negative": ([0, 2, 3], [-(2**40), 7, 5]),
    "repeated": ([0, 2, 3], [7, 7, 5]),
    "out of order": ([0, 2, 3], [7, 1, 5]),
    "offsets beyond the ids": ([0, 2, 10**6], [1, 7, 5]),
    "negative offsets": ([-3, 2, 3], [1, 7, 5]),
    "falling offsets": ([0, 3, 1], [1, 5, 7]),
}


@pytest.mark.parametrize("impl", KERNELS, indirect=True)
@pytest.mark.parametrize("name", list(BAD_IDS))
@pytest.mark.parametrize("weighting", ["DB", "FL"])
def test_ids_that_nobody_checked_raise_and_read_no_other_memory(weighting, name, impl, device):
    logits, _, statistics = problem(2, 300)
    crow, col = (torch.tensor(part, device=device) for part in BAD_IDS[name])
    targets = SparseTargets(crow, col, 300, check=False)
    spec = LossSpec.preset(weighting, corpus="reuters")
    if impl == "triton" and weighting == "FL":
        # Nothing of the row is NaN without a rebalanced weight, and so nobody looks.
        balanced_loss(logits.to(device), targets, spec, statistics, impl=impl)
    elif device.type == "cpu":
        with pytest.raises(ValueError, match=r"crow: expected|targets: expected"):
            balanced_loss(logits, targets, spec, statistics, impl=impl)
    elif impl == "triton":
        assert balanced_loss(logits.to(device), targets, spec, statistics, impl=impl).isnan()
    if device.type == "cpu":
        with pytest.raises(ValueError, match=r"crow: expected|targets: expected"):
            linear_balanced_loss(torch.randn(2, 4), torch.randn(300, 4), None, targets, spec, statistics, impl=impl)


@pytest.mark.parametrize("name", BAD_IDS)
@pytest.mark.parametrize("pooling", ["mean_count", "rarest"])
def test_ids_that_nobody_checked_are_not_pooled(pooling, name):
    logits, _, statistics = problem(2, 300)
    targets = SparseTargets(*map(torch.tensor, BAD_IDS[name]), 300, check=False)
    spec = LossSpec(weighting="class_balanced", pooling=pooling)
    with pytest.raises(ValueError, match=r"crow: expected|targets: expected"):
        balanced_loss(logits, targets, spec, statistics)


@pytest.mark.parametrize("impl", IMPLS, indirect=True)
@pytest.mark.parametrize("reduction", ["none", "sum"])
@pytest.mark.parametrize("how", ["forward", "backward"])
def test_an_upstream_gradient_with_the_negative_bit(how, reduction, impl, device):
    """Its memory holds the opposite numbers, which a kernel that reads by pointer would take."""
    logits, targets, statistics = problem(3, 40)
    values = torch.rand((3, 40) if reduction == "none" else (), device=device) + 0.5
    gradients = []
    for upstream in (values, torch._neg_view(-values)):
        z = logits.to(device).requires_grad_()
        loss = balanced_loss(z, targets.to(device), DB, statistics, reduction=reduction, impl=impl, gradient=how)
        gradients.append(torch.autograd.grad(loss, z, upstream)[0])
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-6, atol=0)


@pytest.mark.parametrize("impl", IMPLS, indirect=True)
@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.float32])
def test_a_negative_target_in_rows_without_labels(dtype, impl, device):
    """No tile has a label there, and the shortest way to find that out must not take -1 for 0."""
    logits, targets, _ = problem(2, 600)
    targets = torch.zeros_like(targets, dtype=dtype)
    targets[1, 5] = -1
    arguments = (logits.to(device), targets.to(device), LossSpec(), None)
    if device.type == "cpu":
        with pytest.raises(ValueError, match=r"targets: expected .*, got -1.* at \[1, 5\]"):
            balanced_loss(*arguments, impl=impl)
    else:
        assert balanced_loss(*arguments, impl=impl).isnan()


@pytest.mark.parametrize("impl", IMPLS, indirect=True)
@pytest.mark.parametrize("form", ["uint8", "csr"])
@pytest.mark.parametrize("rows", ["sliced", "repeated"])
def test_saved_logits_may_come_back_with_other_strides(rows, form, impl, device):
    """As from torch.autograd.graph.save_on_cpu, which makes them contiguous."""
    wide, targets, statistics = problem(4, 305)
    targets = FORMS[form](targets[:, :300])
    statistics = LabelStatistics.from_counts(statistics.counts[:300], statistics.num_samples, degenerate="ignore")
    gradients = []
    for hooked in (False, True):
        x = (wide if rows == "sliced" else wide[:1]).to(device).requires_grad_()
        z = (x * 1)[:, :300] if rows == "sliced" else (x * 1)[:, :300].expand(4, -1)
        pack = (lambda t: t.clone(memory_format=torch.contiguous_format)) if hooked else (lambda t: t)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            loss = balanced_loss(z, targets.to(device), DB, statistics, impl=impl, gradient="backward")
        loss.backward()
        gradients.append(x.grad)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-5, atol=1e-9)
