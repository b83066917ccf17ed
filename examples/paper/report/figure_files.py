"""Pictures as PNG and PDF."""

from __future__ import annotations

from pathlib import Path

import matplotlib
from files import atomic_file
from matplotlib.figure import Figure

OURS, PAPER = "#1f5a96", "#b9c4d0"
GROUP_COLORS = {"head": "#1f5a96", "medium": "#d98a1f", "tail": "#a63a50"}
DPI = 150


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
