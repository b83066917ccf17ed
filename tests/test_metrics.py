"""F1 at many thresholds against scikit-learn's, to the last bit."""

from __future__ import annotations

import csv
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fused_balanced_loss import LabelStatistics, SparseTargets, thresholding
from fused_balanced_loss.metrics import (
    PAPER_THRESHOLDS,
    ThresholdedF1,
    label_report,
    predict_labels,
    threshold_grid,
    thresholded_f1,
    write_label_report,
)

sklearn_metrics = pytest.importorskip("sklearn.metrics")
f1_score, precision_recall_fscore_support = sklearn_metrics.f1_score, sklearn_metrics.precision_recall_fscore_support


def problem(num_rows=60, num_labels=25, seed=0, dtype=torch.float32, spread=2.0, shift=-1.0):
    generator = torch.Generator().manual_seed(seed)
    logits = (torch.randn(num_rows, num_labels, generator=generator) * spread + shift).to(dtype)
    targets = torch.rand(num_rows, num_labels, generator=generator) < 0.15
    targets[:, -1] = False
    return logits, targets


def probabilities_of(logits):
    return torch.sigmoid(logits.float()).numpy()


def sklearn_f1(probabilities, targets, threshold, average):
    predictions, targets = probabilities > np.float64(threshold), np.asarray(targets)
    if not predictions.size:
        return 0.0
    # A single column would be read as a binary task, whose averages are over the two classes.
    if predictions.shape[1] == 1:
        return f1_score(targets[:, 0], predictions[:, 0], zero_division=0)
    return f1_score(targets, predictions, average=average, zero_division=0)


def counted(logits, targets, sizes=None, **arguments):
    f1 = ThresholdedF1(logits.shape[1], **arguments)
    for part in zip(torch.split(logits, sizes or len(logits)), torch.split(targets, sizes or len(logits)), strict=True):
        f1.update(*part)
    return f1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shift", [-6.0, -1.0, 4.0], ids=["few", "some", "nearly all"])
def test_equals_sklearn_bit_for_bit(dtype, shift):
    logits, targets = problem(dtype=dtype, shift=shift)
    # Batches of whole vectors of the CPU: torch's sigmoid may differ by a bit of float32 at the end of a tensor.
    f1 = counted(logits, targets, sizes=32)
    probabilities = probabilities_of(logits)
    for at, threshold in enumerate(PAPER_THRESHOLDS):
        assert f1.micro()[at] == sklearn_f1(probabilities, targets, threshold, "micro")
        assert f1.macro()[at] == sklearn_f1(probabilities, targets, threshold, "macro")


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(st.data())
def test_any_problem_equals_sklearn(data):
    num_rows, num_labels = data.draw(st.integers(1, 12)), data.draw(st.integers(2, 9))
    thresholds = data.draw(st.lists(st.floats(0, 1), min_size=1, max_size=5))
    # Probabilities that meet a threshold, or miss it by a bit of float32, are what can go wrong.
    close = [float(torch.logit(torch.tensor(t, dtype=torch.float64))) for t in thresholds if 0 < t < 1]
    value = st.sampled_from([0.0, -np.inf, np.inf, *close]) | st.floats(-20, 20, width=32)
    logits = torch.tensor(
        data.draw(st.lists(value, min_size=num_rows * num_labels, max_size=num_rows * num_labels)), dtype=torch.float32
    ).view(num_rows, num_labels)
    targets = torch.tensor(
        data.draw(st.lists(st.booleans(), min_size=num_rows * num_labels, max_size=num_rows * num_labels))
    ).view(num_rows, num_labels)
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=num_labels, max_size=num_labels)))
    low = data.draw(st.integers(0, 3))
    high = data.draw(st.none() | st.integers(low, 5))
    f1 = counted(
        logits, targets, thresholds=thresholds, label_groups={"some": mask}, instance_groups={"few": (low, high)}
    )
    probabilities, targets = probabilities_of(logits), targets.numpy()
    size = targets.sum(1)
    rows = (size >= low) & (size <= (num_labels if high is None else high))
    for at, threshold in enumerate(thresholds):
        for average, ours in (("micro", f1.micro), ("macro", f1.macro)):
            assert ours()[at] == sklearn_f1(probabilities, targets, threshold, average)
            assert ours("some")[at] == sklearn_f1(probabilities[:, mask], targets[:, mask], threshold, average)
            assert ours(instances="few")[at] == sklearn_f1(probabilities[rows], targets[rows], threshold, average)


