"""The C++ kernel of the CPU: its library on disk, and what it leaves to others."""

import subprocess
import sys

import pytest
import torch
from agreement import assert_same_but_for_rounding
from test_losses import loss_and_gradient, problem

from fused_balanced_loss import LossSpec, SparseTargets, balanced_loss
from fused_balanced_loss.backends import cpp, cpp_build, reference, select
from fused_balanced_loss.backends.problem import Problem, label_terms

DB = LossSpec.preset("DB")


def as_problem(logits, targets, statistics, spec=DB, **changes):
    terms = label_terms(statistics, spec, torch.float32, logits.device)
    return Problem(logits, targets, spec, terms, None, None, statistics.num_samples, {})._replace(**changes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("num_labels", [1, 15, 16, 17, 127, 1000, 18_211])
@pytest.mark.parametrize("num_rows", [1, 3, 9])
def test_all_widths_and_blocks(num_rows, num_labels, dtype):
    """Rows are cut into blocks where there are few of them, and vectors end in the middle of a row."""
    logits, targets, statistics = problem(num_rows, num_labels + 3, dtype)
    logits, targets = logits[:, 1:-2], targets[:, 1:-2]
    statistics = type(statistics).from_counts(statistics.counts[1:-2], 500, degenerate="ignore")
    for name in ("BCE", "CB-NTR", "DB"):
        spec = LossSpec.preset(name, convention="authors")
        whole = as_problem(
            logits.double(),
            targets,
            statistics,
            spec,
            terms=label_terms(statistics, spec, torch.float64, logits.device),
        )
        expected, gradient = reference.value_and_gradient(whole, 0.3)
        for form in (targets.byte(), targets.float(), SparseTargets.from_dense(targets)):
            ours = as_problem(logits, form, statistics, spec)
            loss, ours_gradient = cpp.value_and_gradient(ours, 0.3)
            torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=0)
            torch.testing.assert_close(
                ours_gradient.double(), gradient.to(dtype).double(), rtol=2 * torch.finfo(dtype).eps + 2e-6, atol=1e-7
            )
            # Other instances of the kernel, in which a compiler may contract other products.
            assert_same_but_for_rounding(cpp.value(ours, "sum", 0.3), loss)
            assert_same_but_for_rounding(cpp.gradient(ours, torch.tensor(0.3)), ours_gradient, units=4)


def test_any_number_of_threads_gives_the_gradient():
    logits, targets, statistics = problem(5, 20_000)
    threads, results = torch.get_num_threads(), []
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            results.append(cpp.value_and_gradient(as_problem(logits, targets, statistics), 1.0)[1])
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert_same_but_for_rounding(results[0], other, units=4)


@pytest.mark.parametrize(
    "changes",
    [
        {"logits": torch.zeros(2, 7, dtype=torch.float64)},
        {"targets": torch.zeros(2, 7, dtype=torch.float64)},
        {"label_mask": torch.ones(2, 7, dtype=torch.bool)},
        {"spec": LossSpec.preset("ASL")},
        {"spec": LossSpec(gamma=1.5)},
        {"spec": DB.replace(beta=100.0)},
    ],
)
def test_what_the_kernel_does_not_know(changes):
    logits, targets, statistics = problem(2, 7)
    assert cpp.unsupported(as_problem(logits, targets, statistics)) is None
    assert cpp.unsupported(as_problem(logits, targets, statistics)._replace(**changes))


def test_invalid_targets_are_found(monkeypatch):
    logits, targets, statistics = problem(4, 200)
    monkeypatch.setattr(select, "KERNEL_FROM", 1)
    for bad in (targets.byte() * 2, targets.float() * 0.5):
        with pytest.raises(ValueError, match="targets"):
            balanced_loss(logits, bad, DB, statistics)


def test_library_is_built_once_and_survives_processes(tmp_path, monkeypatch):
    code = (
        "import torch\n"
        "from fused_balanced_loss import LossSpec, balanced_loss\n"
        "from fused_balanced_loss.backends import select\n"
        "select.KERNEL_FROM = 1\n"
        "print(float(balanced_loss(torch.zeros(2, 9), torch.zeros(2, 9), None, LossSpec(gamma=2.0))))\n"
    )
    monkeypatch.setenv("FUSED_BALANCED_LOSS_CACHE", str(tmp_path / "cache"))
    outputs, files = [], []
    for _ in range(2):
        outputs.append(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
        files.append([(path.name, path.stat().st_mtime_ns) for path in (tmp_path / "cache").iterdir()])
    assert outputs[0] == outputs[1] and float(outputs[0]) == pytest.approx(0.25 * 0.6931472, rel=1e-6)
    assert files[0] == files[1] and len(files[0]) == 1


def test_folder_that_cannot_be_written_is_not_used(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FUSED_BALANCED_LOSS_CACHE", str(tmp_path / "file" / "cache"))
    folder = cpp_build.cache_folder()
    assert folder.is_dir() and tmp_path not in folder.parents


def test_compiler_that_fails_says_so(monkeypatch, tmp_path):
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho no such flag >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("FUSED_BALANCED_LOSS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CXX", str(broken))
    cpp_build._compiler.cache_clear()
    try:
        with pytest.raises(RuntimeError, match="no such flag"):
            cpp_build.library("logits_loss", (("LOGITS", 32),))
    finally:
        monkeypatch.undo()
        cpp_build._compiler.cache_clear()
    assert list((tmp_path / "cache").iterdir()) == []


def test_failure_after_logits_were_overwritten_raises(monkeypatch):
    """Nothing may start again from logits that are partly gradient."""
    logits, targets, statistics = problem(4, 50)
    monkeypatch.setattr(select, "KERNEL_FROM", 1)
    monkeypatch.setattr(select, "COMPILE_FROM", 1)
    monkeypatch.setattr(select.COMPILED, "failed", {"cpp"})
    monkeypatch.setattr(select.compiled, "_ELEMENTS_ASIDE", 50)
    whole, calls = select.compiled._run, []

    def fails_at_the_second(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("second")
        return whole(*arguments)

    monkeypatch.setattr(select.compiled, "_run", fails_at_the_second)
    with pytest.raises(select.compiled.LogitsLostError, match="rows before 1"):
        loss_and_gradient_in_place(logits, targets, statistics)


def loss_and_gradient_in_place(logits, targets, statistics):
    z = logits.requires_grad_() * 1
    return balanced_loss(z, targets, DB, statistics, gradient="in_place")


def test_large_problems_go_to_the_kernel(monkeypatch):
    logits, targets, statistics = problem(8, 50)
    called = []
    monkeypatch.setattr(select, "KERNEL_FROM", 1)
    monkeypatch.setattr(
        select.cpp, "value_and_gradient", lambda *a: called.append(1) or reference.value_and_gradient(*a)
    )
    loss_and_gradient(logits, targets, statistics, DB, torch.device("cpu"))
    assert called
