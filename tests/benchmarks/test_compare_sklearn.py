"""The comparison with scikit-learn's classifiers: every contestant runs, and one that takes too long is said to."""

import argparse
import sys
from pathlib import Path

import joblib
import numpy as np
import pytest
import scipy.sparse as sp

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

pytest.importorskip("sklearn")

import compare_sklearn

pytestmark = pytest.mark.slow


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    random = np.random.default_rng(0)
    targets = sp.csr_array((random.random((200, 4)) < [0.5, 0.4, 0.3, 0.2]).astype(np.int64))
    features = sp.csr_matrix(targets.toarray() + 0.1 * random.random((200, 4)), dtype=np.float32)
    described = {"corpus": "tiny", "training_samples": 150, "test_samples": 50, "features": 4, "labels": 4}

    def make_data(corpus, bioasq, labels, folder):
        joblib.dump((features[:150], targets[:150], features[150:], targets[150:]), folder / "data")
        return folder / "data", described

    monkeypatch.setattr(compare_sklearn, "make_data", make_data)


def compare(**options):
    given = {"corpus": "reuters", "bioasq": None, "labels": None, "threads": 1, "seed": 0, "limit": 120.0}
    return compare_sklearn.compare(argparse.Namespace(**given | options))


def test_every_contestant_has_a_row(tiny):
    names = ["BalancedClassifier, DB", "OneVsRest(LinearSVC)", "OneVsRest(LogisticRegression), shifted"]
    record = compare(contestants=names)
    for name in names:
        one = record["contestants"][name]
        assert one["micro_f1"] > 0.8 and one["fit_seconds"] > 0 and one["peak_bytes"] >= 0
    rows = compare_sklearn.table(record).splitlines()
    assert [row.split(" | ")[0].strip("| ") for row in rows[-3:]] == names
    assert all(row.count("|") == 8 for row in rows[2:])


def test_what_takes_too_long_is_stopped_and_said_to_be(tiny):
    record = compare(contestants=["OneVsRest(LinearSVC)"], limit=0.01)
    assert record["contestants"] == {"OneVsRest(LinearSVC)": {"stopped_after_seconds": 0.01}}
    assert "| OneVsRest(LinearSVC) | stopped after 0 s |" in compare_sklearn.table(record)