def test_probabilities_beside_a_threshold_are_told_apart():
    """float32(0.41) is below 0.41, float32(0.4) above: neither threshold is rounded."""
    for threshold in (0.4, 0.41, 0.5, 0.0, 1.0):
        nearest = np.float32(threshold)
        probabilities = np.array([np.nextafter(nearest, np.float32(-1)), nearest, np.nextafter(nearest, np.float32(2))])
        logits = torch.from_numpy(probabilities)[None]
        f1 = ThresholdedF1(3, [threshold], activation="none")
        f1.update(logits, torch.ones(1, 3))
        predicted = (probabilities > np.float64(threshold)).sum()
        assert f1.micro()[0] == 2 * predicted / (3 + predicted)
        assert len(predict_labels(logits, threshold, activation="none").col) == predicted


def test_a_probability_of_one_half_is_not_above_one_half():
    f1 = ThresholdedF1(2, [0.5])
    # The second's exact sigmoid is above 0.5, its float32 is 0.5.
    f1.update(torch.tensor([[0.0, 1e-8]]), torch.ones(1, 2))
    assert f1.micro()[0] == 0


def test_thresholds_in_any_order_and_twice():
    logits, targets = problem()
    thresholds = [0.6, 0.1, 0.6, 0.9, 0.0, 1.0]
    f1 = counted(logits, targets, thresholds=thresholds)
    assert f1.micro().tolist() == [sklearn_f1(probabilities_of(logits), targets, t, "micro") for t in thresholds]
    assert f1.micro()[0] == f1.micro()[2]


def test_best_is_the_lowest_of_equals():
    f1 = ThresholdedF1(2, [0.7, 0.5, 0.6, 0.9])
    f1.update(torch.logit(torch.tensor([[0.8, 0.2], [0.1, 0.75]])), torch.tensor([[1, 0], [0, 1]]))
    assert f1.best() == (0.5, 1.0, True)


def test_scores_by_label_group_and_by_instance_group():
    logits, targets = problem()
    targets[0] = False
    statistics = LabelStatistics.from_targets(targets, degenerate="ignore")
    groups = statistics.frequency_groups(head=11, tail=6)
    instances = {"none": (0, 0), "single": (1, 1), "multi": (2, None), "two to four": (2, 4)}
    f1 = counted(logits, targets, sizes=32, label_groups=groups, instance_groups=instances)
    threshold, probabilities = float(PAPER_THRESHOLDS[3]), probabilities_of(logits)
    scores = f1.scores(threshold)
    assert list(scores) == ["total", "head", "medium", "tail"]
    for name, mask in groups._asdict().items():
        for average in ("micro", "macro"):
            assert scores[name][average] == sklearn_f1(probabilities[:, mask], targets[:, mask], threshold, average)
    by_instance = f1.instance_scores(threshold)
    assert list(by_instance) == list(instances)
    size = targets.sum(1)
    for name, (low, high) in instances.items():
        rows = (size >= low) & (size <= (25 if high is None else high))
        assert rows.any()
        for average in ("micro", "macro"):
            assert by_instance[name][average] == sklearn_f1(probabilities[rows], targets[rows], threshold, average)
    assert (f1.label_groups, f1.instance_groups) == (("total", "head", "medium", "tail"), tuple(instances))


