"""Mean average precision against scikit-learn and loops."""

import math

import numpy as np
import pytest
import torch

from fused_balanced_loss import SparseTargets, thresholding
from fused_balanced_loss.metrics import LabelAveragePrecision, SampleAveragePrecision, average_precision

sklearn_metrics = pytest.importorskip("sklearn.metrics")
average_precision_score = sklearn_metrics.average_precision_score
label_ranking_average_precision_score = sklearn_metrics.label_ranking_average_precision_score


def problem(num_rows=80, num_labels=12, seed=0, dtype=torch.float32, ties=False):
    generator = torch.Generator().manual_seed(seed)
    targets = torch.rand(num_rows, num_labels, generator=generator) < 0.25
    targets[3], targets[5], targets[:, -1] = False, True, False
    logits = 2 * torch.randn(num_rows, num_labels, generator=generator) + targets - 1
    return (logits.round() if ties else logits).to(dtype), targets


def counted(metric, logits, targets, size=7):
    for part in zip(torch.split(logits, size), torch.split(targets, size), strict=True):
        metric.update(*part)
    return metric


@pytest.mark.parametrize("chunk", [1, 40, 2**20])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("ties", [False, True])
def test_of_samples_equals_sklearn(monkeypatch, ties, dtype, chunk):
    monkeypatch.setattr(thresholding, "CHUNK", chunk)
    logits, targets = problem(dtype=dtype, ties=ties)
    some = targets.any(1)
    expected = label_ranking_average_precision_score(targets[some].numpy(), logits[some].double().numpy())
    metric = counted(SampleAveragePrecision(12), logits, targets)
    assert metric.value() == pytest.approx(expected, rel=1e-6)
    assert (metric.num_samples, int(metric.state_dict()["num_with_labels"])) == (80, int(some.sum()))


def test_of_samples_with_infinite_logits():
    logits = torch.tensor([[math.inf, math.inf, 0.0, -math.inf], [-math.inf, -math.inf, 1.0, math.inf]])
    targets = torch.tensor([[1, 0, 0, 1], [1, 0, 1, 0]])
    metric = SampleAveragePrecision(4)
    metric.update(logits, targets)
    # Row 0: 1 of 2 labels at infinity, then 2 of 4. Row 1: 1 of 2, then 2 of 4.
    assert metric.value() == 0.5


def binned(logits, num_bins, low, high):
    inner = np.floor((logits.numpy() - np.float32(low)) * np.float32((num_bins - 2) / (high - low)))
    return np.clip(inner, -1, num_bins - 2)


@pytest.mark.parametrize(("num_bins", "low", "high"), [(3, -1, 1), (16, -4, 4), (256, -12, 12), (1000, -2, 2)])
def test_of_labels_equals_sklearn_of_the_bins(num_bins, low, high):
    logits, targets = problem()
    metric = counted(LabelAveragePrecision(12, num_bins, low=low, high=high), logits, targets)
    bins, truth = binned(logits, num_bins, low, high), targets.numpy()
    expected = [average_precision_score(truth[:, label], bins[:, label]) for label in range(11)]
    by_label = metric.by_label()
    assert by_label[:11] == pytest.approx(expected, rel=1e-12)
    assert np.isnan(by_label[11])
    assert metric.macro() == pytest.approx(np.mean(expected), rel=1e-12)
    assert metric.micro() == pytest.approx(average_precision_score(truth.ravel(), bins.ravel()), rel=1e-12)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("num_bins", [3, 8, 64, 4096])
def test_the_exact_value_is_within_the_bounds(num_bins, ties):
    widths = []
    for seed in range(5):
        logits, targets = problem(seed=seed, ties=ties)
        metric = counted(LabelAveragePrecision(12, num_bins, low=-5.01, high=5.02), logits, targets)
        exact = average_precision_score(targets[:, :11].numpy(), logits[:, :11].numpy(), average="macro")
        low, high = metric.bounds()
        assert low - 1e-9 <= exact <= high + 1e-9
        assert low - 1e-9 <= metric.macro() <= high + 1e-9
        widths.append(high - low)
    if num_bins == 4096 and not ties:
        assert max(widths) < 0.01


