"""Table 2 of the paper with our figures beside the published: as text and as Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from paper_table import PAPER_SCORES
from records import GROUPS, KINDS, Scores


@dataclass(frozen=True)
class Figure:
    """Mean and standard deviation over the seeds, in percent."""

    mean: float
    std: float

    def format(self, with_std: bool) -> str:
        return f"{self.mean:.2f}±{self.std:.2f}" if with_std else f"{self.mean:.2f}"


@dataclass(frozen=True)
class Row:
    """One method: its figures by group and kind of F1, over ``num_seeds`` runs."""

    method: str
    num_seeds: int
    figures: dict[str, dict[str, Figure]]

    def cell(self, group: str) -> str:
        return "/".join(self.figures[group][kind].format(self.num_seeds > 1) for kind in KINDS)


def summarize(method: str, runs: Sequence[Scores]) -> Row:
    """Mean and sample standard deviation (0 for a single run) of the runs."""

    def figure(group: str, kind: str) -> Figure:
        values = [100 * run[group][kind] for run in runs]
        return Figure(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0)

    return Row(method, len(runs), {group: {kind: figure(group, kind) for kind in KINDS} for group in GROUPS})


def paper_cell(method: str, group: str) -> str:
    scores = PAPER_SCORES.get(method)
    return f"{100 * scores[group]['micro']:.2f}/{100 * scores[group]['macro']:.2f}" if scores else ""


def _cells(rows: Sequence[Row]) -> list[list[str]]:
    header = ["", "runs", *(f"{group} {whose}" for group in GROUPS for whose in ("ours", "paper"))]
    body = []
    for row in rows:
        scores = [cell for group in GROUPS for cell in (row.cell(group), paper_cell(row.method, group))]
        body.append([row.method, str(row.num_seeds), *scores])
    return [header, *body]


def text_table(rows: Sequence[Row]) -> str:
    """Columns aligned for a terminal."""
    cells = _cells(rows)
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for method, *figures in cells:
        aligned = (figure.rjust(width) for figure, width in zip(figures, widths[1:], strict=True))
        lines.append("  ".join((method.ljust(widths[0]), *aligned)).rstrip())
    return "\n".join(lines)


def markdown_table(rows: Sequence[Row]) -> str:
    header, *body = _cells(rows)
    rule = ["---", *("---:" for _ in header[1:])]
    return "\n".join("| " + " | ".join(line) + " |" for line in (header, rule, *body)) + "\n"


def rows_as_json(rows: Sequence[Row]) -> dict[str, Mapping[str, object]]:
    """F1 in percent by method, ours and the paper's."""
    return {
        row.method: {
            "runs": row.num_seeds,
            "ours": {
                g: {k: {"mean": f.mean, "std": f.std} for k, f in kinds.items()} for g, kinds in row.figures.items()
            },
            "paper": {
                g: {k: 100 * f for k, f in kinds.items()} for g, kinds in PAPER_SCORES.get(row.method, {}).items()
            },
        }
        for row in rows
    }
