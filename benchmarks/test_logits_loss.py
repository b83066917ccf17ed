"""Distribution-balanced loss, forward and backward, against the formula in eager PyTorch under autograd.

    pytest benchmarks

times both in turn, so that what else the machine does falls on both, and ends with the ratio of the medians.
"""

from __future__ import annotations

import statistics as stats
import subprocess
import sys
import time

import pytest
import torch

from fused_balanced_loss import BalancedLoss, LabelStatistics, LossSpec, SparseTargets

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SPEC = LossSpec.preset("DB", corpus="pubmed")
FORMS = {
    "uint8": lambda y: y.byte(),
    "float": lambda y: y.float(),
    "csr": lambda y: SparseTargets.from_dense(y).to(DEVICE),
}


def problem(num_rows, num_labels):
    torch.manual_seed(0)
    logits = torch.randn(num_rows, num_labels, device=DEVICE) * 2 - 4
    targets = torch.rand(num_rows, num_labels, device=DEVICE) < 12 / max(num_labels, 240)
    statistics = LabelStatistics.from_counts(torch.randint(5, 5000, (num_labels,)), 200_000)
    return logits, targets, statistics


def formula(logits, targets, counts, num_samples):
    """The equations as one would write them."""
    v = SPEC.kappa * torch.log(num_samples / counts - 1)
    r = (1 / counts) / (targets * (1 / counts)).sum(1, keepdim=True)
    w = SPEC.alpha + torch.sigmoid(SPEC.beta * (r - SPEC.mu))
    t = torch.where(targets == 1, logits - v, -SPEC.lam * (logits - v))
    p = torch.sigmoid(t)
    nll = torch.nn.functional.softplus(-t)
    s = torch.where(targets == 1, 1.0, 1 / SPEC.lam)
    return (s * w * (1 - p) ** SPEC.gamma * nll).mean()


def steps(num_rows, num_labels, form):
    """(the formula, ours): functions that return the gradient of the logits."""
    logits, targets, statistics = problem(num_rows, num_labels)
    counts = statistics.counts.to(DEVICE, torch.float32)
    dense, given = targets.float(), FORMS[form](targets)
    loss = BalancedLoss(SPEC, statistics).to(DEVICE)

    def eager():
        z = logits.detach().requires_grad_()
        formula(z, dense, counts, statistics.num_samples).backward()
        return z.grad

    def ours():
        z = logits.detach().requires_grad_()
        loss(z, given).backward()
        return z.grad

    return eager, ours


def elapsed(function):
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    function()
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", [(32, 90), (32, 18_211), (256, 18_211)], ids=lambda s: f"{s[0]}x{s[1]}")
def test_ratio_to_the_eager_formula(benchmark, shape, form):
    benchmark.group = f"DB forward and backward, fp32, {shape[0]} x {shape[1]:,}"
    eager, ours = steps(*shape, form)
    torch.testing.assert_close(ours(), eager(), rtol=1e-4, atol=1e-9)
    rounds = 300 if shape[1] < 1000 else 60
    times = {"eager": [], "ours": []}
    for _ in range(rounds):
        for name, step in (("eager", eager), ("ours", ours)):
            step()
            times[name].append(elapsed(step))
    ratio = stats.median(times["eager"]) / stats.median(times["ours"])
    benchmark.extra_info["eager_over_ours"] = round(ratio, 2)
    benchmark.pedantic(ours, rounds=rounds, warmup_rounds=3)
    print(
        f"\n{shape[0]} x {shape[1]:,} {form}: eager {stats.median(times['eager']) * 1e3:.3f} ms, "
        f"ours {stats.median(times['ours']) * 1e3:.3f} ms, ratio {ratio:.1f}"
    )
    # On a small batch ten percent are noise.
    assert ratio >= (0.9 if shape[1] < 1000 else 10.0)


@pytest.mark.skipif(DEVICE.type == "cuda", reason="the allocator of the GPU is asked elsewhere")
@pytest.mark.parametrize("form", FORMS)
def test_peak_memory_is_one_more_logits_sized_buffer(form):
    eager, ours = steps(32, 18_211, form)
    logits_bytes = 32 * 18_211 * 4
    peaks = {name: peak_bytes(step) / logits_bytes for name, step in (("eager", eager), ("ours", ours))}
    print(f"\n{form}: peak beyond logits and targets, in sizes of the logits: {peaks}")
    assert peaks["ours"] < 1.05


def peak_bytes(step):
    """Most memory that the step had allocated at once, by the profiler's record of each allocation."""
    step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    now = peak = 0
    for event in sorted(profile.profiler.kineto_results.events(), key=lambda one: one.start_ns()):
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    return peak


def test_first_call_on_a_small_batch_is_quick():
    """In a fresh process, import apart: 32 x 90 takes the path that compiles nothing."""
    code = (
        "import sys, time; sys.path.insert(0, 'benchmarks'); import test_logits_loss as b; "
        "eager, ours = b.steps(32, 90, 'uint8'); "
        "eager(); start = time.perf_counter(); ours(); print(time.perf_counter() - start)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    print(f"\nfirst call at 32 x 90: {float(done.stdout) * 1e3:.1f} ms")
    if DEVICE.type == "cpu":
        assert float(done.stdout) < 0.1
