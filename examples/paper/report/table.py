"""A table as text for a terminal, as Markdown and as LaTeX."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "→": r"$\to$",
    "≤": r"$\le$",
    "≥": r"$\ge$",
    "≈": r"$\approx$",
    "<": r"$<$",
    ">": r"$>$",
    "✓": r"$\checkmark$",
    "✗": r"$\times$",
    "★": r"$\star$",
    "Δ": r"$\Delta$",
} | {character: "\\" + character for character in "&%$#_{}"}


@dataclass(frozen=True)
class Cell:
    """Figures with strokes between them, some of them in bold."""

    parts: Sequence[str]
    bold: Sequence[bool]

    def join(self, escape: Callable[[str], str], embolden: str) -> str:
        return "/".join(
            embolden.format(escape(part)) if bold else escape(part)
            for part, bold in zip(self.parts, self.bold, strict=True)
        )


@dataclass(frozen=True)
class Table:
    """``name`` is the file's; ``about`` says whose figures they are; ``bold`` what bold means; ``left`` columns are
    aligned to the left."""

    name: str
    about: str
    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[Cell | str]]
    notes: Sequence[str] = ()
    bold: str = ""
    left: int = 1

    def text(self) -> str:
        """Columns aligned for a terminal."""
        lines = [list(self.header), *([_plain(cell) for cell in row] for row in self.rows)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        aligned = (
            "  ".join(
                cell.ljust(width) if at < self.left else cell.rjust(width)
                for at, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in lines
        )
        return "\n".join((f"{self.about}: {self.caption}", "", *aligned, *(f"\n{note}" for note in self._notes("*"))))

    def markdown(self) -> str:
        rule = ["---" if at < self.left else "---:" for at in range(len(self.header))]
        cells = ([_markdown(cell) for cell in row] for row in self.rows)
        lines = ("| " + " | ".join(line) + " |" for line in (map(_escape, self.header), rule, *cells))
        return (
            "\n".join(
                (
                    f"**{_escape(self.caption[:1].upper() + self.caption[1:])}**\n",
                    *lines,
                    *(f"\n{_escape(note)}" for note in self._notes("Bold")),
                )
            )
            + "\n"
        )

    def latex(self) -> str:
        """A table environment; needs the packages amssymb, booktabs and graphicx."""
        align = "l" * self.left + "r" * (len(self.header) - self.left)
        notes = "".join(f"\n\n\\smallskip{{\\footnotesize {latex_escape(note)}\\par}}" for note in self._notes("Bold"))
        return "\n".join(
            (
                r"\begin{table}[htbp]",
                r"\centering",
                rf"\caption{{{latex_escape(f'{self.about}: {self.caption}')}}}",
                # Wide tables are shrunk to the page, narrow ones are left.
                rf"\resizebox{{\ifdim\width>\linewidth\linewidth\else\width\fi}}{{!}}{{\begin{{tabular}}{{{align}}}",
                r"\toprule",
                " & ".join(map(latex_escape, self.header)) + r" \\",
                r"\midrule",
                *(" & ".join(map(_latex, row)) + r" \\" for row in self.rows),
                r"\bottomrule",
                rf"\end{{tabular}}}}{notes}",
                r"\end{table}",
            )
        )

    def _notes(self, mark: str) -> list[str]:
        return [*([f"{mark}: {self.bold}."] if self.bold else []), *self.notes]


def latex_escape(text: str) -> str:
    escaped = "".join(_LATEX.get(character, character) for character in text)
    return re.sub(r"(?<!\w)-(?=\d)", r"$-$", escaped)


def _plain(cell: Cell | str) -> str:
    return cell if isinstance(cell, str) else cell.join(str, "{}*")


def _escape(text: str) -> str:
    # A label may hold what Markdown would read as a column's end or as HTML.
    return text.replace("|", "\\|").replace("<", "&lt;")


def _markdown(cell: Cell | str) -> str:
    return _escape(cell) if isinstance(cell, str) else cell.join(_escape, "**{}**")


def _latex(cell: Cell | str) -> str:
    return latex_escape(cell) if isinstance(cell, str) else cell.join(latex_escape, r"\textbf{{{}}}")
