"""The published figures, from the files in ``paper/``, which name their source."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from functools import cache
from pathlib import Path

Scores = dict[str, dict[str, float]]
FOLDER = Path(__file__).parent / "published"
CORPUS_NAMES = {"reuters": "Reuters-21578", "pubmed": "PubMed"}
# Label pairs that the paper's error analysis names as the most confused.
CONFUSED = {"reuters": (("platinum", "gold"), ("yen", "money-fx"), ("platinum", "copper"))}


@cache
def paper_scores(table: int, corpus: str | None) -> dict[str, Scores]:
    """Micro- and macro-F1 in percent by method and group of Table 2 or 3; nothing for a corpus not in the paper."""
    scores: dict[str, Scores] = {}
    for row in _rows(f"table{table}.csv"):
        if row["corpus"] == corpus:
            by_group = scores.setdefault(row["method"], {})
            by_group[row["group"]] = {kind: float(row[kind]) for kind in ("micro", "macro")}
    return scores


@cache
def paper_corpus(corpus: str | None) -> dict[str, str]:
    """What is published of a corpus, as printed, by statistic."""
    return {row["statistic"]: row["value"] for row in _rows("corpora.csv") if row["corpus"] == corpus}


def _rows(name: str) -> Iterator[dict[str, str]]:
    lines = (FOLDER / name).read_text(encoding="utf-8").splitlines()
    return csv.DictReader(line for line in lines if not line.startswith("#"))