def test_labels_are_read_in_parts(monkeypatch):
    metric = counted(LabelAveragePrecision(12, 64), *problem())
    expected = metric.by_label(), metric.bounds()
    monkeypatch.setattr(average_precision, "CHUNK", 8 * 64 * 5)
    np.testing.assert_array_equal(metric.by_label(), expected[0])
    assert metric.bounds() == expected[1]


def test_the_lower_bound_is_the_worst_order():
    """One bin holds everything: 2 samples with the label after 3 without."""
    metric = LabelAveragePrecision(1, 3, low=-9, high=9)
    metric.update(torch.zeros(5, 1), torch.tensor([[0], [1], [0], [1], [0]]))
    assert metric.bounds() == pytest.approx(((1 / 4 + 2 / 5) / 2, 1.0), rel=1e-12)
    assert metric.macro() == pytest.approx(2 / 5)


def test_infinite_logits_are_in_the_outer_bins():
    metric = LabelAveragePrecision(2, 5)
    metric.update(torch.tensor([[math.inf, -math.inf], [-math.inf, math.inf]]), torch.eye(2))
    assert metric.by_label().tolist() == [1.0, 1.0]


@pytest.mark.parametrize("make", [SampleAveragePrecision, LabelAveragePrecision])
def test_forms_of_targets_merge_and_state(tmp_path, make):
    def value(metric):
        return metric.value() if make is SampleAveragePrecision else metric.macro()

    logits, targets = problem()
    expected = value(counted(make(12), logits, targets))
    sparse = SparseTargets.from_dense(targets)
    for form in (targets.float(), sparse, sparse.to_scipy(), sparse.to_lists()):
        metric = make(12)
        metric.update(logits.t().contiguous().t(), form)
        assert value(metric) == pytest.approx(expected, rel=1e-6)
    first, second = (counted(make(12), logits[part], targets[part]) for part in (slice(30), slice(30, 80)))
    torch.save(first.state_dict(), tmp_path / "state")
    first.merge(second)
    assert value(first) == pytest.approx(expected, rel=1e-12)
    second.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    second.update(logits[30:], targets[30:])
    assert value(second) == pytest.approx(expected, rel=1e-6)
    second.reset()
    with pytest.raises(RuntimeError, match="no sample was counted yet"):
        value(second)
    second.update(logits[:0], targets[:0])
    second.update(logits[:2], torch.zeros(2, 12))
    assert value(second) == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: SampleAveragePrecision(0), "num_labels: expected an integer >= 1, got 0"),
        (lambda: LabelAveragePrecision(3, 2), "num_bins: expected an integer >= 3, got 2"),
        (lambda: LabelAveragePrecision(3, low=1, high=1), "high: expected more than low = 1.0, got 1.0"),
        (lambda: LabelAveragePrecision(3, low=math.nan), "low: expected a finite number, got nan"),
        (lambda: SampleAveragePrecision(3).update(torch.zeros(1, 4), torch.zeros(1, 4)), r"logits: expected \[n, 3\]"),
        (lambda: LabelAveragePrecision(3).update(torch.zeros(1, 3), torch.zeros(2, 3)), "targets: expected 1 rows"),
        (
            lambda: LabelAveragePrecision(3).merge(LabelAveragePrecision(3, 9)),
            "other: expected the num_bins 256, got 9",
        ),
        (lambda: SampleAveragePrecision(3).merge(SampleAveragePrecision(4)), "other: expected the num_labels 3, got 4"),
        (lambda: SampleAveragePrecision(3).merge(LabelAveragePrecision(3)), "other: expected a SampleAveragePrecision"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call()
