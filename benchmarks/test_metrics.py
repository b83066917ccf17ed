"""Ranking metrics, average precision and F1: time and peak memory beside scikit-learn's and torchmetrics'.

    pytest benchmarks/test_metrics.py -s [--full]

Each contestant runs in a process of its own, on the same logits and targets, which exist before the clock starts. Ours
and torchmetrics' get batches, scikit-learn's the whole arrays. A contestant that wants more than SECONDS or MOST_BYTES
is absent, with the reason.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from contest import quantiles
from records import new_record
from torch import Tensor

from fused_balanced_loss import SparseTargets
from fused_balanced_loss import metrics as ours

FULL, QUICK = (10_000, 18_211), (500, 2_000)
BATCH, LABELS_A_SAMPLE, K = 500, 13, 5
SECONDS = 900
# A contestant that wants more must not take the machine's memory from others.
MOST_BYTES = 16 << 30


class Data(NamedTuple):
    """logits: [N, C]. ids: int64 [N, 13], the labels of each sample, ascending."""

    logits: Tensor
    ids: Tensor

    def batches(self, targets_of: Callable[[Tensor], Any]) -> Any:
        for start in range(0, len(self.logits), BATCH):
            yield self.logits[start : start + BATCH], targets_of(self.ids[start : start + BATCH])

    def sparse(self, ids: Tensor) -> SparseTargets:
        crow = torch.arange(0, ids.numel() + 1, LABELS_A_SAMPLE)
        return SparseTargets(crow, ids.flatten(), self.logits.shape[1], check=False)

    def dense(self, ids: Tensor) -> Tensor:
        return torch.zeros(len(ids), self.logits.shape[1], dtype=torch.int64).scatter_(1, ids, 1)


def make_data(num_rows: int, num_labels: int) -> Data:
    """Labels as rare as in a corpus with a long tail; most of them get larger logits than the other labels."""
    generator = torch.Generator().manual_seed(0)
    frequency = torch.arange(1, num_labels + 1).double().reciprocal()
    logits, ids = torch.empty(num_rows, num_labels), torch.empty(num_rows, LABELS_A_SAMPLE, dtype=torch.int64)
    for start in range(0, num_rows, BATCH):
        part = logits[start : start + BATCH].normal_(generator=generator).mul_(1.5).sub_(7)
        own = torch.multinomial(frequency.expand(len(part), -1), LABELS_A_SAMPLE, generator=generator).sort().values
        part.scatter_add_(1, own, torch.full(own.shape, 5.0))
        ids[start : start + BATCH] = own
    return Data(logits, ids)


def stream(metric: Any, data: Data) -> Any:
    for logits, targets in data.batches(data.sparse):
        metric.update(logits, targets)
    return metric


def torchmetrics_of(name: str, data: Data, probability: bool = False, **arguments: Any) -> Any:
    """A metric of torchmetrics.classification, updated by batches of int64 targets, as it asks for."""
    metric = getattr(importlib.import_module("torchmetrics.classification"), name)(
        num_labels=data.logits.shape[1], validate_args=False, **arguments
    )
    for logits, targets in data.batches(data.dense):
        metric.update(torch.sigmoid(logits) if probability else logits, targets)
    return metric.compute()


def torchmetrics_label_precision(data: Data) -> float:
    found = torchmetrics_of("MultilabelAveragePrecision", data, average="none")
    # Labels that no sample carries get 0 there.
    return float(found[data.ids.unique()].mean())


def retrieval_of(name: str, data: Data) -> float:
    """A metric of torchmetrics.retrieval, whose queries are the samples."""
    metric = getattr(importlib.import_module("torchmetrics.retrieval"), name)(top_k=K)
    for number, (logits, targets) in enumerate(data.batches(data.dense)):
        rows = torch.arange(len(logits)) + number * BATCH
        # It fills up with zeros, which negative logits would stand behind.
        scores = torch.sigmoid(logits).flatten()
        metric.update(scores, targets.flatten(), indexes=rows.repeat_interleave(logits.shape[1]))
    return float(metric.compute())


def sklearn_of(name: str, data: Data, **arguments: Any) -> float:
    """A function of sklearn.metrics of the dense targets and the logits."""
    targets = data.dense(data.ids).to(torch.bool).numpy()
    return float(getattr(importlib.import_module("sklearn.metrics"), name)(targets, data.logits.numpy(), **arguments))


def sklearn_label_precision(data: Data) -> float:
    average_precision = importlib.import_module("sklearn.metrics").average_precision_score
    targets, logits = data.dense(data.ids).to(torch.bool).numpy(), data.logits.numpy()
    some = targets.any(0)
    return float(np.mean([average_precision(targets[:, k], logits[:, k]) for k in np.flatnonzero(some)]))


def sklearn_f1(data: Data) -> float:
    csr = importlib.import_module("scipy.sparse").csr_array
    targets, predicted = (csr(part.numpy()) for part in (data.dense(data.ids) > 0, torch.sigmoid(data.logits) > 0.5))
    f1_score = importlib.import_module("sklearn.metrics").f1_score
    return float(f1_score(targets, predicted, average="micro", zero_division=0))


def our_ranking(data: Data) -> Any:
    return stream(ours.RankingMetrics(data.logits.shape[1], [K]), data)


# By metric: the contestants, ours first, as functions from the data to the metric's value.
METRICS: dict[str, dict[str, Callable[[Data], float]]] = {
    f"P@{K}": {
        "ours": lambda data: our_ranking(data).precision()[K],
        "torchmetrics RetrievalPrecision": lambda data: retrieval_of("RetrievalPrecision", data),
    },
    f"nDCG@{K}": {
        "ours": lambda data: our_ranking(data).ndcg()[K],
        "scikit-learn ndcg_score": lambda data: sklearn_of("ndcg_score", data, k=K, ignore_ties=True),
        "torchmetrics RetrievalNormalizedDCG": lambda data: retrieval_of("RetrievalNormalizedDCG", data),
    },
    "average precision of samples": {
        "ours": lambda data: stream(ours.SampleAveragePrecision(data.logits.shape[1]), data).value(),
        "scikit-learn": lambda data: sklearn_of("label_ranking_average_precision_score", data),
        "torchmetrics": lambda data: float(torchmetrics_of("MultilabelRankingAveragePrecision", data)),
    },
    "average precision of labels": {
        "ours, 256 bins": lambda data: stream(ours.LabelAveragePrecision(data.logits.shape[1]), data).macro(),
        "scikit-learn, exact": sklearn_label_precision,
        "torchmetrics, exact": torchmetrics_label_precision,
    },
    "micro-F1 at 0.5": {
        "ours": lambda data: float(stream(ours.ThresholdedF1(data.logits.shape[1], [0.5]), data).micro()[0]),
        "scikit-learn, CSR": sklearn_f1,
        "torchmetrics": lambda data: float(torchmetrics_of("MultilabelF1Score", data, True, average="micro")),
    },
}
# How far the values may be apart. The bins of the logit leave the order within a bin open.
TOLERANCE = {"average precision of labels": 0.02}


def memory(field: str) -> int:
    """Bytes that the system counts for this process. field: "VmRSS" for now, "VmHWM" for the peak."""
    return 1024 * int(Path("/proc/self/status").read_text().split(f"{field}:")[1].split()[0])


def measure(metric: str, name: str, num_rows: int, num_labels: int, rounds: int) -> None:
    """Prints value, seconds of each round, and the peak memory beyond the data, as JSON."""
    resource.setrlimit(resource.RLIMIT_DATA, (MOST_BYTES, MOST_BYTES))
    data, run = make_data(num_rows, num_labels), METRICS[metric][name]
    # What a first call imports and sets up does not count.
    run(make_data(BATCH, 40))
    with contextlib.suppress(OSError):
        # Sets the peak back to what the process has now.
        Path("/proc/self/clear_refs").write_text("5")
    before, times, value = memory("VmRSS"), [], 0.0
    for _ in range(rounds):
        start = time.perf_counter()
        value = run(data)
        times.append(time.perf_counter() - start)
    print(json.dumps({"value": value, "times": times, "peak_bytes": max(0, memory("VmHWM") - before)}))


def measured(metric: str, name: str, size: tuple[int, int], rounds: int) -> dict[str, Any] | str:
    """What ``measure`` prints in a process of its own; a string says why there is nothing."""
    arguments = (metric, name, *size, rounds)
    code = f"import sys; sys.path.insert(0, 'benchmarks'); import test_metrics as b; b.measure(*{arguments!r})"
    try:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return f"more than {SECONDS} s"
    if done.returncode:
        return (done.stderr.strip().splitlines() or [f"ended by signal {-done.returncode}"])[-1][:150]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="asks Linux for the peak")
@pytest.mark.parametrize("metric", METRICS)
def test_metric(metric, keep, full):
    size = FULL if full else QUICK
    contestants, absent, values = {}, {}, {}
    for name in METRICS[metric]:
        found = measured(metric, name, size, 3 if name.startswith("ours") else 1)
        if isinstance(found, str):
            absent[name] = found
            continue
        values[name] = found["value"]
        seconds = quantiles(found["times"])
        contestants[name] = {"seconds": seconds, "peak_bytes": found["peak_bytes"], "same_work": True}
    settings = {"operation": "metrics", "rows": size[0], "labels": size[1], "variant": metric}
    record = new_record(settings, contestants=contestants, absent=absent, floor=None)
    for package in ("scikit-learn", "torchmetrics"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            record["versions"][package] = importlib.metadata.version(package)
    keep(record)
    own = next(iter(METRICS[metric]))
    assert own in values, absent[own]
    assert values == pytest.approx(dict.fromkeys(values, values[own]), abs=TOLERANCE.get(metric, 1e-5))
