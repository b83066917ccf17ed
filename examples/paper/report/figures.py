"""Figures 2 and 3 of the paper, and the scores of rare labels, as PNG and PDF."""

from pathlib import Path

import matplotlib
import numpy as np
from files import atomic_file
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter
from numpy.typing import NDArray
from scipy.sparse import csr_array, diags_array

from report.corpus_figures import CorpusFigures
from report.groups import Group
from report.paper_scores import paper_scores

OURS, PAPER = "#1f5a96", "#b9c4d0"
GROUP_COLORS = {"head": "#1f5a96", "medium": "#d98a1f", "tail": "#a63a50"}
DPI = 150
# Up to here each label has a cell and a name, beyond labels share cells.
MOST_NAMED = 120
CELLS = 300
TICKS = (0.0, 1e-4, 1e-3, 0.01, 0.05, 0.2, 0.5, 1.0)


def save(figure: Figure, stem: Path) -> list[Path]:
    """Writes ``stem`` with .png and .pdf, the same bytes for the same picture."""
    paths = [stem.with_name(stem.name + suffix) for suffix in (".png", ".pdf")]
    # Text stays text in the PDF, in a font that it carries.
    with matplotlib.rc_context({"pdf.fonttype": 42}):
        for path in paths:
            with atomic_file(path) as temporary:
                dated = {"CreationDate": None} if path.suffix == ".pdf" else {"Software": None}
                figure.savefig(temporary, dpi=DPI, metadata=dated, bbox_inches="tight")
    return paths