@pytest.mark.parametrize("chunk", [1, 26, 100, 2**20])
def test_chunks_and_strides_change_nothing(monkeypatch, chunk):
    monkeypatch.setattr(thresholding, "CHUNK", chunk)
    logits, targets = problem(shift=0.0)
    wide = torch.full((60, 40), float("nan"))
    wide[:, 7:32] = logits
    expected = [sklearn_f1(probabilities_of(logits), targets, t, "micro") for t in PAPER_THRESHOLDS]
    for given_logits in (logits, logits.t().contiguous().t(), wide[:, 7:32]):
        f1 = counted(given_logits, targets)
        assert f1.micro().tolist() == expected


def test_every_form_of_targets():
    logits, targets = problem()
    sparse = SparseTargets.from_dense(targets)
    forms = [targets, targets.float(), targets.byte().numpy(), sparse, sparse.to_scipy(), sparse.to_lists()]
    results = []
    for form in forms:
        f1 = ThresholdedF1(25)
        f1.update(logits, form)
        results.append(f1.macro())
    assert all(np.array_equal(results[0], other) for other in results[1:])


def test_empty_batches_and_no_batch():
    logits, targets = problem()
    f1 = ThresholdedF1(25)
    f1.update(logits[:0], targets[:0])
    with pytest.raises(RuntimeError, match="no sample"):
        f1.micro()
    f1.update(logits, targets)
    f1.update(logits[:0], SparseTargets.from_lists([], 25))
    assert f1.num_samples == 60
    assert np.array_equal(f1.micro(), counted(logits, targets).micro())
    for read in (ThresholdedF1(3).best, ThresholdedF1(3).macro, lambda: ThresholdedF1(3).scores(0.4)):
        with pytest.raises(RuntimeError, match="no sample"):
            read()


def test_groups_without_labels_or_instances_are_zero():
    logits, targets = problem()
    f1 = counted(
        logits, targets, label_groups={"none": torch.zeros(25, dtype=torch.bool)}, instance_groups={"many": (20, None)}
    )
    for values in (f1.micro("none"), f1.macro("none"), f1.micro(instances="many"), f1.macro(instances="many")):
        assert values.tolist() == [0.0] * 21


def test_merged_shares_are_the_whole():
    logits, targets = problem()
    arguments = {"instance_groups": {"single": (1, 1)}}
    whole = counted(logits, targets, **arguments)
    first, second = counted(logits[:20], targets[:20], **arguments), counted(logits[20:], targets[20:], **arguments)
    first.merge(second)
    assert first.num_samples == 60
    assert np.array_equal(first.macro(instances="single"), whole.macro(instances="single"))
    assert second.num_samples == 40


def test_state_goes_on_elsewhere(tmp_path):
    logits, targets = problem()
    first = counted(logits[:20], targets[:20])
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second = counted(logits[:5], targets[:5])
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    second.update(logits[20:], targets[20:])
    assert np.array_equal(second.macro(), counted(logits, targets).macro())
    assert first.num_samples == 20


def count_a_share(rank, store, path):
    logits, targets = problem()
    torch.distributed.init_process_group("gloo", store=torch.distributed.FileStore(store, 2), rank=rank, world_size=2)
    f1 = counted(logits[rank::2], targets[rank::2], instance_groups={"single": (1, 1)})
    f1.all_reduce()
    np.save(f"{path}{rank}.npy", np.stack((f1.micro(), f1.macro(instances="single"))))
    torch.distributed.destroy_process_group()


@pytest.mark.distributed
def test_all_reduce_sums_over_processes(tmp_path):
    paths = str(tmp_path / "store"), str(tmp_path / "f1-")
    torch.multiprocessing.spawn(count_a_share, paths, nprocs=2)
    f1 = counted(*problem(), instance_groups={"single": (1, 1)})
    for rank in range(2):
        assert np.array_equal(np.load(f"{paths[1]}{rank}.npy"), [f1.micro(), f1.macro(instances="single")])


