"""F1 at 21 thresholds: time against scikit-learn's f1_score, which is called once for each threshold; and peak memory.

    pytest benchmarks/test_thresholded_f1.py -s [--full]

scikit-learn is timed at three of the thresholds and its time multiplied by seven, since all 21 would take minutes. It
gets finished probabilities, with predictions and targets once as dense bool and once as CSR matrices, and computes
micro-F1 only; ours starts from logits and computes micro- and macro-F1.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from contest import quantiles
from records import new_record

from fused_balanced_loss import SparseTargets
from fused_balanced_loss.metrics import PAPER_THRESHOLDS, ThresholdedF1

NUM_ROWS, QUICK_ROWS, NUM_LABELS, BATCH = 10_000, 2_000, 18_211, 500
SAMPLED = [0, 10, 20]


def batches(num_rows=NUM_ROWS):
    """Batches of logits and targets: 13 labels an instance, of which two thirds get a probability above one half."""
    generator = torch.Generator().manual_seed(0)
    frequency = torch.arange(1, NUM_LABELS + 1).double().reciprocal()
    for _ in range(0, num_rows, BATCH):
        logits = torch.randn(BATCH, NUM_LABELS, generator=generator) * 1.5 - 7
        labels = torch.multinomial(frequency.expand(BATCH, -1), 13, generator=generator).sort().values
        logits.scatter_add_(1, labels, torch.full(labels.shape, 7.5))
        yield logits, SparseTargets(torch.arange(0, 13 * BATCH + 1, 13), labels.flatten(), NUM_LABELS)


def score(stream):
    f1 = ThresholdedF1(NUM_LABELS)
    for logits, targets in stream:
        f1.update(logits, targets)
    return f1.micro(), f1.macro()


def test_time_against_sklearn(keep, full):
    sklearn_metrics = pytest.importorskip("sklearn.metrics")
    sparse = pytest.importorskip("scipy.sparse")
    num_rows = NUM_ROWS if full else QUICK_ROWS
    stream = list(batches(num_rows))
    score(stream[:1])
    times = []
    for _ in range(3):
        start = time.perf_counter()
        micro, macro = score(stream)
        times.append(time.perf_counter() - start)
    ours = sorted(times)[1]
    probabilities = np.concatenate([torch.sigmoid(logits).numpy() for logits, _ in stream])
    dense_targets = np.concatenate([targets.to_dense(torch.bool).numpy() for _, targets in stream])
    forms = {"dense": np.asarray, "CSR": sparse.csr_array}
    ratios, found_times = {}, {"ours, micro and macro": {"seconds": quantiles(times), "same_work": True}}
    print(f"\nours, micro and macro at {len(PAPER_THRESHOLDS)} thresholds: {ours:.2f} s")
    for name, form in forms.items():
        targets, found = form(dense_targets), []
        start = time.perf_counter()
        for at in SAMPLED:
            predictions = form(probabilities > PAPER_THRESHOLDS[at])
            found.append(sklearn_metrics.f1_score(targets, predictions, average="micro", zero_division=0))
        theirs = (time.perf_counter() - start) * len(PAPER_THRESHOLDS) / len(SAMPLED)
        ratios[name] = theirs / ours
        found_times[f"scikit-learn, {name}, micro"] = {"seconds": quantiles([theirs]), "same_work": False}
        print(f"scikit-learn, {name}: {theirs:.1f} s, ratio {ratios[name]:.1f}")
        assert found == micro[SAMPLED].tolist()
    settings = {"operation": "metrics", "rows": num_rows, "labels": NUM_LABELS, "variant": "F1 at 21 thresholds"}
    keep(new_record(settings, contestants=found_times, absent={}, floor=None))
    expected = sklearn_metrics.f1_score(targets, predictions, average="macro", zero_division=0)
    assert macro[SAMPLED[-1]] == expected
    assert min(ratios.values()) >= 5


def memory(field):
    """GB that the system counts for this process. field: "VmRSS" for now, "VmHWM" for the peak."""
    return int(Path("/proc/self/status").read_text().split(f"{field}:")[1].split()[0]) / 1e6


def show_streamed():
    before = memory("VmRSS")
    score(batches())
    print(before, memory("VmHWM"))


def show_one_update():
    logits, columns = torch.empty(NUM_ROWS, NUM_LABELS), []
    for at, (part, targets) in enumerate(batches()):
        logits[at * BATCH : (at + 1) * BATCH] = part
        columns.append(targets.col)
    whole = SparseTargets(torch.arange(0, 13 * NUM_ROWS + 1, 13), torch.cat(columns), NUM_LABELS)
    before = memory("VmHWM")
    score([(logits, whole)])
    print(before, memory("VmHWM"))


@pytest.mark.full
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="asks Linux for the peak")
@pytest.mark.parametrize("how", ["streamed", "one_update"])
def test_peak_memory(how):
    """The peak of a process of its own, with all that it imports."""
    code = f"import sys; sys.path.insert(0, 'benchmarks'); import test_thresholded_f1 as b; b.show_{how}()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=600)
    before, peak = map(float, done.stdout.split())
    print(f"\n{how}: peak {peak:.2f} GB, before scoring {before:.2f} GB")
    # All logits together would be 0.73 GB.
    assert (peak if how == "streamed" else peak - before) < (1 if how == "streamed" else 0.2)