def draw_long_tail(corpus: CorpusFigures) -> Figure:
    """Figure 2: training documents of each label, by rank; on a logarithmic scale where they span more than two orders
    of magnitude."""
    counts = np.sort(corpus.counts)[::-1]
    head, tail = corpus.sizes["head"], corpus.sizes["tail"]
    bounds = [0, int((counts >= head).sum()), int((counts > tail).sum()), len(counts)]
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    logarithmic = counts[0] > 100 * max(1, counts[-1])
    # On the logarithmic scale a label never seen stands at the bottom.
    least = 0.7 if logarithmic else 0
    shown, edges = np.maximum(counts, least), np.arange(len(counts) + 1)
    rules = {"head": f"≥ {head}", "medium": f"{tail + 1} to {head - 1}", "tail": f"≤ {tail}"}
    for (name, color), first, end in zip(GROUP_COLORS.items(), bounds[:-1], bounds[1:], strict=True):
        if first < end:
            label = f"{name}: {end - first:,} labels ({rules[name]})"
            many = len(counts) > 2000
            places = edges[first : end + 1]
            axes.stairs(shown[first:end], places, baseline=least, fill=True, color=color, label=label, rasterized=many)
            axes.axvspan(first, end, color=color, alpha=0.1, linewidth=0)
    if logarithmic:
        axes.set_yscale("log")
    axes.set_ylim(least, counts[0] * (1.5 if logarithmic else 1.05) or 1)
    axes.set_xlim(0, len(counts))
    for axis, text in ((axes.xaxis, "labels, most frequent first"), (axes.yaxis, "training documents")):
        axis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axis.set_label_text(text, fontsize=12)
    axes.tick_params(labelsize=11)
    axes.set_title(f"{corpus.sizes['name']}: {len(counts):,} labels", fontsize=13)
    axes.legend(frameon=False, fontsize=11, loc="upper right")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def conditional_probability(corpus: CorpusFigures, cells: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Means of p(i|j), the share of label i where label j is, over blocks of labels ordered from the most frequent.

    Returns:
        [B, B] with B <= cells, i by row and NaN where no label j was seen; [B + 1], the ranks where blocks begin.
    """
    order = np.argsort(-corpus.counts, kind="stable")
    edges = np.unique(np.linspace(0, len(order), min(cells, len(order)) + 1).astype(np.int64))
    block = np.empty(len(order), np.int64)
    block[order] = np.searchsorted(edges, np.arange(len(order)), side="right") - 1
    seen = corpus.counts > 0
    shape = (len(edges) - 1, len(order))
    by_block = csr_array((np.ones(len(order)), (block, np.arange(len(order)))), shape=shape)
    inverse = diags_array(1 / np.maximum(corpus.counts, 1))
    total = (by_block @ (corpus.co_occurrence @ inverse) @ by_block.T).toarray()
    pairs = np.diff(edges)[:, None] * np.bincount(block[seen], minlength=shape[0])[None, :]
    with np.errstate(invalid="ignore"):
        return np.where(pairs > 0, total / pairs, np.nan), edges


def draw_co_occurrence(corpus: CorpusFigures) -> Figure:
    """Figure 3: p(i|j) as a colour map. Every label on a linear scale where they can be named; else blocks of labels on
    a scale of the fourth root."""
    num_labels = len(corpus.counts)
    named = num_labels <= MOST_NAMED
    probability, edges = conditional_probability(corpus, num_labels if named else CELLS)
    figure = Figure(figsize=(11, 9.6), layout="constrained")
    axes = figure.add_subplot()
    most = float(np.nanmax(probability, initial=0)) or 1.0
    axes.set_facecolor("#cccccc")
    norm = PowerNorm(1 if named else 0.25, vmin=0, vmax=most)
    image = axes.imshow(probability, cmap="magma_r" if named else "magma", norm=norm, interpolation="none")
    bar = figure.colorbar(image, ax=axes, fraction=0.045, pad=0.02)
    bar.set_label("p(i|j)" + ("" if named else ", mean of the cell; colours by its fourth root"), fontsize=13)
    bar.ax.tick_params(labelsize=11)
    _mark_groups(axes, corpus, edges)
    if named:
        places = np.arange(num_labels, dtype=np.float64)
        texts = [corpus.label_names[label] for label in np.argsort(-corpus.counts, kind="stable")]
        size, share = min(11.0, 640 / num_labels), ""
    else:
        bar.set_ticks([tick for tick in TICKS if tick <= most])
        bar.ax.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        ranks = [int(rank) for rank in MaxNLocator(6).tick_values(0, num_labels) if rank < num_labels]
        places = np.interp(ranks, edges, np.arange(len(edges))) - 0.5
        texts = [f"{rank:,}" for rank in ranks]
        size, share = 11.0, f", {int(np.diff(edges).max())} to a cell"
    axes.set_xticks(places, texts, rotation=90 if named else 0, fontsize=size)
    axes.set_yticks(places, texts, fontsize=size)
    axes.set_xlabel(f"label j, most frequent first{share}", fontsize=13)
    axes.set_ylabel(f"label i, most frequent first{share}", fontsize=13)
    axes.set_title(f"{corpus.sizes['name']}: co-occurrence in training (lines: head, medium, tail)", fontsize=14)
    return figure


def _mark_groups(axes: Axes, corpus: CorpusFigures, edges: NDArray[np.int64]) -> None:
    """Lines between head, medium and tail."""
    for reached in (corpus.counts >= corpus.sizes["head"], corpus.counts > corpus.sizes["tail"]):
        place = np.interp(int(reached.sum()), edges, np.arange(len(edges))) - 0.5
        for line in (axes.axvline, axes.axhline):
            line(place, color="#2b8cbe", linewidth=0.8)


def draw_rare_labels(group: Group, paper: str | None) -> Figure:
    """Medium and tail micro-F1 of every method, ours beside the paper's, with the deviation over several seeds."""
    rows, published = group.by_method, paper_scores(2, paper)
    figure = Figure(figsize=(9, 6), layout="constrained")
    figure.suptitle(group.about, fontsize=13)
    places = np.arange(len(rows))
    width, aside = (0.4, 0.2) if published else (0.7, 0.0)
    for axes, name in zip(figure.subplots(2, 1, sharex=True), ("medium", "tail"), strict=True):
        ours = [row.scores[name]["micro"] for row in rows.values()]
        error = [f1.std for f1 in ours] if any(f1.num_seeds > 1 for f1 in ours) else None
        bars = axes.bar(places - aside, [f1.mean for f1 in ours], width, yerr=error, color=OURS, label="ours")
        axes.bar_label(bars, fmt="%.1f", fontsize=9)
        if published:
            theirs = {at: published[method][name]["micro"] for at, method in enumerate(rows) if method in published}
            at = [place + aside for place in theirs]
            axes.bar_label(
                axes.bar(at, list(theirs.values()), width, color=PAPER, label="paper"), fmt="%.1f", fontsize=9
            )
        axes.set_ylabel(f"{name} micro-F1, %", fontsize=11)
        axes.set_xticks(places, list(rows), fontsize=11)
        axes.margins(y=0.15)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].legend(frameon=False, ncols=2, fontsize=11, loc="upper left", bbox_to_anchor=(0, 1.18))
    return figure