def test_predicted_labels_are_those_counted():
    logits, targets = problem()
    predictions = predict_labels(torch.split(logits, 8), 0.43)
    assert predictions == SparseTargets.from_dense(torch.sigmoid(logits) > 0.43)
    assert predictions == predict_labels(logits, 0.43)
    hits = (predictions.to_dense().bool() & targets).sum()
    at = list(PAPER_THRESHOLDS).index(0.43)
    assert counted(logits, targets).micro()[at] == float(2 * hits / (len(predictions.col) + targets.sum()).double())
    with pytest.raises(ValueError, match="at least one batch"):
        predict_labels([], 0.5)
    with pytest.raises(ValueError, match=r"\[n, 25\]"):
        predict_labels([logits, logits[:, :3]], 0.5)


def test_a_refused_batch_is_not_counted(monkeypatch):
    monkeypatch.setattr(thresholding, "CHUNK", 30)
    logits, targets = problem()
    f1 = counted(logits, targets)
    before = f1.micro()
    logits[41, 7] = float("nan")
    with pytest.raises(ValueError, match=r"logits: .* NaN in row 41 for label 7"):
        f1.update(logits, targets)
    with pytest.raises(ValueError, match="targets: expected 0 or 1"):
        f1.update(logits[:40], targets[:40] * 2.0)
    assert np.array_equal(f1.micro(), before)
    assert f1.num_samples == 60


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_nan_is_seen_in_every_dtype(dtype):
    logits = torch.full((3, 5), -100.0, dtype=dtype)
    logits[2, 4] = float("nan")
    with pytest.raises(ValueError, match="NaN in row 2 for label 4"):
        ThresholdedF1(5).update(logits, torch.zeros(3, 5))


