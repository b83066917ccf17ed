"""Figure 2 of the paper: how many training documents each label has, from the most frequent label to the rarest."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter

from report.corpus_figures import CorpusFigures
from report.figure_files import GROUP_COLORS


def draw_long_tail(corpus: CorpusFigures) -> Figure:
    """Labels by rank; on a logarithmic scale where the counts span more than two orders of magnitude."""
    counts = np.sort(corpus.counts)[::-1]
    head, tail = corpus.sizes["head"], corpus.sizes["tail"]
    bounds = [0, int((counts >= head).sum()), int((counts > tail).sum()), len(counts)]
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    logarithmic = counts[0] > 100 * max(1, counts[-1])
    # On the logarithmic scale a label never seen stands at the bottom.
    least = 0.7 if logarithmic else 0
    shown = np.maximum(counts, least)
    edges = np.arange(len(counts) + 1)
    for name, first, end in zip(GROUP_COLORS, bounds[:-1], bounds[1:], strict=True):
        if first == end:
            continue
        rule = {"head": f"≥ {head}", "medium": f"{tail + 1} to {head - 1}", "tail": f"≤ {tail}"}[name]
        axes.stairs(
            shown[first:end],
            edges[first : end + 1],
            baseline=least,
            fill=True,
            color=GROUP_COLORS[name],
            label=f"{name}: {end - first:,} labels ({rule})",
            rasterized=len(counts) > 2000,
        )
        axes.axvspan(first, end, color=GROUP_COLORS[name], alpha=0.1, linewidth=0)
    if logarithmic:
        axes.set_yscale("log")
    axes.set_ylim(least, counts[0] * (1.5 if logarithmic else 1.05) or 1)
    axes.set_xlim(0, len(counts))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.set_xlabel("labels, most frequent first", fontsize=12)
    axes.set_ylabel("training documents", fontsize=12)
    axes.tick_params(labelsize=11)
    axes.set_title(f"{corpus.sizes['name']}: {len(counts):,} labels", fontsize=13)
    axes.legend(frameon=False, fontsize=11, loc="upper right")
    axes.spines[["top", "right"]].set_visible(False)
    return figure
