"""P@k, nDCG@k and PSP@k against loops over the samples, and against scikit-learn."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fused_balanced_loss import LabelStatistics, SparseTargets
from fused_balanced_loss.classifier.prediction import predict_topk
from fused_balanced_loss.metrics import RankingMetrics, label_propensities

KS = (1, 3, 5)


def problem(num_rows=50, num_labels=30, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    targets = torch.rand(num_rows, num_labels, generator=generator) < torch.linspace(0.4, 0.01, num_labels)
    targets[3] = False
    # All logits of a row differ, also in 16 bits, so that the best labels are known.
    order = torch.rand(num_rows, num_labels, generator=generator) + targets
    logits = (order.argsort(1).argsort(1) - 20).to(dtype) / 4
    return logits, targets


def by_loops(logits, targets, ks, propensities=None):
    """The definitions, one sample and one label after the other."""
    found = {}
    for k in ks:
        precision, ndcg, scored, most = [], [], 0.0, 0.0
        for row, own in zip(logits.tolist(), targets.tolist(), strict=True):
            best = sorted(range(len(row)), key=lambda label, row=row: -row[label])[:k]
            precision.append(sum(own[label] for label in best) / k)
            gain = sum(1 / math.log2(place + 2) for place, label in enumerate(best) if own[label])
            ideal = sum(1 / math.log2(place + 2) for place in range(min(k, sum(own))))
            ndcg.append(gain / ideal if ideal else 0.0)
            if propensities is not None:
                scored += sum(1 / propensities[label] for label in best if own[label]) / k
                worth = sorted((1 / p for p, carries in zip(propensities, own, strict=True) if carries), reverse=True)
                most += sum(worth[:k]) / k
        found |= {f"P@{k}": np.mean(precision), f"nDCG@{k}": np.mean(ndcg)}
        if propensities is not None:
            found[f"PSP@{k}"] = scored / most if most else 0.0
    return found


def counted(logits, targets, ks=KS, propensities=None, size=7):
    metric = RankingMetrics(logits.shape[1], ks, propensities=propensities)
    for part in zip(torch.split(logits, size), torch.split(targets, size), strict=True):
        metric.update(*part)
    return metric


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("ks", [(1, 3, 5), (5, 2), (30,)])
def test_equals_the_definitions(dtype, ks):
    logits, targets = problem(dtype=dtype)
    propensities = label_propensities(LabelStatistics.from_targets(targets))
    metric = counted(logits, targets, ks, propensities)
    assert metric.scores() == pytest.approx(by_loops(logits, targets, ks, propensities.tolist()), rel=1e-12)
    assert metric.num_samples == 50
    assert list(metric.precision()) == list(metric.ndcg()) == list(metric.propensity_precision()) == list(ks)
    assert set(counted(logits, targets, ks).scores()) == {f"{name}@{k}" for name in ("P", "nDCG") for k in ks}


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(st.integers(1, 6), st.integers(1, 8), st.integers(0, 10**6), st.data())
def test_any_problem_equals_the_definitions(num_rows, num_labels, seed, data):
    generator = np.random.default_rng(seed)
    logits = torch.from_numpy(
        generator.permuted(np.tile(np.arange(num_labels, dtype=np.float32), (num_rows, 1)), axis=1)
    )
    targets = torch.from_numpy(generator.random((num_rows, num_labels)) < generator.random())
    ks = data.draw(st.lists(st.integers(1, num_labels), min_size=1, unique=True))
    propensities = generator.uniform(0.01, 1, num_labels)
    found = counted(logits, targets, ks, propensities, size=4).scores()
    assert found == pytest.approx(by_loops(logits, targets, ks, propensities), rel=1e-12)


@pytest.mark.parametrize("k", [1, 5, 30])
def test_ndcg_equals_sklearn(k):
    ndcg_score = pytest.importorskip("sklearn.metrics").ndcg_score
    logits, targets = problem()
    expected = ndcg_score(targets.numpy().astype(int), logits.numpy(), k=k)
    assert counted(logits, targets, [k]).ndcg()[k] == pytest.approx(expected, rel=1e-12)


def test_from_label_ids():
    logits, targets = problem()
    propensities = label_propensities(LabelStatistics.from_targets(targets))
    expected = counted(logits, targets, KS, propensities).scores()
    top = logits.topk(9).indices
    sparse = SparseTargets.from_dense(targets)
    for labels in (top, top[:, :5].int(), predict_topk(torch.eye(50), logits.t().contiguous(), None, 5, chunk_size=7)):
        metric = RankingMetrics(30, KS, propensities=propensities)
        for start in range(0, 50, 20):
            part = slice(start, start + 20)
            own = labels[part] if isinstance(labels, torch.Tensor) else type(labels)(*(one[part] for one in labels))
            metric.update_labels(own, sparse[part])
        assert metric.scores() == pytest.approx(expected, rel=1e-12)


def test_perfect_ranking_is_one_but_for_samples_with_few_labels():
    _, targets = problem()
    metric = counted(targets.float(), targets, KS, np.linspace(0.9, 0.1, 30))
    assert metric.ndcg() == pytest.approx(dict.fromkeys(KS, 49 / 50))
    # Only rarer labels first would give the largest propensity-scored precision.
    ranked = torch.where(targets, torch.linspace(1, 2, 30), 0.0)
    assert counted(ranked, targets, KS, np.linspace(0.9, 0.1, 30)).propensity_precision() == pytest.approx(
        dict.fromkeys(KS, 1.0)
    )


def test_samples_without_labels():
    metric = RankingMetrics(4, [2], propensities=np.full(4, 0.5))
    metric.update(torch.randn(3, 4), torch.zeros(3, 4))
    assert metric.scores() == {"P@2": 0.0, "nDCG@2": 0.0, "PSP@2": 0.0}
    metric.update(torch.zeros(0, 4), torch.zeros(0, 4))
    assert metric.num_samples == 3


def test_propensities_are_those_of_the_paper():
    statistics = LabelStatistics.from_counts([0, 1, 10, 1000], 5000, degenerate="ignore")
    for a, b in ((0.55, 1.5), (0.5, 0.4), (0.6, 2.6)):
        c = (math.log(5000) - 1) * (b + 1) ** a
        expected = [1 / (1 + c * math.exp(-a * math.log(n + b))) for n in (0, 1, 10, 1000)]
        np.testing.assert_allclose(label_propensities(statistics, a, b), expected, rtol=1e-12)
    assert torch.equal(label_propensities(statistics), label_propensities(statistics, 0.55, 1.5))
    # A label that a single sample carries: 1 / log(N).
    assert float(label_propensities(statistics)[1]) == pytest.approx(1 / math.log(5000))


def test_merge_and_state(tmp_path):
    logits, targets = problem()
    propensities = np.linspace(0.9, 0.1, 30)
    expected = counted(logits, targets, KS, propensities).scores()
    first, second = (counted(logits[part], targets[part], KS, propensities) for part in (slice(20), slice(20, 50)))
    torch.save(first.state_dict(), tmp_path / "state")
    first.merge(second)
    assert first.scores() == pytest.approx(expected, rel=1e-12)
    second.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    second.update(logits[20:], targets[20:])
    assert second.scores() == pytest.approx(expected, rel=1e-12)
    second.reset()
    with pytest.raises(RuntimeError, match="no sample was counted yet"):
        second.scores()
    assert first.num_samples == 50


def count_a_share(rank, store, path):
    logits, targets = problem()
    torch.distributed.init_process_group("gloo", store=torch.distributed.FileStore(store, 2), rank=rank, world_size=2)
    metric = counted(logits[rank::2], targets[rank::2], KS, np.linspace(0.9, 0.1, 30))
    metric.all_reduce()
    np.save(f"{path}{rank}.npy", list(metric.scores().values()))
    torch.distributed.destroy_process_group()


@pytest.mark.distributed
def test_all_reduce_sums_over_processes(tmp_path):
    paths = str(tmp_path / "store"), str(tmp_path / "scores-")
    torch.multiprocessing.spawn(count_a_share, paths, nprocs=2)
    expected = counted(*problem(), KS, np.linspace(0.9, 0.1, 30)).scores()
    for rank in range(2):
        np.testing.assert_allclose(np.load(f"{paths[1]}{rank}.npy"), list(expected.values()), rtol=1e-12)


def ids(*rows):
    return torch.tensor(rows)


ONE = torch.zeros(1, 4)
WITHOUT = LabelStatistics.from_counts([1, 1], 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: RankingMetrics(0), "num_labels: expected an integer >= 1, got 0"),
        (lambda: RankingMetrics(4, (1, 3, 5)), r"ks: expected different integers in \[1, 4\], got \[1, 3, 5\]"),
        (lambda: RankingMetrics(4, []), r"ks: .* got \[\]"),
        (lambda: RankingMetrics(4, [1, 1]), r"ks: .* got \[1, 1\]"),
        (lambda: RankingMetrics(4, [0]), "ks: expected an integer >= 1, got 0"),
        (lambda: RankingMetrics(4, [1.5]), "ks: .* got float 1.5"),
        (lambda: RankingMetrics(4, [1], propensities=[0.5]), r"propensities: expected \[4\] numbers, got .*\[1\]"),
        (lambda: RankingMetrics(4, [1], propensities=[1, 1, 0, 1]), "propensities: .* > 0, got 0.0 for label 2"),
        (lambda: RankingMetrics(4, [1], propensities=[1, math.nan, 1, 1]), "propensities: .* got nan for label 1"),
        (lambda: RankingMetrics(4, [1]).update(torch.zeros(1, 3), ONE), r"logits: expected \[n, 4\]"),
        (lambda: RankingMetrics(4, [1]).update(ONE * math.nan, ONE), "logits: .* NaN in row 0 for label 0"),
        (lambda: RankingMetrics(4, [1]).update(ONE, torch.zeros(2, 4)), "targets: expected 1 rows, those of logits"),
        (lambda: RankingMetrics(4, [2]).update_labels(ids([1]), ONE), r"labels: expected \[n, at least 2\]"),
        (lambda: RankingMetrics(4, [2]).update_labels(ids([1, 4]), ONE), r"labels: .* \[0, 4\), got 4 in row 0"),
        (lambda: RankingMetrics(4, [2]).update_labels(ids([-1, 3]), ONE), "labels: .* got -1 in row 0"),
        (lambda: RankingMetrics(4, [2]).update_labels(ids([0, 1], [3, 3]), ONE.repeat(2, 1)), "labels: .* in row 1"),
        (lambda: RankingMetrics(4, [2]).update_labels(ONE, ONE), "labels: expected an integer tensor"),
        (lambda: RankingMetrics(4, [2]).update_labels([[0, 1]], ONE), "labels: expected an integer tensor .* got list"),
        (
            lambda: RankingMetrics(4, [2]).update_labels(ids([0, 1]), ONE[:0]),
            "targets: expected 1 rows, those of labels",
        ),
        (lambda: RankingMetrics(4, [1]).merge(RankingMetrics(4, [2])), r"other: expected the ks \[1\], got \[2\]"),
        (lambda: RankingMetrics(4, [1]).merge(3), "other: expected a RankingMetrics, got int"),
        (
            lambda: RankingMetrics(4, [1]).load_state_dict({"hits": ONE}),
            "state: expected what RankingMetrics.state_dict gives",
        ),
        (
            lambda: RankingMetrics(2, [1], propensities=[1, 1]).merge(RankingMetrics(2, [1], propensities=[1, 0.5])),
            "other: expected the same propensities, got others",
        ),
        (lambda: RankingMetrics(4, [1]).propensity_precision(), "propensities: expected .* for PSP@k, got none"),
        (lambda: label_propensities(WITHOUT), "statistics: expected at least 3 samples, got 2"),
        (lambda: label_propensities(WITHOUT, a=0), "a: expected a number > 0, got 0"),
        (lambda: label_propensities(WITHOUT, b="1"), "b: expected a number, got str '1'"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises((TypeError, ValueError, RuntimeError), match=message):
        call()
