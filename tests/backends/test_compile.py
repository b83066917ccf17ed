"""torch.compile around the losses, the compiled implementation, and the operator that the kernels are."""

import gc
import subprocess
import sys
import weakref

import pytest
import torch
import torch._dynamo.testing
from oracle import assert_within_rule, elements, plain
from test_losses import DIGITS, loss_and_gradient, problem
from torch.utils._python_dispatch import TorchDispatchMode

from fused_balanced_loss import BalancedLoss, LinearBalancedLoss, LossSpec, SparseTargets, balanced_loss
from fused_balanced_loss.backends import operator
from fused_balanced_loss.backends.constants import label_constants
from fused_balanced_loss.backends.operator import gradient_operator, loss_operator
from fused_balanced_loss.backends.problem import Problem, to_arguments
from fused_balanced_loss.classifier import operator as linear_operator

pytestmark = pytest.mark.slow

DB = LossSpec.preset("DB", corpus="reuters")


@pytest.mark.parametrize("name", ["BCE", "DB", "CB-NTR", "ASL"])
def test_compiled_form_keeps_the_error_rule(name, device):
    logits, targets, statistics = problem(6, 37, scale=6.0, seed=5)
    logits[0, :4] = torch.tensor([float("inf"), float("-inf"), 1e4, -1e4])
    targets[0, :4] = torch.tensor([True, False, True, False])
    spec = LossSpec.preset(name, corpus="reuters")
    expected, gradient = elements(logits, targets, statistics.counts, statistics.num_samples, spec)
    yardstick = torch.zeros_like(expected), torch.zeros_like(expected)
    if name != "ASL":
        yardstick = tuple((a.double() - b).abs() for a, b in zip(
            plain(logits, targets, statistics, spec), (expected, gradient), strict=True))  # fmt: skip
    for form in (targets, targets.float(), SparseTargets.from_dense(targets)):
        loss, ours = loss_and_gradient(logits, form, statistics, spec, device, reduction="none", impl="compile")
        assert_within_rule(loss, yardstick[0], expected, 2 * DIGITS[torch.float32])
        assert_within_rule(ours, yardstick[1], gradient, 2 * DIGITS[torch.float32])
        _, ours = loss_and_gradient(logits, form, statistics, spec, device, reduction="sum", impl="compile")
        assert_within_rule(ours, yardstick[1], gradient, 2 * DIGITS[torch.float32])


def test_compiled_form_in_float64_and_bfloat16(device):
    for dtype in (torch.float64, torch.bfloat16):
        logits, targets, statistics = problem(5, 41, dtype)
        _, expected = elements(logits, targets, statistics.counts, statistics.num_samples, DB)
        _, ours = loss_and_gradient(logits, targets, statistics, DB, device, reduction="sum", impl="compile")
        torch.testing.assert_close(ours.double(), expected, rtol=4 * DIGITS[dtype], atol=DIGITS[dtype] * 0.1)
        with pytest.raises(ValueError, match="targets: expected a number in"):
            balanced_loss(logits, targets.to(torch.float32) * 1.5, DB, statistics, impl="compile")


@pytest.mark.parametrize("impl", ["auto", "triton"])
@pytest.mark.parametrize("form", ["uint8", "csr"])
def test_full_graph_equals_eager(form, impl, device):
    if impl == "triton" and device.type == "cpu":
        pytest.importorskip("triton")
    logits, targets, statistics = problem(5, 300)
    given = (targets.byte() if form == "uint8" else SparseTargets.from_dense(targets)).to(device)
    module = BalancedLoss(DB, statistics, impl=impl).to(device)
    layer = torch.nn.Linear(300, 300, bias=False).to(device)

    def step(x):
        return module(layer(x), given)

    results = []
    for run in (step, torch.compile(step, fullgraph=True)):
        layer.zero_grad()
        loss = run(logits.to(device))
        loss.backward()
        results.append((loss.detach(), layer.weight.grad.clone()))
    torch.testing.assert_close(results[1][0], results[0][0], rtol=1e-5, atol=0)
    torch.testing.assert_close(results[1][1], results[0][1], rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("kind", ["loss", "classifier"])
@pytest.mark.parametrize("impl", ["auto", "eager"])
def test_no_batch_size_compiles_anew(kind, impl, device):
    """A dozen batch sizes take two compilations: of the first size, and of any."""
    _, _, statistics = problem(1, 60)
    layer = torch.nn.Linear(8, 60).to(device)
    if kind == "loss":
        loss = BalancedLoss(DB, statistics, impl=impl).to(device)
        run = lambda x, y: loss(layer(x), y)  # noqa: E731
    else:
        run = LinearBalancedLoss.from_linear(layer, DB, statistics, impl=impl).to(device)
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    torch._dynamo.reset()
    compiled = torch.compile(run, fullgraph=True, backend=counter)
    for num_rows in (*range(2, 14), 32, 17):
        x = torch.randn(num_rows, 8, device=device)
        y = torch.rand(num_rows, 60, device=device) < 0.1
        gradients = []
        for call in (run, compiled):
            layer.zero_grad()
            value = call(x, y)
            value.backward()
            gradients.append((value.detach(), layer.weight.grad.clone()))
        torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-7)
    assert counter.frame_count <= 2


