"""Peak memory of one training step of a linear classifier, by the process's high-water mark.

    pytest benchmarks/test_classifier_memory.py -s

prints the memory that a step of distribution-balanced loss and AdamW takes beyond weight, optimizer state, features and
targets. Three ways are compared: F.linear followed by the loss, the fused classifier, and the fused classifier with the
update in its backward. Each measurement runs in a process of its own, whose allocator gives freed memory back to the
system at once, so that the high-water mark shows what is in use.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from tables import markdown

from fused_balanced_loss import BalancedLoss, LabelStatistics, LossSpec, SparseTargets
from fused_balanced_loss.classifier.label_chunks import default_chunk_size
from fused_balanced_loss.classifier.module import LinearBalancedLoss
from fused_balanced_loss.optim.update import AdamWUpdate

WAYS = ("F.linear + loss", "fused", "fused with update")
LABELS = (1 << 15, 1 << 17, 1 << 19)
N, D, MB = 128, 64, 1e6
SPEC = LossSpec.preset("DB", corpus="pubmed")


def step_of(way, num_labels):
    """A training step. The optimizer's state exists and its pages have been touched."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(N, D, generator=generator)
    ids = torch.randint(num_labels, (N, 12), generator=generator)
    targets = SparseTargets.from_lists([sorted(set(row.tolist())) for row in ids], num_labels)
    statistics = LabelStatistics.from_counts(torch.randint(5, 5000, (num_labels,), generator=generator), 200_000)
    if way == "fused with update":
        update = AdamWUpdate(1e-3)
        loss = LinearBalancedLoss(SPEC, statistics, D, update=update)
        for state in update.buffers():
            if state.dim():
                state.fill_(0)
        return lambda: loss(features, targets).backward()
    if way == "fused":
        loss = LinearBalancedLoss(SPEC, statistics, D)
        value = lambda: loss(features, targets)  # noqa: E731
        parameters = list(loss.parameters())
    else:
        linear, loss = torch.nn.Linear(D, num_labels), BalancedLoss(SPEC, statistics)
        value = lambda: loss(linear(features), targets)  # noqa: E731
        parameters = list(linear.parameters())
    optimizer = torch.optim.AdamW(parameters, 1e-3, fused=True)
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()

    def step():
        value().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def memory(name):
    """One figure of /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(name + ":"))


def main(way, num_labels):
    # A small step first, so that libraries, threads and compiled kernels are not counted.
    small = step_of(way, 1 << 13)
    small()
    step = step_of(way, num_labels)
    Path("/proc/self/clear_refs").write_text("5")
    before = memory("VmRSS")
    step()
    print(memory("VmHWM") - before)


def peak(way, num_labels):
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    done = subprocess.run(
        [sys.executable, __file__, way, str(num_labels)], capture_output=True, text=True, env=environment, timeout=600
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return int(done.stdout)


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux's high-water mark")
def test_beyond_weight_and_state_an_update_takes_one_chunk():
    chunk = default_chunk_size(N, D, torch.float32, torch.device("cpu"), update=True)
    # The logits [N, chunk] and the weight's gradient [chunk, D] of one chunk.
    buffers = {c: 4 * min(c, chunk) * (N + D) for c in LABELS}
    peaks = {way: [peak(way, c) for c in LABELS] for way in WAYS}
    print(f"\nPeak of a step in MB beyond weight, optimizer state, features and targets; N = {N}, D = {D}, float32, DB")
    rows = []
    for k, c in enumerate(LABELS):
        sizes = {"weight": 4 * c * D, "logits": 4 * c * N, "one chunk's buffers": buffers[c]}
        sizes |= {way: peaks[way][k] for way in WAYS}
        rows.append({"C": f"{c:,}"} | {name: f"{size / MB:.1f}" for name, size in sizes.items()})
    print(markdown(pd.DataFrame(rows)))
    for k, c in enumerate(LABELS):
        assert peaks["fused with update"][k] <= 1.25 * buffers[c] + 4 * MB
    assert peaks["fused"][-1] < peaks["F.linear + loss"][-1] / 2


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
