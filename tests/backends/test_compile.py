"""torch.compile around the losses, the compiled implementation, and the operator that the kernels are."""

import subprocess
import sys
import warnings

import pytest
import torch
from oracle import assert_within_rule, elements, plain
from test_losses import DIGITS, loss_and_gradient, problem

from fused_balanced_loss import BalancedLoss, LossSpec, SparseTargets, balanced_loss
from fused_balanced_loss.backends import select

DB = LossSpec.preset("DB")


@pytest.mark.parametrize("name", ["BCE", "DB", "CB-NTR", "ASL"])
def test_compiled_form_keeps_the_error_rule(name, device):
    logits, targets, statistics = problem(6, 37, scale=6.0, seed=5)
    logits[0, :4] = torch.tensor([float("inf"), float("-inf"), 1e4, -1e4])
    targets[0, :4] = torch.tensor([True, False, True, False])
    spec = LossSpec.preset(name)
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


def test_auto_takes_the_compiled_form_for_large_cpu_inputs(monkeypatch):
    logits, targets, statistics = problem(8, 50)
    monkeypatch.setattr(select, "KERNEL_FROM", 1)
    assert select.select("auto", logits.device, logits.numel()) is select.COMPILED
    loss, gradient = loss_and_gradient(logits, targets, statistics, DB, torch.device("cpu"))
    expected = loss_and_gradient(logits.double(), targets, statistics, DB, torch.device("cpu"), impl="reference")
    torch.testing.assert_close(loss.double(), expected[0], rtol=1e-5, atol=0)
    torch.testing.assert_close(gradient.double(), expected[1], rtol=1e-4, atol=1e-9)


def test_auto_goes_on_with_a_warning_each_where_nothing_compiles(monkeypatch):
    def broken(*_):
        raise RuntimeError("no C++ compiler")

    logits, targets, statistics = problem(8, 50)
    monkeypatch.setattr(select, "KERNEL_FROM", 1)
    monkeypatch.setattr(select, "COMPILE_FROM", 1)
    monkeypatch.setattr(select.COMPILED, "failed", set())
    monkeypatch.setattr(select.compiled, "_compiled_form", broken)
    monkeypatch.setattr(select.cpp, "library", broken)
    select.cpp._kernel.cache_clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        first = loss_and_gradient(logits, targets, statistics, DB, torch.device("cpu"))
        loss_and_gradient(logits, targets, statistics, DB, torch.device("cpu"))
    said = [str(one.message) for one in caught if "no C++ compiler" in str(one.message)]
    assert len(said) == 2 and "C++ kernel" in said[0] and "torch.compile" in said[1]
    expected = loss_and_gradient(logits.double(), targets, statistics, DB, torch.device("cpu"), impl="reference")
    torch.testing.assert_close(first[0].double(), expected[0], rtol=1e-5, atol=0)


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


@pytest.mark.parametrize("reduction", ["sum", "none"])
@pytest.mark.parametrize("form", ["bool", "csr"])
def test_operator_registrations(form, reduction, device):
    from fused_balanced_loss.backends.flatten import flatten
    from fused_balanced_loss.backends.problem import Problem, label_terms
    from fused_balanced_loss.backends.triton_operator import gradient_operator, loss_operator

    logits, targets, statistics = problem(3, 20)
    given = (targets if form == "bool" else SparseTargets.from_dense(targets)).to(device)
    terms = label_terms(statistics, DB, torch.float32, device)
    one = Problem(logits.to(device).requires_grad_(), given, DB, terms, torch.rand(3, device=device), None, 500, {})
    torch.library.opcheck(loss_operator, (*flatten(one), reduction, 0.5))
    one = one._replace(logits=one.logits.detach())
    _, rate, first = loss_operator(*flatten(one), reduction, 0.5)
    upstream = torch.rand(logits.shape if reduction == "none" else (), device=device)
    torch.library.opcheck(gradient_operator, (*flatten(one), 0.5, upstream, rate, first))


def test_import_leaves_heavy_packages_alone():
    code = (
        "import sys, fused_balanced_loss; "
        "heavy = [m for m in ('triton', 'transformers', 'sklearn', 'scipy') if m in sys.modules]; "
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
