"""Figure 3 of the paper: the probability p(i|j) of label i where label j is, as a colour map."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter
from numpy.typing import NDArray
from scipy.sparse import csr_array, diags_array

from report.corpus_figures import CorpusFigures

# Up to here each label has a cell and a name, beyond labels share cells.
MOST_NAMED = 120
CELLS = 300
TICKS = (0.0, 1e-4, 1e-3, 0.01, 0.05, 0.2, 0.5, 1.0)


def conditional_probability(corpus: CorpusFigures, cells: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Means of p(i|j) over blocks of labels ordered from the most frequent.

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
    """Every label on a linear scale where they can be named; else blocks of labels on a scale of the fourth root."""
    num_labels = len(corpus.counts)
    named = num_labels <= MOST_NAMED
    probability, edges = conditional_probability(corpus, num_labels if named else CELLS)
    figure = Figure(figsize=(11, 9.6), layout="constrained")
    axes = figure.add_subplot()
    most = float(np.nanmax(probability, initial=0)) or 1.0
    axes.set_facecolor("#cccccc")
    image = axes.imshow(
        probability,
        cmap="magma_r" if named else "magma",
        norm=PowerNorm(1 if named else 0.25, vmin=0, vmax=most),
        interpolation="none",
    )
    bar = figure.colorbar(image, ax=axes, fraction=0.045, pad=0.02)
    bar.set_label("p(i|j)" + ("" if named else ", mean of the cell; colours by its fourth root"), fontsize=13)
    if not named:
        bar.set_ticks([tick for tick in TICKS if tick <= most])
        bar.ax.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    bar.ax.tick_params(labelsize=11)
    _mark_groups(axes, corpus, edges)
    if named:
        order = np.argsort(-corpus.counts, kind="stable")
        names = [corpus.label_names[label] for label in order]
        size = min(11.0, 640 / num_labels)
        axes.set_xticks(range(num_labels), names, rotation=90, fontsize=size)
        axes.set_yticks(range(num_labels), names, fontsize=size)
    else:
        ranks = [int(rank) for rank in MaxNLocator(6).tick_values(0, num_labels) if rank < num_labels]
        places = np.interp(ranks, edges, np.arange(len(edges))) - 0.5
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_ticks(places, [f"{rank:,}" for rank in ranks], fontsize=11)
    share = "" if named else f", {int(np.diff(edges).max())} to a cell"
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
