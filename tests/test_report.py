"""The report: confused labels, corpus figures, tables, pictures."""

from __future__ import annotations

import dataclasses
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

for package in ("matplotlib", "scipy", "sklearn"):
    pytest.importorskip(package)
sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

from atomic_file import atomic_file  # noqa: E402
from corpora.corpus import Corpus, Split  # noqa: E402
from report import errors  # noqa: E402
from report.corpus_figures import read_corpus_figures, write_corpus_figures  # noqa: E402
from report.errors import confused_pairs  # noqa: E402

from fused_balanced_loss import SparseTargets  # noqa: E402


def make_corpus(num_labels=12, num_documents=300, seed=0, **changes):
    rng = np.random.default_rng(seed)

    def split(size):
        lists = [
            sorted({int(label) for label in (rng.random(1 + rng.integers(3)) ** 3 * num_labels)}) for _ in range(size)
        ]
        return Split([f"text {k}" for k in range(size)], SparseTargets.from_lists(lists, num_labels))

    fields = {
        "name": "Small corpus",
        "label_names": [f"label{k}" for k in range(num_labels)],
        "train": split(num_documents),
        "validation": split(20),
        "test": split(40),
        "fingerprint": "0123456789abcdef",
        "head": 35,
        "tail": 8,
        "instance_groups": {"single": (1, 1), "multi": (2, None)},
        "paper": "reuters",
    }
    return Corpus(**(fields | changes))


@pytest.mark.parametrize("block", [1, 5, 256])
def test_confused_pairs_are_counted_once_an_instance(monkeypatch, block):
    monkeypatch.setattr(errors, "BLOCK", block)
    rng = np.random.default_rng(0)
    targets, predictions = (torch.from_numpy(rng.random((200, 12)) < share) for share in (0.15, 0.2))
    names = [f"label{k}" for k in range(12)]
    expected = Counter(
        (missed, wrong)
        for row in range(200)
        for missed in range(12)
        for wrong in range(12)
        if targets[row, missed] > predictions[row, missed] and predictions[row, wrong] > targets[row, wrong]
    )
    order = sorted(expected, key=lambda pair: (-expected[pair], pair))
    for top in (1, 7, 1000):
        pairs = confused_pairs(*map(SparseTargets.from_dense, (predictions, targets)), names, top)
        assert pairs == [
            {"missed": names[missed], "predicted": names[wrong], "count": expected[missed, wrong]}
            for missed, wrong in order[:top]
        ]


def test_without_errors_there_are_no_pairs():
    targets = SparseTargets.from_lists([[0], [1, 2], []], 3)
    assert confused_pairs(targets, targets, ["a", "b", "c"]) == []
    with pytest.raises(ValueError, match=r"expected shape \[3, 3\] and 3 names"):
        confused_pairs(targets, targets, ["a"])


def test_corpus_figures_are_written_once_and_read(tmp_path):
    corpus = make_corpus()
    write_corpus_figures(corpus, tmp_path / "run")
    figures = read_corpus_figures(tmp_path / "run")
    dense = corpus.train.targets.to_dense(torch.int64).numpy()
    assert np.array_equal(figures.co_occurrence.toarray(), dense.T @ dense)
    assert figures.counts.tolist() == dense.sum(0).tolist()
    assert figures.label_names == corpus.label_names
    sizes = figures.sizes
    assert sizes["documents"] == {"train": 300, "validation": 20, "test": 40}
    every = torch.cat([split.targets.to_dense(torch.int64) for split in corpus.splits.values()])
    assert sizes["labels_a_document"]["mean"] == pytest.approx(float(every.sum() / 360))
    assert sizes["documents_a_label"]["most"] == int(every.sum(0).max())
    assert sum(sizes["label_groups"].values()) == 12
    assert sizes["instance_groups"]["single"]["test"] == int((corpus.test.targets.crow.diff() == 1).sum())
    before = (tmp_path / "run" / "label_counts.npz").stat().st_mtime_ns
    write_corpus_figures(corpus, tmp_path / "run")
    assert (tmp_path / "run" / "label_counts.npz").stat().st_mtime_ns == before
    write_corpus_figures(dataclasses.replace(corpus, head=50), tmp_path / "run")
    assert read_corpus_figures(tmp_path / "run").sizes["head"] == 50


@pytest.mark.parametrize("name", ["corpus.json", "label_counts.npz"])
def test_broken_corpus_figures_are_named_and_rewritten(tmp_path, name):
    corpus = make_corpus()
    write_corpus_figures(corpus, tmp_path)
    whole = (tmp_path / name).read_bytes()
    for broken in (b"", whole[: len(whole) // 2], b"[]"):
        (tmp_path / name).write_bytes(broken)
        with pytest.raises(ValueError, match=name):
            read_corpus_figures(tmp_path)
    write_corpus_figures(corpus, tmp_path)
    assert read_corpus_figures(tmp_path).counts.tolist() == corpus.statistics.counts.tolist()
    (tmp_path / name).unlink()
    with pytest.raises(FileNotFoundError):
        read_corpus_figures(tmp_path)


def test_atomic_file_keeps_the_old_content_after_an_error(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(UnicodeEncodeError), atomic_file(path) as temporary:
        temporary.write_text("half \udc00", encoding="utf-8")
    assert (path.read_text(), len(list(tmp_path.iterdir()))) == ("old", 1)
    with atomic_file(path) as temporary:
        temporary.write_text("new")
    assert (path.read_text(), len(list(tmp_path.iterdir()))) == ("new", 1)
