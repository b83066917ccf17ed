"""How long a training step of a sharded classifier should take: a model of bytes, operations and messages.

    python benchmarks/scaling_model.py                    # 10 million labels on 8 GPUs, 100 million on 64, and the plot
    python benchmarks/scaling_model.py --measure          # the same model against steps measured on this machine

The model covers classifier and loss with the update in the backward (``SGDUpdate``, ``AdamWUpdate``), without the
encoder. *Not yet measured on a GPU.* A step has two passes. The forward computes the loss. The backward makes the
logits again, then their gradient and the gradients of features and weight, and changes the weight. ``floor`` assumes
that the data of a chunk stay in the cache, that compute, memory and network overlap perfectly (it is their maximum),
and that launches take no time. ``sum`` assumes that nothing overlaps, and on a GPU that the weights of a chunk come
from memory for each of its products: chunks are far larger than its cache.

Defaults: NVIDIA's data sheet of the H200 (bf16 989 TFLOPS dense, 141 GB, NVLink 900 GB/s both ways together), a copy at
4.3 TB/s, and 30 instructions an element (benchmarks/results/static.md) at the rate of ``hardware.py``. Assumed: 50 GB/s
and 10 us a message between nodes, 2.5 us a launch. ``classifier_model.py`` models one GPU kernel by kernel.
"""

from __future__ import annotations

import argparse
import math
import os
from pathlib import Path
from typing import NamedTuple

from classifier_model import UPDATE_CHUNK_BYTES, Classifier
from hardware import GPUS
from time_model import ASSUMED

STATE_BYTES = {"sgd": 0, "adamw-row": 2, "adamw-bfloat16": 4, "adamw-float32": 8}
# Bytes a label that every rank holds for all labels: the counts' buffer, bias, 1/n, and the counts in float64.
STATISTICS_BYTES = 8 + 4 + 4 + 8
# Launches of a chunk: logits and loss in the forward; the same again in the backward, with three gradients (that of the
# features in two parts) and the update.
LAUNCHES = 3 + 8
# Labels, features and rows of the steps that --measure takes.
POINTS = ((18_211, 768, 32), (18_211, 768, 256), (65_536, 256, 128), (131_072, 768, 32))


class Hardware(NamedTuple):
    """The rates of a GPU and its links.

    flops: operations a second. memory: bytes a second. elements: logits whose loss and gradient are computed, a second.
    link, network: bytes a second within and between nodes. latency: seconds a message. node: GPUs of a node. launch:
    seconds of a launch. chunk_bytes: of a chunk's weights, or of its logits. cached: 1 where a chunk fits the cache.
    """

    flops: float = 989e12
    memory: float = 4.3e12
    elements: float = GPUS["H200"].processors * GPUS["H200"].clock * 128 / 30
    link: float = 450e9
    network: float = 50e9
    latency: float = 10e-6
    node: int = 8
    launch: float = ASSUMED.launch
    chunk_bytes: int = UPDATE_CHUNK_BYTES
    cached: int = 0