ONE = torch.zeros(1, 3)
UNCHECKED = SparseTargets(torch.tensor([0, 1]), torch.tensor([4]), 3, check=False)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ThresholdedF1(0), "num_labels: expected an integer >= 1, got 0"),
        (lambda: ThresholdedF1(2.5), "num_labels: .* got float 2.5"),
        (lambda: ThresholdedF1(True), "num_labels: .* got bool True"),
        (lambda: ThresholdedF1(2**70), "num_labels: expected an integer that fits into 64 bits"),
        (lambda: ThresholdedF1(3, []), r"thresholds: .* got shape \[0\]"),
        (lambda: ThresholdedF1(3, 0.5), r"thresholds: .* got shape \[\]"),
        (lambda: ThresholdedF1(3, [0.5, 1.5]), r"thresholds: expected numbers in \[0, 1\], got 1.5"),
        (lambda: ThresholdedF1(3, [float("nan")]), "thresholds: .* got nan"),
        (lambda: ThresholdedF1(3, ["high"]), "thresholds: expected numbers"),
        (lambda: ThresholdedF1(3, [float("inf")], activation="none"), "thresholds: .* got inf"),
        (lambda: ThresholdedF1(3, activation="softmax"), "activation: .* got 'softmax'"),
        (lambda: ThresholdedF1(3, label_groups={"head": [True]}), r"label_groups\['head'\]: expected bool \[3\]"),
        (lambda: ThresholdedF1(3, label_groups={"head": [0, 1, 1]}), r"label_groups\['head'\]: .* torch.int64"),
        (lambda: ThresholdedF1(3, label_groups={"total": [True, True, False]}), "expected all labels, got 2 of 3"),
        (lambda: ThresholdedF1(3, label_groups=[1]), "label_groups: expected a mapping .* got list"),
        (lambda: ThresholdedF1(3, instance_groups={"some": (3, 2)}), r"instance_groups\['some'\]: .* got \(3, 2\)"),
        (lambda: ThresholdedF1(3, instance_groups={"some": 3}), r"instance_groups\['some'\]: expected \(low, high\)"),
        (lambda: ThresholdedF1(3, instance_groups={"some": (1, 2.5)}), r"instance_groups\['some'\]: .* float 2.5"),
        (lambda: ThresholdedF1(3, instance_groups={"some": ("1", 2)}), r"instance_groups\['some'\]: .* str '1'"),
        (lambda: ThresholdedF1(3, instance_groups={"some": (True, 2)}), r"instance_groups\['some'\]: .* bool True"),
        (lambda: ThresholdedF1(3, instance_groups={"some": (1, 2**70)}), r"instance_groups\['some'\]: .* 64 bits"),
        (lambda: ThresholdedF1(3, instance_groups=3), "instance_groups: expected a mapping .* got int"),
        (lambda: ThresholdedF1(3).update(torch.zeros(1, 4), ONE), r"logits: expected \[n, 3\], got shape \[1, 4\]"),
        (lambda: ThresholdedF1(3).update(torch.zeros(3), ONE), r"logits: .* got shape \[3\]"),
        (lambda: ThresholdedF1(3).update(ONE.long(), ONE), "logits: .* got torch.int64"),
        (lambda: ThresholdedF1(3).update(ONE.numpy(), ONE), "logits: .* got ndarray"),
        (lambda: ThresholdedF1(3).update(ONE, torch.zeros(2, 3)), "targets: expected 1 rows, those of logits, got 2"),
        (lambda: ThresholdedF1(3).update(ONE, torch.zeros(1, 4)), "targets: expected 3 labels, got 4"),
        (lambda: ThresholdedF1(3).merge(ThresholdedF1(4)), "other: expected 3 labels, got 4"),
        (lambda: ThresholdedF1(3).merge(ThresholdedF1(3, [0.5])), "other: expected the thresholds"),
        (lambda: ThresholdedF1(3).merge(3), "other: expected a ThresholdedF1, got int"),
        (
            lambda: ThresholdedF1(3).merge(ThresholdedF1(3, instance_groups={"single": (1, 1)})),
            r"other: expected the instance_groups \{\}, got \{'single': \(1, 1\)\}",
        ),
        (lambda: ThresholdedF1(3).load_state_dict({"counts": 1}), "state: expected what"),
        (lambda: counted(*problem()).micro("heads"), r"group: expected one of \['total'\], got 'heads'"),
        (lambda: counted(*problem()).micro(instances="all"), r"instances: expected one of \[\], got 'all'"),
        (lambda: counted(*problem()).scores(0.405), "threshold: expected one of"),
        (lambda: predict_labels(ONE, 2), "thresholds: .* got 2"),
        (lambda: predict_labels(ONE, 0.5, activation="softmax"), "activation: .* got 'softmax'"),
        (lambda: ThresholdedF1(3).update(ONE.to_sparse(), ONE), "logits: expected a dense tensor, got a torch.sparse"),
        (lambda: ThresholdedF1(3).update(ONE, UNCHECKED), r"targets: expected label ids in \[0, 3\), got 4 in row 0"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call()


def test_integers_of_numpy_are_taken():
    f1 = ThresholdedF1(np.int64(3), instance_groups={"some": (np.int32(1), np.uint8(2)), "any": (0, sys.maxsize)})
    f1.update(ONE + 1, torch.tensor([[1, 0, 0]], dtype=torch.int16))
    assert type(f1.num_labels) is int
    assert f1.instance_scores(0.5)["some"] == f1.instance_scores(0.5)["any"] == f1.scores(0.5)["total"]


def test_the_papers_thresholds():
    assert [f"{t:.2f}" for t in PAPER_THRESHOLDS] == [f"0.{t}" for t in range(40, 61)]
    assert float(PAPER_THRESHOLDS[1]) == 0.41
    with pytest.raises(ValueError, match="read-only"):
        PAPER_THRESHOLDS[0] = 0.1


@pytest.mark.slow
def test_sklearn_is_not_imported():
    code = "import sys; import fused_balanced_loss.metrics; sys.exit('sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_as_by_its_own_sigmoid():
    logits, targets = (part.cuda() for part in problem(500, 2000))
    f1 = counted(logits, targets, sizes=100)
    probabilities = torch.sigmoid(logits.float()).cpu().numpy()
    micro = [f1_score(targets.cpu(), probabilities > t, average="micro", zero_division=0) for t in PAPER_THRESHOLDS]
    assert f1.micro().tolist() == micro


def test_grids():
    assert threshold_grid("paper") is PAPER_THRESHOLDS
    full = threshold_grid("full")
    assert (len(full), full[0], full[-1]) == (199, 0.0001, 0.9999)
    assert np.array_equal(full, np.unique(full)) and set(PAPER_THRESHOLDS) < set(full)
    # Each step is at most 0.01, and at most 10 % of the distance from 0 or 1.
    step, distance = np.diff(full), np.minimum(full[:-1], 1 - full[1:])
    assert (step < 0.0100001).all() and (step[distance < 0.0099] < 0.1 * distance[distance < 0.0099]).all()
    assert threshold_grid([0.7, 0.2]).tolist() == [0.7, 0.2]
    assert np.array_equal(ThresholdedF1(3, "full").thresholds, full)
    for thresholds in (PAPER_THRESHOLDS, full):
        with pytest.raises(ValueError, match="read-only"):
            thresholds[0] = 0.5
    with pytest.raises(ValueError, match="thresholds: expected one of 'paper', 'full'; got 'fine'"):
        threshold_grid("fine")
    with pytest.raises(ValueError, match=r"thresholds: expected numbers in \[0, 1\], got 2"):
        threshold_grid([2])


@pytest.mark.parametrize(("shift", "at_edge"), [(-4.0, True), (0.0, False), (4.0, True)])
def test_a_choice_at_the_edge_of_the_grid_is_told(shift, at_edge):
    """The best probability is near sigmoid(shift)."""
    generator = torch.Generator().manual_seed(0)
    targets = torch.rand(400, 20, generator=generator) < 0.2
    logits = torch.where(targets, 0.5, -0.5) + 0.3 * torch.randn(400, 20, generator=generator) + shift
    best = counted(logits, targets).best()
    assert best.at_edge is at_edge
    whole = counted(logits, targets, thresholds="full").best()
    assert not whole.at_edge
    assert whole.micro >= best.micro
    assert abs(np.log(whole.threshold / (1 - whole.threshold)) - shift) < 0.3
    assert not counted(logits, targets, thresholds=[0.5]).best().at_edge


@pytest.mark.parametrize("min_support", [0, 1, 4, 10])
def test_best_threshold_of_each_label(min_support):
    logits, targets = problem()
    thresholds = np.array([0.1, 0.2, 0.35, 0.5, 0.8])
    f1 = counted(logits, targets, thresholds=thresholds[::-1])
    chosen, common = f1.best_by_label(min_support=min_support), f1.best().threshold
    probabilities = probabilities_of(logits)
    for label in range(25):
        support = int(targets[:, label].sum())
        scores = [f1_score(targets[:, label], probabilities[:, label] > t, zero_division=0) for t in thresholds]
        best = [t for t, score in zip(thresholds, scores, strict=True) if score == max(scores)]
        expected = min(best, key=lambda t: abs(t - common)) if support >= min_support and max(scores) else common
        assert chosen[label] == expected
    scores = f1.scores(chosen)["total"]
    predicted = probabilities > chosen
    assert scores["micro"] == f1_score(targets, predicted, average="micro", zero_division=0)
    assert scores["macro"] == f1_score(targets, predicted, average="macro", zero_division=0)
    assert scores["macro"] >= f1.scores(common)["total"]["macro"]
    assert predict_labels(torch.split(logits, 7), chosen) == SparseTargets.from_dense(predicted)


def test_best_threshold_of_each_group():
    logits, targets = problem()
    masks = {"first": np.arange(25) < 10, "both": np.arange(25) % 2 == 0, "silent": np.arange(25) >= 24}
    f1 = counted(logits, targets, thresholds="full", label_groups=masks)
    chosen = f1.best_by_group()
    for label in range(25):
        group = "first" if label < 10 else "total" if label % 2 else "both"
        assert chosen[label] == f1.best(group).threshold
    assert f1.best("silent").micro == 0
    only_silent = counted(logits, targets, thresholds="full", label_groups={"silent": masks["silent"]})
    assert (only_silent.best_by_group() == only_silent.best().threshold).all()
    scores = f1.scores(chosen)
    for name, mask in masks.items():
        predicted = probabilities_of(logits)[:, mask] > chosen[mask]
        assert scores[name]["micro"] == sklearn_f1(predicted, targets[:, mask], 0, "micro")


def test_best_by_instance_group():
    logits, targets = problem()
    groups = {"single": (1, 1)}
    f1 = counted(logits, targets, instance_groups=groups)
    best = f1.best(instances="single")
    assert best.micro == f1.micro(instances="single").max()
    chosen = f1.best_by_label()
    rows = targets.sum(1) == 1
    predicted = probabilities_of(logits)[rows] > chosen
    got = f1.instance_scores(chosen)["single"]["micro"]
    assert got == f1_score(targets[rows], predicted, average="micro", zero_division=0)


@pytest.mark.parametrize("names", [None, [f"a, {k}" for k in range(25)]])
def test_label_report(tmp_path, names):
    logits, targets = problem()
    f1 = counted(logits, targets, thresholds="full")
    chosen = f1.best_by_label(min_support=3)
    predicted = probabilities_of(logits) > chosen
    rows = label_report(f1, chosen, names)
    precision, recall, score, support = precision_recall_fscore_support(targets, predicted, zero_division=0)
    for label, row in enumerate(rows):
        assert row.label == (label if names is None else names[label])
        assert (row.support, row.predicted, row.threshold) == (support[label], predicted[:, label].sum(), chosen[label])
        assert (row.precision, row.recall, row.f1) == pytest.approx((precision[label], recall[label], score[label]))
    assert [row.threshold for row in label_report(f1, 0.5)] == [0.5] * 25
    write_label_report(tmp_path / "labels.csv", rows)
    with (tmp_path / "labels.csv").open(encoding="utf-8", newline="") as file:
        read = list(csv.DictReader(file))
    assert list(read[0]) == ["label", "support", "predicted", "threshold", "precision", "recall", "f1"]
    assert [tuple(row.values()) for row in read] == [tuple(map(str, row)) for row in rows]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda f1: f1.scores([0.4, 0.5]),
            r"threshold: expected one number, or 25, .*, got shape \[2\]",
        ),
        (lambda f1: f1.scores(np.full(25, 0.405)), r"threshold: expected one of \[0.4, .*got (np.float64\()?0.405"),
        (lambda f1: f1.scores(np.full((1, 25), 0.4)), r"threshold: .* got shape \[1, 25\]"),
        (lambda f1: f1.best("tail"), r"group: expected one of \['total'\], got 'tail'"),
        (lambda f1: f1.best_by_label(min_support=-1), "min_support: expected an integer >= 0, got -1"),
        (lambda f1: f1.best_by_label(min_support=1.5), "min_support: .* got float 1.5"),
        (lambda f1: label_report(f1, 0.5, ["one"]), "names: expected 25, one for each label, got 1"),
        (lambda f1: predict_labels(torch.zeros(2, 25), [0.5, 0.4]), "threshold: expected one number, or 25, .* got 2"),
        (lambda f1: predict_labels(torch.zeros(2, 2), [0.5, 2]), r"thresholds: expected numbers in \[0, 1\], got 2"),
        (
            lambda f1: f1.load_state_dict(f1.state_dict() | {"counts": 3}),
            "state: expected counts of .* int",
        ),
    ],
)
def test_bad_thresholds_are_named(call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call(counted(*problem()))


@pytest.mark.parametrize("shift", [-9.0, -1.0, 9.0])
def test_few_and_many_predicted_labels_are_counted_alike(monkeypatch, shift):
    logits, targets = problem(shift=shift)
    groups = {"single": (1, 1)}
    states = []
    for many in (0.0, 2.0):
        monkeypatch.setattr(thresholded_f1, "_MANY", many)
        states.append(counted(logits, targets, sizes=13, thresholds="full", instance_groups=groups).state_dict())
    assert torch.equal(states[0]["counts"], states[1]["counts"])
