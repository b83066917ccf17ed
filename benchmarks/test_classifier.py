"""The fused classifier and loss against F.linear followed by a loss over its logits.

pytest benchmarks/test_classifier.py [--full]
"""

from __future__ import annotations

import dataclasses
import gc

import peers
import pytest
import torch
import torch.nn.functional as F
from contest import Contestant, assert_equal_results, hold, of_loss
from environment import DEVICE
from floors import classifier_floor
from peers import EAGER, OURS, PLAIN, TIMM_DB, make_loss, spec_of
from problems import make_classifier, make_problem
from records import title

from fused_balanced_loss import linear_balanced_loss

FUSED = "ours"
BOTH = "forward and backward"


def contestants(shape: tuple[int, int, int], what: str, dtype: torch.dtype) -> tuple[list[Contestant], int]:
    """The contestants, ours first, and the bytes of weight, bias and their gradients.

    Each contestant in float32 has given the same value and gradients as ours.
    """
    num_rows, num_labels, num_features = shape
    problem = make_problem(num_rows, num_labels)
    features, weight, bias = leaves = make_classifier(num_rows, num_labels, num_features, dtype)
    spec = spec_of(OURS, "DB")

    def fused(spec=spec):
        return linear_balanced_loss(features, weight, bias, problem.sparse, spec, problem.statistics)

    found = [of_loss(FUSED, fused, leaves, what)]
    for name in (OURS, EAGER, TIMM_DB, PLAIN):
        if name in peers.absent():
            continue
        loss = make_loss(name, problem, "DB")
        shown = f"F.linear + {'our loss' if name == OURS else name}"
        one = of_loss(shown, lambda loss=loss: loss(F.linear(features, weight, bias)), leaves, what)
        other_spec = spec_of(name, "DB")
        same = of_loss(FUSED, lambda other_spec=other_spec: fused(other_spec), leaves, what)
        # Half precision rounds the logits after sums in another order, so results differ by more than a tolerance.
        if dtype == torch.float32:
            assert_equal_results(same, one, torch.bfloat16 if DEVICE.type == "cuda" else torch.float32)
        found.append(dataclasses.replace(one, same_work=name != PLAIN))
    return found, 2 * dtype.itemsize * num_labels * (num_features + 1)


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.full)], ids=str)
@pytest.mark.parametrize("what", [BOTH, pytest.param("value", marks=pytest.mark.full)])
@pytest.mark.parametrize(
    "shape",
    [
        (32, 18_211, 768),
        (32, 131_072, 768),
        pytest.param((1024, 18_211, 768), marks=pytest.mark.full),
        pytest.param((128, 131_072, 768), marks=pytest.mark.full),
        pytest.param((128, 670_091, 768), marks=pytest.mark.full),
    ],
    ids=lambda shape: "x".join(map(str, shape)),
)
def test_speed_and_memory(benchmark, keep, shape, what, dtype):
    num_rows, num_labels, num_features = shape
    if DEVICE.type == "cpu" and num_labels > 500_000 and dtype == torch.float32:
        pytest.skip("weight, gradient and three logits-sized buffers need more memory than most machines have")
    settings = {"operation": "classifier", "loss": "DB", "pass": what, "rows": num_rows, "labels": num_labels}
    settings |= {"features": num_features, "dtype": str(dtype).removeprefix("torch."), "targets": "csr"}
    benchmark.group = title(settings)
    found, both = contestants(shape, what, dtype)
    floor = classifier_floor(num_rows, num_labels, num_features, dtype, what)
    absent = {name: reason for name, reason in peers.absent().items() if name == TIMM_DB}
    record = keep(hold(settings, found, absent, floor, seconds=3.0, benchmark=benchmark))
    gc.collect()
    if what != BOTH or dtype != torch.float32:
        return
    ours, logits, formula = (
        record["contestants"][name] for name in (FUSED, "F.linear + our loss", f"F.linear + {EAGER}")
    )
    # p20 against p80, so that noise alone does not fail.
    assert ours["seconds"]["p20"] <= logits["seconds"]["p80"]
    assert formula["seconds"]["p50"] >= ours["seconds"]["p50"]
    assert ours["peak_bytes"] < logits["peak_bytes"]
    # A step allocates the gradient of weight and bias, and one chunk of logits.
    assert ours["peak_bytes"] < both / 2 + 16e6
