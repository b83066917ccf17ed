"""A training step of the classifier with the update in its backward, against a step of torch.optim.

pytest benchmarks/test_in_place_update.py [--full]
"""

from __future__ import annotations

import gc

import pytest
import torch
import torch.nn.functional as F
from contest import Contestant, hold
from floors import Floor, classifier_floor
from peers import EAGER, OURS, make_loss, spec_of
from problems import Problem, make_problem
from records import title

from fused_balanced_loss import LinearBalancedLoss
from fused_balanced_loss.optim.update import AdamWUpdate, SGDUpdate

LR = 0.01
# By name: our update, torch's optimizer, and the bytes of optimizer state that one weight has.
OPTIMIZERS = {
    "SGD": (lambda: SGDUpdate(LR), lambda p: torch.optim.SGD(p, LR), 0),
    "AdamW": (lambda: AdamWUpdate(LR), lambda p: torch.optim.AdamW(p, LR, fused=True), 8),
    "AdamW, state by row": (lambda: AdamWUpdate(LR, state="row"), lambda p: torch.optim.AdamW(p, LR, fused=True), 2),
}


def contestants(problem: Problem, num_features: int, optimizer: str, dtype: torch.dtype) -> list[Contestant]:
    make_ours, make_theirs, _ = OPTIMIZERS[optimizer]
    num_rows = len(problem.logits)
    device, spec = problem.logits.device, spec_of(OURS, "DB")

    def module(update=None):
        torch.manual_seed(1)
        return LinearBalancedLoss(spec, problem.statistics, num_features, update=update, device=device, dtype=dtype)

    features = torch.randn(num_rows, num_features, device=device, dtype=dtype).requires_grad_()

    def in_place():
        ours = module(make_ours())

        def run(_=None):
            features.grad = None
            ours(features, problem.sparse).backward()

        return run, ours.weight, lambda: None

    def with_torch(loss):
        fused = module()
        weight, bias = fused.weight, fused.bias
        optimizer = make_theirs([weight, bias])

        def run(_=None):
            features.grad = None
            optimizer.zero_grad()
            (fused(features, problem.sparse) if loss is None else loss(F.linear(features, weight, bias))).backward()
            optimizer.step()

        return run, weight, optimizer.zero_grad

    forms = {"ours, in place": in_place(), "ours + torch.optim": with_torch(None)}
    forms["F.linear + formula, eager + torch.optim"] = with_torch(make_loss(EAGER, problem, "DB"))
    weights = []
    for run, weight, _ in forms.values():
        run()
        weights.append(weight.detach().float())
    if optimizer == "SGD" and dtype == torch.float32:
        # SGD only: AdamW's first step is the sign of the gradient, and rounding decides the sign of one near zero.
        for other in weights[1:]:
            torch.testing.assert_close(weights[0], other, rtol=1e-5, atol=1e-7)
    return [Contestant(name, run, clear=clear) for name, (run, _, clear) in forms.items()]


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.full)], ids=str)
@pytest.mark.parametrize(
    "shape",
    [(32, 18_211, 768), pytest.param((128, 131_072, 768), marks=pytest.mark.full)],
    ids=lambda shape: "x".join(map(str, shape)),
)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_step(benchmark, keep, shape, optimizer, dtype):
    num_rows, num_labels, num_features = shape
    problem = make_problem(num_rows, num_labels)
    settings = {"operation": "in-place update", "loss": "DB", "pass": "step", "rows": num_rows, "labels": num_labels}
    settings |= {"features": num_features, "dtype": str(dtype).removeprefix("torch."), "variant": optimizer}
    benchmark.group = title(settings)
    found = contestants(problem, num_features, optimizer, dtype)
    least = classifier_floor(num_rows, num_labels, num_features, dtype, "update")
    state = 2 * OPTIMIZERS[optimizer][2] * num_labels * num_features
    # The floor counts the logits' product once, though the in-place step makes the logits twice.
    floor = Floor(least.num_bytes + state, least.num_flops, dtype)
    record = keep(hold(settings, found, {}, floor, seconds=3.0, benchmark=benchmark))
    gc.collect()
    ours, theirs = (record["contestants"][name]["peak_bytes"] for name in ("ours, in place", "ours + torch.optim"))
    # The gradient of one chunk of the weight, at most 32 MiB, is all that a step allocates besides logits.
    assert ours < theirs / 2 + 4e6