@pytest.mark.parametrize("pooling", ["label", "mean_count", "mean_weight", "rarest"])
@pytest.mark.parametrize("weighting", ["class_balanced", "inverse_frequency"])
def test_weights_are_made_in_a_graph(weighting, pooling, device):
    """Of statistics that nothing has been made of; the first row has no label."""
    spec = LossSpec(gamma=2, weighting=weighting, pooling=pooling)
    logits, targets, statistics = problem(4, 30)
    targets[0] = False
    expected = balanced_loss(logits.double(), targets, spec, statistics, impl="reference", reduction="none")
    for form in (targets, SparseTargets.from_dense(targets)):
        statistics.cache.clear()
        torch._dynamo.reset()
        compiled = torch.compile(balanced_loss, fullgraph=True, backend="aot_eager")
        loss = compiled(logits.to(device), form.to(device), spec, statistics, reduction="none")
        torch.testing.assert_close(loss.cpu().double(), expected, rtol=1e-5, atol=1e-8)


def test_in_place_is_backward_under_compile(device):
    logits, targets, statistics = problem(5, 60)
    module = BalancedLoss(DB, statistics, gradient="in_place").to(device)
    leaf, other = (logits.to(device).requires_grad_() for _ in range(2))
    torch.compile(lambda z: module(z * 1, targets.to(device)), fullgraph=True)(leaf).backward()
    module(other * 1, targets.to(device)).backward()
    torch.testing.assert_close(leaf.grad, other.grad, rtol=1e-5, atol=1e-9)


def test_export_with_a_dynamic_batch(device):
    _, _, statistics = problem(1, 60)
    module = BalancedLoss(DB, statistics).to(device)
    rows = torch.export.Dim("rows", min=2, max=4096)
    example = (torch.randn(4, 60, device=device), torch.rand(4, 60, device=device) < 0.1)
    program = torch.export.export(module, example, dynamic_shapes=({0: rows}, {0: rows}))
    z, y = torch.randn(9, 60, device=device), torch.rand(9, 60, device=device) < 0.1
    torch.testing.assert_close(program.module()(z, y), module(z, y))


@pytest.mark.parametrize("reduction", ["sum", "none", "mean"])
@pytest.mark.parametrize("form", ["bool", "csr"])
def test_operator_registrations(form, reduction, device):
    logits, targets, statistics = problem(3, 20)
    given = (targets if form == "bool" else SparseTargets.from_dense(targets)).to(device)
    labels = label_constants(statistics, DB, torch.float32, device)
    one = Problem(logits.to(device).requires_grad_(), given, DB, labels, torch.rand(3, device=device))
    torch.library.opcheck(loss_operator, (*to_arguments(one), reduction, "auto"))
    one = one._replace(logits=one.logits.detach())
    upstream = torch.rand(logits.shape if reduction == "none" else (), device=device)
    torch.library.opcheck(gradient_operator, (*to_arguments(one), reduction, "auto", upstream))


class Allocations(TorchDispatchMode):
    """Weak references to all tensors that operators give."""

    def __init__(self):
        super().__init__()
        self.made = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        results = func(*args, **(kwargs or {}))
        parts = results if isinstance(results, (tuple, list)) else (results,)
        self.made += [weakref.ref(part) for part in parts if isinstance(part, torch.Tensor)]
        return results


@pytest.mark.parametrize("form", ["bool", "csr"])
@pytest.mark.parametrize("waves", [0, 1], ids=["terms before", "terms in the kernel"])
@pytest.mark.parametrize("num_labels", [20, 260])
def test_operators_keep_no_memory(num_labels, waves, form, device, monkeypatch):
    """The CUDA graphs of mode="reduce-overhead" raise an error for memory of their pool that stays in use."""
    pytest.importorskip("triton")
    monkeypatch.setattr("fused_balanced_loss.backends.triton_plan.WAVES", waves)
    num_rows = 3
    logits, targets, statistics = problem(num_rows, num_labels)
    given = (targets if form == "bool" else SparseTargets.from_dense(targets)).to(device)
    labels = label_constants(statistics, DB, torch.float32, device)
    arguments = to_arguments(Problem(logits.to(device), given, DB, labels))
    weight, bias = torch.randn(num_labels, 4, device=device), torch.zeros(num_labels, device=device)
    features = torch.randn(num_rows, 4, device=device)
    rest = (weight, bias, "mean", "triton", 128, 0, num_labels, num_labels, torch.float32, [True] * 3)
    calls = (
        lambda: operator._loss(*arguments, "mean", "triton"),
        lambda: operator._gradient(*arguments, "mean", "triton", torch.ones((), device=device)),
        lambda: linear_operator._loss(features, *arguments[1:], *rest),
    )
    for call in calls:
        with Allocations() as allocations:
            call()
        gc.collect()
        assert allocations.made
        assert not [reference() for reference in allocations.made if reference() is not None]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
@pytest.mark.parametrize("kind", ["loss", "classifier"])
@pytest.mark.parametrize("form", ["bool", "csr"])
def test_cuda_graphs_of_torch_compile(form, kind, device):
    logits, targets, statistics = problem(40, 300)
    given = (targets if form == "bool" else SparseTargets.from_dense(targets)).to(device)
    layer = torch.nn.Linear(300, 300, bias=False).to(device)
    module = BalancedLoss(DB, statistics) if kind == "loss" else LinearBalancedLoss(DB, statistics, 300)
    module.to(device)
    run = torch.compile(lambda x: module(layer(x), given), mode="reduce-overhead")
    for step in range(4):
        x = logits.to(device) * (step + 1)
        results = []
        for call in (lambda x: module(layer(x), given), run):
            layer.zero_grad()
            torch.compiler.cudagraph_mark_step_begin()
            loss = call(x)
            loss.backward()
            results.append((loss.detach().clone(), layer.weight.grad.clone()))
        torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-8)


def test_import_leaves_heavy_packages_alone():
    code = (
        "import sys, fused_balanced_loss; "
        "heavy = [m for m in ('triton', 'transformers', 'sklearn', 'scipy') if m in sys.modules]; "
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
