"""What the report says of thresholds, of figures without one, and of each label; records of earlier versions."""

from __future__ import annotations

import csv
import json

import pytest

for package in ("matplotlib", "pandas", "scipy", "sklearn", "tabulate"):
    pytest.importorskip(package)

import make_report  # noqa: E402
from places import PAPER  # noqa: E402
from records import make_run  # noqa: E402
from report.agreement import claims_table  # noqa: E402
from report.document import tables_text  # noqa: E402
from report.groups import group_runs, read_runs  # noqa: E402
from report.table import plain  # noqa: E402
from report.thresholds import gap_in_words, ranking_table, threshold_table  # noqa: E402

from fused_balanced_loss.metrics import LabelRow, write_label_report  # noqa: E402

GROUPS = ("total", "head", "medium", "tail")


def scored(micro):
    return {"test": {group: {"micro": micro, "macro": micro / 2} for group in GROUPS}}


def make_record(method, seed, protocol, own=None, *, edge=False):
    """protocol, own: test micro-F1; without ``own`` it is a record as earlier versions wrote it."""
    result = {"threshold": 0.4, "validation": scored(0.5)["test"], **scored(protocol), "at_edge": edge}
    if own is not None:
        result["own"] = {**scored(own), "threshold": 0.1, "validation": scored(0.5)["test"], "at_edge": False}
        result["own"]["test_by_instance"] = {}
        result |= {name: {**scored(own / 2), "test_by_instance": {}} for name in ("by_group", "by_label")}
        result["ranking"] = {"P@1": own, "nDCG@1": own, "ECE": own / 10}
    settings = {"method": method, "seed": seed, "corpus": "Mine", "corpus_fingerprint": "0123", "encoder": "tfidf"}
    return {"settings": settings | {"convention": "paper", "loss": {}}, "status": "done", "result": result}


def group_of(*records):
    (group,) = group_runs(make_run(PAPER, record) for record in records)
    return group


def cells_of(table):
    return {(row[0], name): plain(cell) for row in table.rows for name, cell in zip(table.header, row, strict=True)}


def test_both_thresholds_stand_beside_each_other():
    records = [make_record("BCE", seed, 0.2, 0.5, edge=seed == 1) for seed in (0, 1)] + [make_record("DB", 0, 0.6, 0.6)]
    table = threshold_table(group_of(*records))
    cells = cells_of(table)
    assert (cells["BCE", "threshold"], cells["DB", "threshold"]) == ("0.400†", "0.400")
    assert cells["BCE", "total"] == "20.00±0.00/10.00±0.00"
    assert (cells["BCE", "own threshold"], cells["BCE", "tail, own"]) == ("0.100", "50.00±0.00/25.00±0.00")
    assert cells["DB", "total, by group"] == cells["DB", "tail, by label"] == "30.00/15.00"
    assert "**60.00**/**30.00**" in table.markdown() and r"$\dagger$" in table.latex()


@pytest.mark.parametrize(
    ("bce", "db", "words"),
    [
        ((0.2, 0.5), (0.6, 0.6), "total micro-F1 40.00 and 10.00 (75 % of it are the grid's)"),
        ((0.2, 0.7), (0.6, 0.6), "total micro-F1 40.00 and -10.00 (all of it is the grid's)"),
        ((0.2, 0.2), (0.6, 0.7), "total micro-F1 40.00 and 50.00 (none of it is the grid's)"),
        ((0.6, 0.6), (0.6, 0.5), "total micro-F1 0.00 and -10.00 (BCE is not below at either)"),
        ((0.6, 0.6), (0.6, 0.7), "total micro-F1 0.00 and 10.00 (BCE is below at its own alone)"),
    ],
)
def test_the_gap_in_words(bce, db, words):
    group = group_of(make_record("BCE", 0, *bce), make_record("DB", 0, *db))
    assert words in gap_in_words(group)
    assert words in tables_text([make_record("BCE", 0, *bce), make_record("DB", 0, *db)], None)


def test_records_of_an_earlier_version_are_shown_with_a_dash():
    group = group_of(make_record("BCE", 0, 0.2), make_record("DB", 0, 0.6, 0.6))
    cells = cells_of(threshold_table(group))
    assert cells["BCE", "total"] == "20.00/10.00" and cells["BCE", "total, own"] == cells["BCE", "own threshold"] == "-"
    assert gap_in_words(group) == "" and claims_table(group, own=True) is None
    assert cells_of(ranking_table(group))["BCE", "P@1"] == "-"
    old = group_of(make_record("BCE", 0, 0.2), make_record("DB", 0, 0.6))
    assert threshold_table(old) is None and ranking_table(old) is None


def test_figures_without_a_threshold():
    table = ranking_table(group_of(make_record("BCE", 0, 0.2, 0.5), make_record("DB", 0, 0.6, 0.7)))
    assert list(table.header) == ["", "P@1", "ECE"], "at 1, nDCG is precision"
    assert "| **70.00** |" in " ".join(table.markdown().split())
    assert "**5.00**" in table.markdown() and "**7.00**" not in table.markdown(), "the calibration error is best low"


def test_each_label_as_csv(tmp_path):
    names = ['"quoted", with a comma', "plain"]
    (tmp_path / "records").mkdir()
    for method, seed, f1 in (("BCE", 0, 0.25), ("DB", 0, 0.5), ("DB", 1, 0.75)):
        record = make_record(method, seed, 0.2, 0.5)
        stem = f"{method}-{seed}"
        if method == "DB":
            record["result"]["labels"] = f"{stem}.csv"
            rows = [LabelRow(name, 7, 5, 0.1 + seed / 10, 0.5, 0.5, f1) for name in names]
            write_label_report(tmp_path / "records" / f"{stem}.csv", rows)
        (tmp_path / "records" / f"{stem}.json").write_text(json.dumps(record))
    assert make_report.main([str(tmp_path), "--output", str(tmp_path / "report")]) == 0
    (path,) = (tmp_path / "report").rglob("labels.csv")
    with open(path, encoding="utf-8", newline="") as file:
        found = list(csv.DictReader(file))
    assert [row["label"] for row in found] == names
    assert found[0] == {
        **{"label": names[0], "training documents": "", "test documents": "7"},
        **{"DB f1": "0.6250", "DB threshold": "0.1500"},
    }
    assert path.relative_to(tmp_path / "report").as_posix() in (tmp_path / "report" / "report.md").read_text()


def test_committed_records_can_be_read():
    runs = read_runs([PAPER / "results"])
    assert len(runs) > 80 and all(run.result is not None for run in runs)
    assert any("own" not in run.result for run in runs), "those of an earlier version took hours"
