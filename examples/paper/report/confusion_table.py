"""The label pairs most often confused, by method, with the paper's pairs among them."""

from __future__ import annotations

from statistics import fmean

from report.groups import Group, Row
from report.paper_scores import CONFUSED
from report.record_files import Json
from report.table import Table

MOST = 20
EACH = 5

Pair = tuple[str, str]


def confusion_table(group: Group, paper: str | None) -> Table | None:
    """Counts of the pairs that are among the first few of some method, and of the paper's; None without records."""
    rows = [row for row in group.rows if row.method is not None and any(_pairs(row))]
    if not rows:
        return None
    counts = {row.name: _counts(row) for row in rows}
    named = {frozenset(pair): pair for pair in CONFUSED.get(paper or "", ())}
    shown = {pair for one in counts.values() for pair in sorted(one, key=lambda pair: (-one[pair], pair))[:EACH]}
    order = sorted(shown, key=lambda pair: (-sum(one.get(pair, 0) for one in counts.values()), pair))[:MOST]
    for key, pair in named.items():
        known = {pair for one in counts.values() for pair in one if frozenset(pair) == key} or {pair}
        order += sorted(known - set(order))
    cells = [
        [
            ("★ " if frozenset(pair) in named else "") + f"{pair[0]} → {pair[1]}",
            *(_cell(counts[row.name].get(pair), row) for row in rows),
        ]
        for pair in order
    ]
    return Table(
        "confused",
        group.about,
        "test documents with a label missed and another wrongly predicted (missed → predicted); means over the seeds",
        ["", *(row.name for row in rows)],
        cells,
        [
            f"The {EACH} most frequent pairs of each method, {MOST} pairs at most.",
            *(["★: a pair that the paper's error analysis names."] if named else []),
            "≤: not among the pairs that the records keep, the last of which has this count; one that only some seeds' "
            "records keep counts 0 in the others.",
        ],
    )


def _pairs(row: Row) -> list[list[Json]]:
    return [(run.result or {}).get("confused", []) for run in row.runs]


def _counts(row: Row) -> dict[Pair, float]:
    """Mean over the runs; a pair that a run's record does not keep counts 0 there."""
    runs = [{(one["missed"], one["predicted"]): one["count"] for one in pairs} for pairs in _pairs(row)]
    return {pair: fmean(one.get(pair, 0) for one in runs) for pair in {pair for one in runs for pair in one}}


def _cell(count: float | None, row: Row) -> str:
    if count is not None:
        return f"{count:.1f}".removesuffix(".0")
    kept = [pairs[-1]["count"] for pairs in _pairs(row) if pairs]
    return f"≤{max(kept)}" if kept else "0"
