"""What other parts of PyTorch do around a call: tracing, default devices and dtypes, autocast, modes of inference."""

import pytest
import torch
from test_losses import problem
from torch._subclasses import FakeTensorMode

from fused_balanced_loss import LossSpec, SparseTargets, balanced_loss, linear_balanced_loss
from fused_balanced_loss.backends.constants import MOST_KEPT

DB = LossSpec.preset("DB", corpus="reuters")


def test_jit_trace_is_refused():
    logits, targets, statistics = problem(3, 70)
    with pytest.raises(RuntimeError, match=r"logits: expected no torch\.jit\.trace"):
        torch.jit.trace(lambda z: balanced_loss(z, targets, DB, statistics), (logits,))
    features, weight = torch.randn(3, 4), torch.randn(70, 4)
    with pytest.raises(RuntimeError, match=r"features: expected no torch\.jit\.trace"):
        torch.jit.trace(lambda x: linear_balanced_loss(x, weight, None, targets, DB, statistics), (features,))


@pytest.mark.parametrize("impl", ["auto", "eager", "reference"])
@pytest.mark.parametrize("sparse", [False, True])
def test_default_device_and_dtype_do_not_matter(impl, sparse):
    logits, targets, statistics = problem(3, 70)
    given = SparseTargets.from_dense(targets) if sparse else targets
    weight = torch.randn(70, 6).requires_grad_()
    features = torch.randn(3, 6)

    def losses():
        z = logits.clone().requires_grad_()
        loss = balanced_loss(z, given, DB, statistics, impl=impl)
        loss.backward()
        fused = linear_balanced_loss(features, weight, None, given, DB, statistics, impl=impl)
        fused.backward()
        gradient, weight.grad = weight.grad, None
        return loss.detach(), z.grad, fused.detach(), gradient

    expected = losses()
    statistics.cache.clear()
    before = torch.get_default_dtype()
    try:
        torch.set_default_device("meta")
        torch.set_default_dtype(torch.float16)
        results = losses()
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(before)
    for one, other in zip(results, expected, strict=True):
        assert one.dtype == other.dtype and one.device == other.device
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("gradient", ["forward", "backward"])
def test_autocast_leaves_float64_alone(gradient):
    _, targets, statistics = problem(3, 70)
    features = torch.randn(3, 6, dtype=torch.float64).requires_grad_()
    weight = torch.randn(70, 6, dtype=torch.float64).requires_grad_()
    results = []
    for enabled in (False, True):
        features.grad = weight.grad = None
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            loss = linear_balanced_loss(features, weight, None, targets, DB, statistics, gradient=gradient)
        loss.backward()
        assert loss.dtype == torch.float64
        results.append((loss.detach(), features.grad, weight.grad))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-16)


def test_autocast_refuses_float64_beside_float32():
    _, targets, statistics = problem(3, 70)
    features, weight = torch.randn(3, 6), torch.randn(70, 6, dtype=torch.float64)
    with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(TypeError, match="weight: expected the dtype"):
        linear_balanced_loss(features, weight, None, targets, DB, statistics)


def test_modes_leave_nothing_behind_that_later_calls_trip_over():
    logits, targets, statistics = problem(3, 70)
    with torch.inference_mode():
        expected = balanced_loss(logits, targets, DB, statistics)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        balanced_loss(mode.from_tensor(logits), mode.from_tensor(targets), DB, statistics, impl="eager")
    z = logits.clone().requires_grad_()
    loss = balanced_loss(z, targets, DB, statistics, gradient="backward")
    loss.backward()
    torch.testing.assert_close(loss.detach(), expected.clone(), rtol=1e-5, atol=0)
    assert z.grad.isfinite().all()


def test_constants_that_are_kept_are_few():
    logits, targets, statistics = problem(3, 70)
    for step in range(40):
        balanced_loss(logits, targets, DB.replace(mu=0.1 + step / 100, kappa=0.01 * (step + 1)), statistics)
    assert len(statistics.cache) <= MOST_KEPT
    statistics.cache.clear()
    for step in range(40):
        balanced_loss(logits, targets, DB.replace(mu=0.1 + step / 100), statistics)
    assert len(statistics.cache) == 1


def test_probabilities_in_the_place_of_logits_are_told_once(monkeypatch):
    from fused_balanced_loss import arguments

    logits, targets, statistics = problem(3, 70)
    monkeypatch.setattr(arguments, "_looked_for_probabilities", False)
    with pytest.warns(UserWarning, match="leave out the sigmoid"):
        balanced_loss(logits.sigmoid(), targets, DB, statistics)
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        balanced_loss(logits.sigmoid(), targets, DB, statistics)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (lambda z: z.to_sparse(), "logits: expected a dense tensor, got layout torch.sparse_coo"),
        (lambda z: z.to_mkldnn(), "logits: expected a dense tensor, got layout"),
        (lambda z: torch.nested.nested_tensor([z[0], z[1]]), "logits: expected a dense tensor, got a nested tensor"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_logits_of_other_layouts(bad, message):
    logits, targets, statistics = problem(3, 70)
    with pytest.raises(TypeError, match=message):
        balanced_loss(bad(logits), targets, DB, statistics)


def test_complex_sample_weights():
    logits, targets, statistics = problem(3, 70)
    with pytest.raises(TypeError, match="sample_weight: expected a dense tensor of real numbers"):
        balanced_loss(logits, targets, DB, statistics, sample_weight=torch.ones(3, dtype=torch.complex64))
