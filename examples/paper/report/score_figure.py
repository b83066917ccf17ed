"""Medium and tail micro-F1 of every method, ours beside the paper's."""

from __future__ import annotations

from matplotlib.figure import Figure

from report.figure_files import OURS, PAPER
from report.groups import Group
from report.paper_scores import paper_scores


def draw_rare_labels(group: Group, paper: str | None) -> Figure:
    """Two panels of bars, with the standard deviation over the seeds where there are several."""
    rows, published = group.by_method, paper_scores(2, paper)
    figure = Figure(figsize=(9, 6), layout="constrained")
    figure.suptitle(group.about, fontsize=13)
    places = range(len(rows))
    width = 0.4 if published else 0.7
    for axes, name in zip(figure.subplots(2, 1, sharex=True), ("medium", "tail"), strict=True):
        ours = [row.by_label[name]["micro"] for row in rows.values()]
        several = any(f1.num_seeds > 1 for f1 in ours)
        bars = axes.bar(
            [at - 0.2 if published else at for at in places],
            [f1.mean for f1 in ours],
            width,
            yerr=[f1.std for f1 in ours] if several else None,
            color=OURS,
            label="ours",
        )
        axes.bar_label(bars, fmt="%.1f", fontsize=9)
        if published:
            theirs = {at: published[method][name]["micro"] for at, method in enumerate(rows) if method in published}
            beside = axes.bar([at + 0.2 for at in theirs], list(theirs.values()), width, color=PAPER, label="paper")
            axes.bar_label(beside, fmt="%.1f", fontsize=9)
        axes.set_ylabel(f"{name} micro-F1, %", fontsize=11)
        axes.set_xticks(list(places), list(rows), fontsize=11)
        axes.margins(y=0.15)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].legend(frameon=False, ncols=2, fontsize=11, loc="upper left", bbox_to_anchor=(0, 1.18))
    return figure
