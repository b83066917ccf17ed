"""Builds of the C++ kernel: for other processors, without a compiler, and once for all processes."""

import math
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from kernel_check import DTYPES, SPECS, as_problem, check
from test_losses import problem

from fused_balanced_loss import LossSpec, SparseTargets, balanced_loss
from fused_balanced_loss.backends import cpp, cpp_build

DB = LossSpec.preset("DB", corpus="reuters")


def test_a_missing_compiler_is_a_reason_and_one_warning(monkeypatch, tmp_path):
    logits, targets, statistics = problem(2, 7)
    call = as_problem(logits, targets, statistics)
    monkeypatch.setenv("FUSED_BALANCED_LOSS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CXX", str(tmp_path / "no-compiler"))
    cpp.forget()
    cpp_build.forget()
    try:
        with pytest.warns(UserWarning, match="not available"):
            reasons = [cpp.unavailable(call)]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            reasons += [cpp.unavailable(call), cpp.unavailable(call)]
            loss = balanced_loss(logits, targets, DB, statistics)
        assert all("no-compiler" in reason for reason in reasons)
    finally:
        monkeypatch.undo()
        cpp.forget()
        cpp_build.forget()
    torch.testing.assert_close(cpp.value(call, "sum", 1 / 14), loss)


def test_specs_that_change_are_not_kept():
    """A setting that changes from step to step takes no memory and no build."""
    logits, targets, statistics = problem(2, 7)
    built = cpp._kernel.cache_info().currsize
    for step in range(300):
        cpp.value(as_problem(logits, targets, statistics, DB.replace(mu=0.5 + step / 1000)), "sum")
    assert len(cpp._KERNELS) <= 64
    assert cpp._kernel.cache_info().currsize <= built + 1


@pytest.fixture
def built_for(monkeypatch):
    """Builds the kernels for another processor than the one at hand."""

    def build(march):
        monkeypatch.setenv("FUSED_BALANCED_LOSS_MARCH", march)
        forget()

    def forget():
        cpp.forget()
        cpp_build.forget()

    yield build
    monkeypatch.undo()
    forget()


def runs(march):
    """Whether this processor runs what is built for another."""
    try:
        found = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    flags = set(found.partition("flags")[2].partition("\n")[0].split())
    needed = {"x86-64": {"sse2"}, "haswell": {"avx2", "fma", "bmi2", "f16c"}}
    needed["x86-64-v4"] = needed["haswell"] | {"avx512f", "avx512dq", "avx512bw", "avx512vl"}
    return needed[march] <= flags


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("march", ["x86-64", "haswell", "x86-64-v4"])
def test_builds_for_other_processors(march, dtype, built_for):
    if not runs(march):
        pytest.skip(f"this processor does not run {march}")
    built_for(march)
    logits, targets, statistics = problem(5, 77, dtype, scale=4.0, seed=13)
    for name in ("DB", "margin, gamma 3.3, DB"):
        check(as_problem(logits, targets, statistics, SPECS[name]), 0.5)
        check(as_problem(logits, SparseTargets.from_dense(targets), statistics, SPECS[name]))
        spec = SPECS[name].replace(label_smoothing=0.1, poly_epsilon=0.5)
        weights = torch.linspace(0.2, 3.0, 77)
        for target_dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
            soft = (targets * torch.rand(5, 77)).to(target_dtype)
            check(as_problem(logits, soft, statistics, spec, weights, weights.flip(0)), 0.5)
            check(as_problem(logits, (soft + 1) / 2, statistics, SPECS[name], pos_weight=2.5))
    logits[0, 3], logits[0, 4], logits[0, 5] = math.nan, math.inf, -math.inf
    elements = cpp.value(as_problem(logits, targets, statistics), "none")
    assert torch.equal(elements.isnan(), logits.isnan()) and not elements[0, 4:6].isnan().any()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_compiles_for_avx512(dtype, tmp_path):
    """Also where the processor does not run it."""
    if "x86-64-v4" not in subprocess.run([cpp_build._compiler()[0], "-Q", "--help=target"], **quietly()).stdout:
        pytest.skip("the compiler does not know x86-64-v4")
    source = Path(cpp_build.__file__).parents[1] / "kernels" / "logits_loss.cpp"
    macros = {"LOGITS": cpp.LOGITS[dtype], "GAMMA": -1}
    macros |= dict.fromkeys(("MARGIN", "POLY", "BIAS", "REBALANCED", "LABEL_WEIGHT"), 1)
    defines = [f"-D{name}={value}" for name, value in macros.items()]
    command = [cpp_build._compiler()[0], "-std=c++17", "-O3", "-march=x86-64-v4", *defines, "-c", str(source)]
    done = subprocess.run([*command, "-o", str(tmp_path / "kernel.o")], **quietly())
    assert done.returncode == 0, done.stderr


def quietly():
    return {"capture_output": True, "text": True, "timeout": 120}


@pytest.mark.slow
def test_library_is_built_once_and_survives_processes(tmp_path, monkeypatch):
    code = (
        "import torch\n"
        "from fused_balanced_loss import LossSpec, balanced_loss\n"
        "for targets in (torch.zeros(2, 9), torch.zeros(2, 9, dtype=torch.int64)):\n"
        "    print(float(balanced_loss(torch.zeros(2, 9), targets, LossSpec(gamma=2.0), impl='cpp')))\n"
    )
    monkeypatch.setenv("FUSED_BALANCED_LOSS_CACHE", str(tmp_path / "cache"))
    outputs, files = [], []
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", code], check=True, **quietly())
        outputs.append(done.stdout.split())
        files.append([(path.name, path.stat().st_mtime_ns) for path in (tmp_path / "cache").glob("*.so")])
    assert outputs[0] == outputs[1]
    assert all(float(each) == pytest.approx(0.25 * 0.6931472, rel=1e-6) for each in outputs[0])
    assert files[0] == files[1] and len(files[0]) == 1
