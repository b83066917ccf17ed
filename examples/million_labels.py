"""Trains a linear classifier of a million labels for a few steps, in several ways, and accounts for the memory.

    python examples/million_labels.py
    python examples/million_labels.py --ranks 2

Each way is a process of its own, or as many as there are ranks, each with its share of the labels. What the machine
cannot hold is not begun.
"""

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch
from tabulate import tabulate
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException, spawn

from fused_balanced_loss import AdamWUpdate, BalancedLoss, LabelStatistics, LinearBalancedLoss, LossSpec, SparseTargets
from fused_balanced_loss.label_parallel import LabelParallelLinearLoss

RATE, LABELS_A_SAMPLE, NUM_SAMPLES = 1e-3, 12, 10_000_000
SPEC = LossSpec.preset("DB", corpus="pubmed")
GB = 1e9
# Bytes of the interpreter with PyTorch, what its allocator holds beside, and a chunk of a fused classifier.
OVERHEAD = 700e6
# Sizes of the logits that the plain way holds at its peak: logits, targets and what autograd keeps of the formula.
PLAIN_LOGITS = 14
REFUSED, FAILED, INTERRUPTED = 2, 1, 130
# Options, their defaults and the least that they take.
OPTIONS = {"labels": (1_000_000, 2), "features": (256, 1), "batch": (128, 1), "steps": (3, 1), "ranks": (1, 1)}
COLUMNS = ("way", "weights", "gradient", "optimizer", "logits", "peak measured", "s a step", "last loss")


class Way(NamedTuple):
    """fused: without logits. update: state of an AdamW in place, None for torch.optim.AdamW. dtype: of the weight."""

    description: str
    fused: bool = True
    update: Any = None
    dtype: torch.dtype = torch.float32


WAYS = {
    "plain": Way("nn.Linear, the loss in PyTorch operators, torch.optim.AdamW", fused=False),
    "fused": Way("LinearBalancedLoss, torch.optim.AdamW"),
    "update": Way("LinearBalancedLoss with AdamW in its backward", update="float32"),
    "update-bfloat16": Way("the same, bfloat16, one second moment a label", update="row", dtype=torch.bfloat16),
}


