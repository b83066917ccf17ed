"""Tables 2 and 3 and the ablation, the paper's figures beside ours, and what the runs took."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean

from report.groups import METHODS, Figures, Group, Row, differences
from report.paper_scores import Scores, paper_scores
from report.record_files import KINDS, LABEL_GROUPS
from report.table import Cell, Table

ABLATION = ("R-FL", "NTR-FL", "DB-0FL")
WITHOUT = {
    "R-FL": "no negative-tolerant regularization",
    "NTR-FL": "no rebalanced weight",
    "DB-0FL": "no focal factor",
}


def frequency_table(group: Group, paper: str | None) -> Table:
    """Table 2: by label frequency."""
    return _score_table(
        "table2",
        "micro/macro-F1 in percent by label frequency (Table 2 of the paper)",
        group,
        LABEL_GROUPS,
        lambda row: row.by_label,
        paper_scores(2, paper),
    )


def instance_table(group: Group, paper: str | None) -> Table | None:
    """Table 3: by the number of labels of an instance; None where no record has it."""
    names = next((tuple(row.by_instance) for row in group.rows if row.by_instance), ())
    if not names:
        return None
    return _score_table(
        "table3",
        "micro/macro-F1 in percent over all labels by the number of labels of an instance (Table 3 of the paper)",
        group,
        ("total", *names),
        lambda row: row.by_label | row.by_instance,
        paper_scores(3, paper),
    )


def ablation_table(group: Group, paper: str | None) -> Table | None:
    """What DB loses without each of its parts; None without DB or any of those."""
    rows, published = group.by_method, paper_scores(2, paper)
    parts = [method for method in ABLATION if method in rows]
    if "DB" not in rows or not parts:
        return None
    cells = []
    for method in parts:
        line: list[Cell | str] = [method, WITHOUT[method]]
        for name in LABEL_GROUPS:
            ours = [_mean(rows[method], name, kind) - _mean(rows["DB"], name, kind) for kind in KINDS]
            line.append("/".join(f"{change:+.2f}" for change in ours))
            if published:
                theirs = [published[method][name][kind] - published["DB"][name][kind] for kind in KINDS]
                same = "".join("✓" if (a < 0) == (b < 0) else "✗" for a, b in zip(ours, theirs, strict=True))
                line += ["/".join(f"{change:+.2f}" for change in theirs), same]
        cells.append(line)
    columns = ("ours", "paper", "same sign") if published else ("ours",)
    return Table(
        "ablation",
        group.about,
        "micro/macro-F1 against DB, in points of percent (the paper's ablation)",
        ["", "DB with", *(f"{name} {whose}" for name in LABEL_GROUPS for whose in columns)],
        cells,
        left=2,
    )


def runs_table(group: Group) -> Table:
    """Seeds, chosen epoch and threshold, time and memory of each row; means over the seeds."""
    cells = []
    for row in group.rows:
        if row.method is None:
            continue
        results = [run.result or {} for run in row.runs]
        peak = _mean_of(results, "peak_memory_bytes")
        rates = {rate for result in results if isinstance(rate := result.get("learning_rate"), float)}
        cells.append(
            [
                row.name,
                ", ".join(str(run.seed) for run in row.runs),
                _text(_mean_of(results, "best_epoch"), ".1f"),
                _text(_mean_of(results, "threshold"), ".3f"),
                ", ".join(f"{rate:.2g}" for rate in sorted(rates)) or "-",
                _text(_mean_of(results, "seconds"), ".0f"),
                _text(peak and peak / 2**30, ".2f"),
            ]
        )
    return Table(
        "runs",
        group.about,
        "the runs; means over the seeds",
        ["", "seeds", "best epoch", "threshold", "learning rate", "seconds", "peak memory, GiB"],
        cells,
        [*_unlike_settings(group), *_versions(group)],
    )


def _score_table(
    name: str,
    caption: str,
    group: Group,
    columns: Sequence[str],
    figures: Callable[[Row], Figures],
    published: dict[str, Scores],
) -> Table:
    # A corpus of one's own has other instance groups than the paper.
    beside = [column for column in columns if any(column in scores for scores in published.values())]
    header = [""]
    for column in columns:
        shown = column.replace("<=", "≤").replace(">=", "≥")
        header += [f"{shown} ours", f"{shown} paper"] if column in beside else [shown]
    keys = [(column, kind) for column in columns for kind in KINDS]
    compared = [figures(row) for row in group.by_method.values()]
    best = {at: max((one[at[0]][at[1]].mean for one in compared if at[0] in one), default=0) for at in keys}
    best_published = {
        at: max(scores[at[0]][at[1]] for scores in published.values() if at[0] in scores)
        for at in keys
        if at[0] in beside
    }
    cells = []
    for row in group.rows:
        line: list[Cell | str] = [row.name]
        own, theirs = figures(row), published.get(row.method or "", {})
        for column in columns:
            if column in own:
                values = [own[column][kind] for kind in KINDS]
                bold = [
                    row.method is not None and len(compared) > 1 and value.mean == best[column, kind] > 0
                    for kind, value in zip(KINDS, values, strict=True)
                ]
                line.append(Cell([str(value) for value in values], bold))
            else:
                line.append("-")
            if column in beside and column in theirs:
                printed = [theirs[column][kind] for kind in KINDS]
                bold = [value == best_published[column, kind] for kind, value in zip(KINDS, printed, strict=True)]
                line.append(Cell([f"{value:.2f}" for value in printed], bold))
            elif column in beside:
                line.append("")
        cells.append(line)
    return Table(
        name,
        group.about,
        caption,
        header,
        cells,
        _gaps(group, published),
        bold="the best micro- or macro-F1 of the column" if len(compared) > 1 or published else "",
    )


def _gaps(group: Group, published: dict[str, Scores]) -> list[str]:
    """Notes on what the table lacks."""
    notes = []
    expected = [method for method in METHODS if not published or method in published]
    if missing := [method for method in expected if method not in group.by_method]:
        notes.append(f"No finished run of {', '.join(missing)}.")
    seeds: dict[tuple[int, ...], list[str]] = {}
    for method, row in group.by_method.items():
        if method != "SVM":
            seeds.setdefault(tuple(run.seed for run in row.runs), []).append(method)
    if len(seeds) > 1:
        parts = (f"{', '.join(methods)}: {', '.join(map(str, numbers))}" for numbers, methods in seeds.items())
        notes.append(f"The seeds are not the same for all: {'; '.join(parts)}.")
    elif seeds:
        number = len(next(iter(seeds)))
        notes.append(f"Mean{' ± standard deviation' if number > 1 else ''} over {number} seed{'s'[: number > 1]}.")
    return notes


def _unlike_settings(group: Group) -> list[str]:
    """Which settings, besides the loss, the compared rows do not have in common."""
    rows = {method: row for method, row in group.by_method.items() if method != "SVM"}
    settings = [{key: value for key, value in row.runs[0].settings.items() if key != "loss"} for row in rows.values()]
    notes = []
    for name, values in (differences(settings) if settings else {}).items():
        by_value: dict[str, list[str]] = {}
        for method, value in zip(rows, values, strict=True):
            by_value.setdefault(str(value), []).append(method)
        parts = (f"{value} for {', '.join(methods)}" for value, methods in by_value.items())
        notes.append(f"Not the same for all: {name} is {'; '.join(parts)}.")
    return notes


def _versions(group: Group) -> list[str]:
    named = {
        ", ".join(f"{key} {value}" for key, value in run.versions.items()) for row in group.rows for run in row.runs
    }
    return [f"Made with {text}." for text in sorted(named) if text]


def _mean(row: Row, column: str, kind: str) -> float:
    return row.by_label[column][kind].mean


def _mean_of(results: Sequence[dict[str, object]], key: str) -> float | None:
    values = [value for value in (result.get(key) for result in results) if isinstance(value, (int, float))]
    return fmean(values) if len(values) == len(results) else None


def _text(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
