"""Classifier and distribution-balanced loss, forward and backward, against F.linear and the loss over logits.

    pytest benchmarks/test_linear_loss.py -s

times all in turn and ends with ratios of medians; then the peak of what each allocates.
"""

from __future__ import annotations

import statistics as stats

import pytest
import torch
import torch.nn.functional as F
from test_logits_loss import DEVICE, SPEC, elapsed, formula, peak_bytes

from fused_balanced_loss import LabelStatistics, SparseTargets, balanced_loss, linear_balanced_loss

SHAPES = {"32 x 18,211 x 768": (32, 18_211, 768), "128 x 131,072 x 768": (128, 131_072, 768)}


def steps(num_rows, num_labels, num_features):
    """Functions by name, each a forward and backward that returns the gradient of the features."""
    torch.manual_seed(0)
    features = torch.randn(num_rows, num_features, device=DEVICE) * 0.5
    weight = (torch.randn(num_labels, num_features, device=DEVICE) * 0.03).requires_grad_()
    bias = torch.full((num_labels,), -4.0, device=DEVICE, requires_grad=True)
    dense = torch.zeros(num_rows, num_labels, device=DEVICE)
    dense[torch.rand(num_rows, num_labels, device=DEVICE) < 12 / num_labels] = 1
    sparse = SparseTargets.from_dense(dense)
    statistics = LabelStatistics.from_counts(torch.randint(5, 5000, (num_labels,)), 200_000)
    counts = statistics.counts.to(DEVICE, torch.float32)
    losses = {
        "F.linear + formula": lambda x: formula(F.linear(x, weight, bias), dense, counts, statistics.num_samples),
        "F.linear + ours": lambda x: balanced_loss(F.linear(x, weight, bias), sparse, statistics, SPEC),
        "fused": lambda x: linear_balanced_loss(x, weight, bias, sparse, statistics, SPEC),
    }

    def step(loss):
        def run():
            x = features.detach().requires_grad_()
            weight.grad = bias.grad = None
            loss(x).backward()
            return x.grad

        return run

    return {name: step(loss) for name, loss in losses.items()}


@pytest.mark.parametrize("shape", SHAPES)
def test_speed(benchmark, shape):
    benchmark.group = f"classifier and DB, forward and backward, fp32, {shape}"
    functions = steps(*SHAPES[shape])
    torch.testing.assert_close(functions["fused"](), functions["F.linear + formula"](), rtol=1e-3, atol=1e-8)
    rounds = 15 if SHAPES[shape][1] < 100_000 else 7
    times = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            times[name].append(elapsed(function))
    medians = {name: stats.median(values) for name, values in times.items()}
    ratios = {name: round(medians[name] / medians["fused"], 2) for name in functions}
    benchmark.extra_info.update(ratios)
    benchmark.pedantic(functions["fused"], rounds=rounds)
    print(f"\n{shape}: " + ", ".join(f"{name} {1e3 * medians[name]:.1f} ms ({ratios[name]} x)" for name in functions))
    assert ratios["F.linear + ours"] >= 1
    assert ratios["F.linear + formula"] >= 1.3


@pytest.mark.skipif(DEVICE.type == "cuda", reason="the allocator of the GPU is asked elsewhere")
@pytest.mark.parametrize("shape", SHAPES)
def test_peak_memory(shape):
    functions = steps(*SHAPES[shape])
    # The step frees the last one's gradients before it makes its own: what is counted is beyond them.
    beyond = {name: peak_bytes(function) for name, function in functions.items()}
    _, num_labels, num_features = SHAPES[shape]
    both = 2 * 4 * num_labels * (num_features + 1)
    print(f"\n{shape}: weight, bias and their gradients {both / 1e6:.0f} MB; peak beyond them, MB: ", end="")
    print(", ".join(f"{name} {peak / 1e6:.0f}" for name, peak in beyond.items()))
    assert beyond["fused"] < beyond["F.linear + ours"]
    if num_labels > 100_000:
        assert both + beyond["fused"] < (both + beyond["F.linear + formula"]) / 2