def account(name: str, num_labels: int, num_features: int, batch: int, ranks: int = 1) -> dict[str, float]:
    """Bytes of weights, gradient, optimizer state and logits at the peak of a step, on each rank."""
    way, labels = WAYS[name], -(-num_labels // ranks)
    weights = way.dtype.itemsize * labels * (num_features + 1)
    return {
        "weights": weights,
        "gradient": 0.0 if way.update else weights,
        "optimizer": weights + 4 * labels if way.update == "row" else 2 * weights,
        "logits": 0.0 if way.fused else PLAIN_LOGITS * 4 * labels * batch,
    }


def available_memory() -> float:
    """Bytes that may still be taken, by the machine and by the control group, where it has a limit."""
    available = psutil.virtual_memory().available
    group = Path("/sys/fs/cgroup")
    with suppress(OSError, ValueError):
        limit, used = (int((group / f"memory.{name}").read_text()) for name in ("max", "current"))
        available = min(available, limit - used)
    return float(available)


def train(
    name: str, labels: int, features: int, batch: int, steps: int, mesh: DeviceMesh | None = None
) -> dict[str, float]:
    """Trains on generated features; {"peak" in bytes, "seconds" of a step, "loss" of the last}.

    With ``mesh`` the labels are sharded over its ranks, which all call this.
    """
    torch.manual_seed(0)
    way = WAYS[name]
    # A long tail: the k-th label has a share of the samples that falls as 1 / k.
    share = 1 / torch.arange(1, labels + 1, dtype=torch.float64)
    counts = (NUM_SAMPLES * LABELS_A_SAMPLE * share / share.sum()).ceil().clamp(max=NUM_SAMPLES - 1).long()
    statistics = LabelStatistics.from_counts(counts, NUM_SAMPLES)
    update = AdamWUpdate(RATE, state=way.update) if way.update else None
    loss_of_logits = BalancedLoss(SPEC, statistics, impl="reference")
    if not way.fused:
        module: nn.Module = nn.Linear(features, labels)
    elif mesh is None:
        module = LinearBalancedLoss(SPEC, statistics, features, dtype=way.dtype, update=update)
    else:
        module = LabelParallelLinearLoss(SPEC, statistics, features, mesh, dtype=way.dtype, update=update)
    optimizer = None if way.update else torch.optim.AdamW(module.parameters(), RATE, fused=True)
    # The ranks share their batches, whatever else they draw.
    generator = torch.Generator().manual_seed(1)
    loss = seconds = float("nan")
    for number in range(1, steps + 1):
        inputs = torch.randn(batch, features, generator=generator).to(way.dtype)
        uniform = torch.rand(batch, LABELS_A_SAMPLE, dtype=torch.float64, generator=generator)
        ids = (labels**uniform).long() - 1
        targets = SparseTargets.from_lists([sorted(set(row.tolist())) for row in ids], labels)
        start = time.perf_counter()
        value = module(inputs, targets) if way.fused else loss_of_logits(module(inputs), targets.to_dense())
        value.backward()
        if optimizer is not None:
            optimizer.step()
            optimizer.zero_grad()
        loss, elapsed = value.item(), time.perf_counter() - start
        # The first step includes compilation and first touches of memory.
        seconds = elapsed if number <= 2 else min(seconds, elapsed)
        if mesh is None or mesh.get_rank() == 0:
            print(f"{name}: step {number}/{steps}: loss {loss:.4g}, {elapsed:.2f} s", flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {"peak": peak, "seconds": seconds, "loss": loss}


def run_apart(name: str, sizes: Sequence[int], ranks: int) -> dict[str, float]:
    """What ``train`` returns in processes of its own, with the highest peak of them.

    Raises:
        ProcessExitedException, ProcessRaisedException: where one of them was killed or failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        spawn(_work, (name, sizes, ranks, folder), nprocs=ranks)
        results = [torch.load(Path(folder, f"{rank}.pt")) for rank in range(ranks)]
    return {**results[0], "peak": max(result["peak"] for result in results)}


def _work(rank: int, name: str, sizes: Sequence[int], ranks: int, folder: str) -> None:
    mesh = None
    if ranks > 1:
        torch.set_num_threads(max(1, torch.get_num_threads() // ranks))
        meeting = Path(folder, "meeting").as_uri()
        torch.distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=ranks)
        mesh = init_device_mesh("cpu", (ranks,))
    labels, features, batch, steps = sizes
    torch.save(train(name, labels, features, batch, steps, mesh), Path(folder, f"{rank}.pt"))
    if ranks > 1:
        torch.distributed.destroy_process_group()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for option, (default, _) in OPTIONS.items():
        parser.add_argument(f"--{option}", type=int, default=default)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS)[:3], help="default: the first three")
    options = parser.parse_args(arguments)
    for option, (_, least) in OPTIONS.items():
        if getattr(options, option) < least:
            parser.error(f"argument --{option}: expected at least {least}, got {getattr(options, option)}")
    sizes, ranks = (options.labels, options.features, options.batch), options.ranks
    print("{:,} labels, {} features, batches of {}, {} steps".format(*sizes, options.steps))
    rows, status = [], REFUSED
    for way in dict.fromkeys(options.ways):
        if ranks > 1 and not WAYS[way].fused:
            print(f"{way}: left out: its labels cannot be sharded")
            continue
        needs, available = account(way, *sizes, ranks), available_memory()
        rows.append([way, *(f"{value / GB:.2f}" for value in needs.values()), "", "", ""])
        needed = ranks * (sum(needs.values()) + OVERHEAD)
        if needed > available:
            print(f"{way}: not begun: needs about {needed / GB:.1f} GB, {available / GB:.1f} GB are available")
            continue
        print(f"{way}: {WAYS[way].description}")
        try:
            result = run_apart(way, (*sizes, options.steps), ranks)
        except KeyboardInterrupt:
            print("\nInterrupted.", file=sys.stderr)
            status = INTERRUPTED
            break
        except (ProcessExitedException, ProcessRaisedException) as error:
            killed = getattr(error, "exit_code", 0) == -9
            reason = "was killed; the memory did not suffice?" if killed else str(error).strip().splitlines()[-1]
            print(f"{way}: {reason}", file=sys.stderr)
            status = FAILED
            continue
        rows[-1][-3:] = f"{result['peak'] / GB:.2f}", f"{result['seconds']:.2f}", f"{result['loss']:.3g}"
        status = 0 if status == REFUSED else status
    print("\nMemory in GB: what each way holds at its peak, computed, and the process's high-water mark.")
    print(tabulate(rows, COLUMNS, tablefmt="plain", disable_numparse=True, stralign="right"))
    return status


if __name__ == "__main__":
    sys.exit(main())
