"""torch.compile around the losses, the compiled implementation, and the operator that the kernels are."""

import subprocess
import sys

import pytest
import torch
import torch._dynamo.testing
from oracle import assert_within_rule, elements, plain
from test_losses import DIGITS, loss_and_gradient, problem

from fused_balanced_loss import BalancedLoss, LinearBalancedLoss, LossSpec, SparseTargets, balanced_loss
from fused_balanced_loss.backends.constants import label_constants
from fused_balanced_loss.backends.operator import gradient_operator, loss_operator
from fused_balanced_loss.backends.problem import Problem, to_arguments

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
        with pytest.raises(ValueError, match="targets: expected 0 or 1"):
            balanced_loss(logits, targets.to(torch.float32) * 0.5, DB, statistics, impl="compile")


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


def test_import_leaves_heavy_packages_alone():
    code = (
        "import sys, fused_balanced_loss; "
        "heavy = [m for m in ('triton', 'transformers', 'sklearn', 'scipy') if m in sys.modules]; "
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
