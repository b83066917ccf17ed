"""Medium and tail micro-F1 of every method, ours beside the paper's."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from paper_table import PAPER_SCORES
from tables import Row

OURS, PAPER = "#1f5a96", "#b9c4d0"


def draw_rare_labels(rows: Sequence[Row], title: str, path: Path) -> None:
    """Two panels of bars, with the standard deviation over the seeds where there are several."""
    rows = [row for row in rows if row.method in PAPER_SCORES]
    figure = Figure(figsize=(9, 6), layout="constrained")
    figure.suptitle(title)
    places = range(len(rows))
    for axes, group in zip(figure.subplots(2, 1, sharex=True), ("medium", "tail"), strict=True):
        ours = [row.figures[group]["micro"] for row in rows]
        several = any(row.num_seeds > 1 for row in rows)
        bars = axes.bar(
            [at - 0.2 for at in places],
            [f1.mean for f1 in ours],
            0.4,
            yerr=[f1.std for f1 in ours] if several else None,
            color=OURS,
            label="ours (TF-IDF network)",
        )
        axes.bar_label(bars, fmt="%.1f", fontsize=8)
        paper = [100 * PAPER_SCORES[row.method][group]["micro"] for row in rows]
        axes.bar_label(
            axes.bar([at + 0.2 for at in places], paper, 0.4, color=PAPER, label="paper (BERT)"), fmt="%.1f", fontsize=8
        )
        axes.set_ylabel(f"{group} micro-F1")
        axes.set_xticks(list(places), [row.method for row in rows])
        axes.margins(y=0.15)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].legend(frameon=False, ncols=2, loc="upper left", bbox_to_anchor=(0, 1.15))
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    figure.savefig(temporary, dpi=150)
    os.replace(temporary, path)
