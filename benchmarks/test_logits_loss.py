"""The losses over logits against what people use today: the value, the forward, the backward, and both.

    pytest benchmarks/test_logits_loss.py [--full]

Before anything is timed, every contestant of the same loss must give our value and gradient. Ours makes the gradient in
the forward, so compare "forward and backward"; the figures of "backward" alone say little.
"""

from __future__ import annotations

import gc

import peers
import pytest
import torch
from contest import Contestant, assert_equal_results, hold, of_loss
from environment import DEVICE
from floors import logits_floor
from problems import Problem, make_problem
from records import title

from fused_balanced_loss import balanced_loss
from fused_balanced_loss.spec import PRESETS

BOTH = "forward and backward"
# Bytes that the plain formula's buffers may take. At its peak it holds 12 float32 buffers of the logits' size.
_MEMORY = 8e9 if DEVICE.type == "cpu" else 60e9


def contestants(
    problem: Problem, loss: str, what: str, form: str, dtype: torch.dtype, names: list[str]
) -> list[Contestant]:
    """The contestants, ours first. Each has given the same value and gradient as ours for its spec."""

    def contestant(name: str) -> Contestant:
        function = peers.make_loss(name, problem, loss, form=form)
        same = peers.spec_of(name, loss) == peers.spec_of(peers.OURS, loss) or name in (peers.TIMM_DB, peers.TIMM_ASL)
        return of_loss(name, lambda: function(problem.logits), [problem.logits], what, same_work=same)

    ours = contestant(peers.OURS)
    found = [ours]
    for name in names:
        if name in peers.absent():
            continue
        one = contestant(name)
        spec = peers.spec_of(name, loss)
        targets = peers.our_targets(problem, form)

        def twin(spec=spec, targets=targets) -> torch.Tensor:
            return balanced_loss(problem.logits, targets, spec, problem.statistics)

        assert_equal_results(of_loss(f"ours as {name}", twin, [problem.logits], BOTH), one, dtype)
        found.append(one)
    return found


def measure(benchmark, keep, shape, *, loss="DB", what=BOTH, dtype=torch.float32, form="csr", compiled=True):
    num_rows, num_labels = shape
    if 12 * 4 * num_rows * num_labels > _MEMORY:
        pytest.skip("the plain formula would need more memory than there is")
    problem = make_problem(num_rows, num_labels, dtype)
    settings = {"operation": "logits", "loss": loss, "pass": what, "rows": num_rows, "labels": num_labels}
    settings |= {"dtype": str(dtype).removeprefix("torch."), "targets": form}
    names = [name for name in peers.names_for(loss) if compiled or name != peers.COMPILED]
    found = contestants(problem, loss, what, form, dtype, names)
    benchmark.group = title(settings)
    absent = {name: reason for name, reason in peers.absent().items() if name in names}
    floor = logits_floor(num_rows, num_labels, dtype, form, len(problem.sparse.col), what)
    record = keep(hold(settings, found, absent, floor, benchmark=benchmark))
    gc.collect()
    if DEVICE.type == "cpu" and settings["loss"] == "DB" and what == BOTH and dtype == torch.float32:
        check_goals(record, shape)


def check_goals(record, shape):
    """On the CPU: ten times the eager formula at the paper's label counts, and one more logits-sized buffer."""
    ours, eager = record["contestants"][peers.OURS], record["contestants"][peers.EAGER]
    # With the noise of ours.
    ratio = eager["seconds"]["p50"] / ours["seconds"]["p20"]
    if shape in [(32, 18_211), (256, 18_211)]:
        assert ratio >= 10
        assert ours["peak_bytes"] < 1.05 * 4 * shape[0] * shape[1]
    elif shape == (32, 90):
        # On a small batch ten percent are noise.
        assert ratio >= 0.9


def _shapes(quick, full):
    """Quick ones are measured always."""
    return [pytest.param(shape, id=f"{shape[0]}x{shape[1]}") for shape in quick] + [
        pytest.param(shape, id=f"{shape[0]}x{shape[1]}", marks=pytest.mark.full) for shape in full if shape not in quick
    ]


@pytest.mark.parametrize(
    "shape",
    _shapes(
        [(32, 90), (32, 1000), (1, 18_211), (32, 18_211), (256, 18_211), (1024, 18_211), (32, 131_072), (32, 670_091)],
        [(n, c) for c in (90, 1000, 18_211, 131_072, 670_091) for n in (1, 8, 128, 512, 4096)],
    ),
)
def test_sizes(benchmark, keep, full, shape):
    # Compiling for each shape takes its time; the quick selection has the paper's two sizes and the largest.
    quick = shape in [(32, 90), (32, 18_211), (1024, 18_211), (32, 670_091)]
    measure(benchmark, keep, shape, compiled=quick or full)


@pytest.mark.parametrize("what", ["value", "forward", "backward"])
@pytest.mark.parametrize("shape", _shapes([(32, 18_211)], [(32, 90), (256, 18_211), (32, 131_072)]))
def test_passes(benchmark, keep, full, shape, what):
    measure(benchmark, keep, shape, what=what, compiled=full)


@pytest.mark.parametrize("loss", [name for name in PRESETS if name != "DB"])
@pytest.mark.parametrize("shape", _shapes([(32, 18_211)], [(32, 90), (256, 18_211)]))
def test_losses(benchmark, keep, full, shape, loss):
    measure(benchmark, keep, shape, loss=loss, compiled=full)


@pytest.mark.parametrize("form", ["uint8", "float"])
@pytest.mark.parametrize("shape", _shapes([(32, 90), (32, 18_211), (256, 18_211)], [(32, 131_072), (32, 670_091)]))
def test_dense_targets(benchmark, keep, full, shape, form):
    measure(benchmark, keep, shape, form=form, compiled=full)


@pytest.mark.parametrize(
    "shape", _shapes([(32, 18_211), (256, 18_211)], [(32, 90), (1024, 18_211), (32, 131_072), (32, 670_091)])
)
def test_bfloat16(benchmark, keep, full, shape):
    measure(benchmark, keep, shape, dtype=torch.bfloat16, compiled=full)
