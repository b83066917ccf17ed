"""Ways to train a large linear classifier with distribution-balanced loss, and what memory each takes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from fused_balanced_loss import LabelStatistics, LinearBalancedLoss, LossSpec, SparseTargets, balanced_loss
from fused_balanced_loss.classifier_optimizers import AdamWUpdate
from fused_balanced_loss.classifier_pass import default_chunk_size

RATE, LABELS_A_SAMPLE, NUM_SAMPLES = 1e-3, 12, 10_000_000
SPEC = LossSpec.preset("DB", corpus="pubmed")


class Way(NamedTuple):
    """fused: without logits. update: an in-place AdamW's state, or None for torch.optim.AdamW. dtype: of the weight."""

    fused: bool
    update: str | None
    dtype: torch.dtype
    description: str


WAYS = {
    "plain": Way(False, None, torch.float32, "F.linear, the loss in PyTorch operators, torch.optim.AdamW"),
    "fused": Way(True, None, torch.float32, "LinearBalancedLoss, torch.optim.AdamW"),
    "update": Way(True, "float32", torch.float32, "LinearBalancedLoss with AdamW in place"),
    "update-bfloat16": Way(True, "row", torch.bfloat16, "the same, bfloat16 weights, one second moment a label"),
}
# Sizes of the logits that the plain way holds at its peak: logits, targets and what autograd keeps of the formula.
PLAIN_LOGITS = 14


def account(name: str, num_labels: int, num_features: int, batch: int, ranks: int = 1) -> dict[str, float]:
    """Bytes of weights, gradient, optimizer state and logits at the peak of a step, on each rank."""
    way = WAYS[name]
    num_labels = -(-num_labels // ranks)
    size = way.dtype.itemsize
    parameters = num_labels * (num_features + 1)
    chunk = min(num_labels, default_chunk_size(batch, num_features, way.dtype, torch.device("cpu")))
    state = {None: 8 * parameters, "float32": 8 * parameters, "row": 2 * parameters + 4 * num_labels}[way.update]
    return {
        "weights": size * parameters,
        "gradient": size * parameters if way.update is None else 4 * chunk * num_features,
        "optimizer": state,
        "logits": size * chunk * batch if way.fused else PLAIN_LOGITS * 4 * num_labels * batch,
    }


def available_memory() -> float | None:
    """Bytes that may still be taken, by the machine and by the control group; None where neither says."""
    found: list[int] = []
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        found += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        if limit != "max":
            found.append(int(limit) - int(Path("/sys/fs/cgroup/memory.current").read_text()))
    except (OSError, ValueError):
        pass
    return min(found) if found else None


def train(
    name: str,
    num_labels: int,
    num_features: int,
    batch: int,
    steps: int,
    say: Callable[[str], Any],
    mesh: DeviceMesh | None = None,
) -> dict[str, float]:
    """Trains for some steps on generated features; {"peak" in bytes, "seconds" of a step, "loss" of the last}.

    With ``mesh`` the labels are sharded over its ranks, which all call this.
    """
    way = WAYS[name]
    torch.manual_seed(0)
    say(way.description)
    # The ranks share their batches, whatever else they draw.
    generator = torch.Generator().manual_seed(1)
    # A long tail: the k-th label has a share of the samples that falls as 1 / k.
    share = 1 / torch.arange(1, num_labels + 1, dtype=torch.float64)
    counts = (NUM_SAMPLES * LABELS_A_SAMPLE * share / share.sum()).ceil().clamp(max=NUM_SAMPLES - 1).long()
    statistics = LabelStatistics.from_counts(counts, NUM_SAMPLES)
    step = _step_of(way, statistics, num_features, mesh)
    loss = seconds = math.nan
    for number in range(1, steps + 1):
        features = torch.randn(batch, num_features, generator=generator).to(way.dtype)
        targets = _targets(num_labels, batch, generator)
        start = time.perf_counter()
        loss = step(features, targets).item()
        elapsed = time.perf_counter() - start
        # The first step includes compilation and first touches of memory.
        seconds = elapsed if number <= 2 else min(seconds, elapsed)
        say(f"step {number}/{steps}: loss {loss:.4g}, {elapsed:.2f} s")
    return {"peak": peak_memory(), "seconds": seconds, "loss": loss}


def peak_memory() -> float:
    """The process's high-water mark in bytes."""
    import resource
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _targets(num_labels: int, batch: int, generator: torch.Generator) -> SparseTargets:
    # The logarithm of the rank is uniform: frequencies fall as 1 / rank.
    uniform = torch.rand(batch, LABELS_A_SAMPLE, dtype=torch.float64, generator=generator)
    ids = (num_labels**uniform).long() - 1
    return SparseTargets.from_lists([sorted(set(row.tolist())) for row in ids], num_labels)


def _step_of(
    way: Way, statistics: LabelStatistics, num_features: int, mesh: DeviceMesh | None
) -> Callable[[Tensor, SparseTargets], Tensor]:
    def fused(**options: Any) -> LinearBalancedLoss:
        if mesh is None:
            return LinearBalancedLoss(SPEC, statistics, num_features, dtype=way.dtype, **options)
        from fused_balanced_loss.label_parallel import LabelParallelLinearLoss

        return LabelParallelLinearLoss(SPEC, statistics, num_features, mesh, dtype=way.dtype, **options)

    if way.update is not None:
        loss = fused(update=AdamWUpdate(RATE, state="row" if way.update == "row" else "float32"))

        def step_in_place(features: Tensor, targets: SparseTargets) -> Tensor:
            value: Tensor = loss(features, targets)
            value.backward()
            return value.detach()

        return step_in_place
    if way.fused:
        value_of: Callable[[Tensor, SparseTargets], Tensor] = fused()
    else:
        linear = nn.Linear(num_features, statistics.num_labels)

        def value_of(features: Tensor, targets: SparseTargets) -> Tensor:
            logits = linear(features)
            return balanced_loss(logits, targets.to_dense(), statistics, SPEC, impl="reference")

    module = linear if not way.fused else value_of
    assert isinstance(module, nn.Module)
    optimizer = torch.optim.AdamW(module.parameters(), RATE, fused=True)

    def step(features: Tensor, targets: SparseTargets) -> Tensor:
        value = value_of(features, targets)
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        return value.detach()

    return step