class Step(NamedTuple):
    """A training step of ``ranks`` GPUs that share a batch.

    weight_bytes: bytes of one weight. state: what the optimizer keeps, a name of STATE_BYTES.
    """

    num_labels: int
    num_features: int = 768
    num_rows: int = 1024
    ranks: int = 1
    weight_bytes: int = 2
    state: str = "adamw-row"

    @property
    def weights(self) -> int:
        """The number of weights on the fullest rank."""
        return -(-self.num_labels // self.ranks) * self.num_features

    def chunk(self, chunk_bytes: int) -> tuple[int, int]:
        """Labels of a chunk on the fullest rank, and the number of its chunks."""
        labels = -(-self.num_labels // self.ranks)
        return Classifier(self.num_rows, labels, self.num_features, self.weight_bytes).chunks(chunk_bytes)


def seconds(step: Step, hardware: Hardware) -> dict[str, float]:
    """Seconds of the parts of a step on the fullest rank, and their ``floor`` and ``sum``."""
    # Four products of 2 operations each: the logits twice, the gradients of features and of weight.
    compute = 8 * step.num_rows * step.weights / hardware.flops
    element = 2 * step.num_rows * step.weights / step.num_features / hardware.elements
    # A step reads the weights twice and writes them once; it reads and writes the state.
    least = step.weights * (3 * step.weight_bytes + 2 * STATE_BYTES[step.state]) / hardware.memory
    memory = least
    if not hardware.cached:
        # The weights are read for three products and for the update, and their gradient, float32, is written and read.
        memory += step.weights * (2 * step.weight_bytes + 8) / hardware.memory
    launches = LAUNCHES * step.chunk(hardware.chunk_bytes)[1] * hardware.launch
    message = 4 * step.num_rows * step.num_features * 2 * (step.ranks - 1) / step.ranks
    bandwidth = hardware.link if step.ranks <= hardware.node else hardware.network
    hops = 2 * 2 * math.ceil(math.log2(step.ranks)) if step.ranks > 1 else 0
    network = message / bandwidth + hops * hardware.latency
    parts = {"products": compute, "loss": element, "memory": memory, "launches": launches, "network": network}
    return parts | {"floor": max(compute + element, least, network), "sum": sum(parts.values())}


def memory_bytes(step: Step) -> dict[str, float]:
    """The bytes of what a rank holds, and their ``total``."""
    rows = step.weights / step.num_features
    chunk = step.chunk(UPDATE_CHUNK_BYTES)[0]
    parts = {
        "weights": step.weights * step.weight_bytes + rows * step.weight_bytes,
        "optimizer": step.weights * STATE_BYTES[step.state] + 12 * rows * (step.state != "sgd"),
        "statistics": float(STATISTICS_BYTES * step.num_labels),
        "chunk": float(chunk) * (step.num_rows * step.weight_bytes + 4 * step.num_features),
        "features": float(step.num_rows * step.num_features * (step.weight_bytes + 4 + 4)),
    }
    return parts | {"total": sum(parts.values())}


def describe(step: Step, hardware: Hardware) -> str:
    time_parts, memory_parts = seconds(step, hardware), memory_bytes(step)
    lines = [
        f"{step.num_labels:,} labels, D = {step.num_features}, batch {step.num_rows}, {step.ranks} ranks, {step.state}"
    ]
    lines.append("  ms:  " + ", ".join(f"{name} {1e3 * value:.2f}" for name, value in time_parts.items()))
    lines.append("  GB:  " + ", ".join(f"{name} {value / 1e9:.2f}" for name, value in memory_parts.items()))
    return "\n".join(lines)


def measure() -> None:
    """Prints the model at this machine's rates beside measured steps: float32, one rank, update in the backward."""
    import torch
    from environment import copy_bandwidth, matmul_rate, median_seconds

    from fused_balanced_loss import (
        AdamWUpdate,
        LabelStatistics,
        LinearBalancedLoss,
        LossSpec,
        SGDUpdate,
        SparseTargets,
        balanced_loss,
    )

    spec = LossSpec.preset("DB", corpus="reuters")
    updates = {
        "sgd": lambda: SGDUpdate(1e-3),
        "adamw-row": lambda: AdamWUpdate(1e-3, state="row"),
        "adamw-float32": lambda: AdamWUpdate(1e-3),
    }

    def problem(labels: int, rows: int) -> tuple[LabelStatistics, SparseTargets]:
        statistics = LabelStatistics.from_counts(torch.randint(1, 900, (labels,)), 1000)
        return statistics, SparseTargets.from_lists([range(12)] * rows, labels)

    # About as many logits as a chunk has, so that they stay in the cache.
    statistics, targets = problem(4096, 64)
    logits = torch.randn(64, 4096).requires_grad_()
    loss_seconds = median_seconds(lambda: balanced_loss(logits, targets, spec, statistics))
    hardware = Hardware(matmul_rate(torch.float32), copy_bandwidth(), logits.numel() / loss_seconds, launch=0, cached=1)
    print(
        f"calibrated: {hardware.flops / 1e9:.0f} GFLOP/s, copy {hardware.memory / 1e9:.1f} GB/s, "
        f"{hardware.elements / 1e9:.2f} logits/ns"
    )
    for labels, width, rows in POINTS:
        statistics, targets = problem(labels, rows)
        features = torch.randn(rows, width).requires_grad_()
        for state, make in updates.items():
            loss = LinearBalancedLoss(spec, statistics, width, update=make())

            def step(loss=loss, features=features, targets=targets) -> None:
                features.grad = None
                loss(features, targets).backward()

            measured = median_seconds(step, 7)
            model = seconds(Step(labels, width, rows, 1, 4, state), hardware)
            print(
                f"{labels:>8,} x {width}, batch {rows:>3}, {state:13}: measured {1e3 * measured:6.1f} ms, model "
                f"{1e3 * model['floor']:6.1f} to {1e3 * model['sum']:6.1f}, over its sum {measured / model['sum']:.2f}",
                flush=True,
            )


def plot(path: Path, base: Step, hardware: Hardware) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    sizes = [int(10 ** (5 + power / 8)) for power in range(33)]
    for ranks in (1, 8, 64):
        steps = [base._replace(num_labels=size, ranks=ranks) for size in sizes]
        low, high = ([1e3 * seconds(step, hardware)[name] for step in steps] for name in ("floor", "sum"))
        (line,) = left.plot(sizes, low, label=f"{ranks} GPUs")
        left.fill_between(sizes, low, high, alpha=0.25, color=line.get_color())
        right.plot(sizes, [memory_bytes(step)["total"] / 1e9 for step in steps], color=line.get_color())
    right.axhline(141, color="gray", linestyle=":", label="an H200's 141 GB")
    left.set(xscale="log", yscale="log", xlabel="labels", ylabel="ms a step, perfect overlap to none")
    right.set(xscale="log", yscale="log", xlabel="labels", ylabel="GB a GPU")
    left.legend(fontsize=8)
    right.legend(fontsize=8)
    figure.suptitle(
        f"A model, not measured on a GPU: D = {base.num_features}, batch {base.num_rows}, {base.state}",
        fontsize=10,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.png")
    figure.savefig(temporary, dpi=130)
    os.replace(temporary, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", action="store_true", help="compare with steps measured on this machine")
    parser.add_argument("--features", type=int, default=768)
    parser.add_argument("--batch", type=int, default=1024, help="rows of the batch that all ranks share")
    parser.add_argument("--state", choices=STATE_BYTES, default="adamw-row")
    for name, value in Hardware()._asdict().items():
        parser.add_argument(f"--{name}", type=type(value), default=value, help=f"default: {value:.4g}")
    parser.add_argument("--plot", type=Path, default=Path(__file__).parent / "results" / "scaling_model.png")
    options = parser.parse_args()
    if options.measure:
        return measure()
    hardware = Hardware(**{name: getattr(options, name) for name in Hardware._fields})
    base = Step(1, options.features, options.batch, state=options.state)
    for labels, ranks in ((10_000_000, 8), (100_000_000, 64)):
        print(describe(base._replace(num_labels=labels, ranks=ranks), hardware))
    plot(options.plot, base, hardware)


if __name__ == "__main__":
    main()
