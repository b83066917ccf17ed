"""A table as text for a terminal, as Markdown and as LaTeX."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pandas as pd

_LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        **{sign: f"${sign}$" for sign in "<>"},
        **{sign: f"\\{sign}" for sign in "&%$#_{}"},
        **{"±": r"$\pm$", "→": r"$\to$", "≤": r"$\le$", "≥": r"$\ge$", "≈": r"$\approx$", "Δ": r"$\Delta$"},
        **{"✓": r"$\checkmark$", "✗": r"$\times$", "★": r"$\star$", "†": r"$\dagger$"},
    }
)
# A label may hold what Markdown would read as a column's end or as HTML.
_MARKDOWN = str.maketrans({"|": "\\|", "<": "&lt;"})
# Around what is bold: control characters, which no label has.
_BEGIN, _END = "\x02", "\x03"


def bold(text: str, condition: bool = True) -> str:
    """The text of a cell, or a part of it, in bold where the condition holds."""
    return f"{_BEGIN}{text}{_END}" if condition else text


def plain(cell: str) -> str:
    """The cell without what makes it bold."""
    return cell.replace(_BEGIN, "").replace(_END, "")


@dataclass(frozen=True)
class Table:
    """``name`` is the file's; ``about`` says whose figures they are; ``bold`` what bold means; ``left`` columns are
    aligned to the left."""

    name: str
    about: str
    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()
    bold: str = ""
    left: int = 1

    def text(self) -> str:
        """Columns aligned for a terminal."""
        notes = "".join(f"\n\n{note}" for note in self._notes("*"))
        return f"{self.about}: {self.caption}\n\n{self._tabulated('plain', str, '', '*')}{notes}"

    def markdown(self) -> str:
        notes = "".join(f"\n\n{_markdown(note)}" for note in self._notes("Bold"))
        caption = _markdown(self.caption[:1].upper() + self.caption[1:])
        return f"**{caption}**\n\n{self._tabulated('pipe', _markdown, '**', '**')}{notes}\n"

    def latex(self) -> str:
        """A table environment; needs the packages amssymb, booktabs and graphicx."""
        align = "l" * self.left + "r" * (len(self.header) - self.left)
        frame = self._frame(latex_escape, r"\textbf{", "}")
        tabular = frame.to_latex(index=False, escape=False, column_format=align).strip()
        notes = "".join(f"\n\n\\smallskip{{\\footnotesize {latex_escape(note)}\\par}}" for note in self._notes("Bold"))
        # Wide tables are shrunk to the page, narrow ones are left.
        width = r"\ifdim\width>\linewidth\linewidth\else\width\fi"
        return (
            f"\\begin{{table}}[htbp]\n\\centering\n\\caption{{{latex_escape(f'{self.about}: {self.caption}')}}}\n"
            f"\\resizebox{{{width}}}{{!}}{{{tabular}}}{notes}\n\\end{{table}}"
        )

    def _frame(self, escape: Callable[[str], str], begin: str, end: str) -> pd.DataFrame:
        cells = [[escape(cell).replace(_BEGIN, begin).replace(_END, end) for cell in row] for row in self.rows]
        return pd.DataFrame(cells, columns=[escape(name) for name in self.header])

    def _tabulated(self, form: str, escape: Callable[[str], str], begin: str, end: str) -> str:
        aligned = ["left"] * self.left + ["right"] * (len(self.header) - self.left)
        options = {"tablefmt": form, "colalign": aligned, "disable_numparse": True}
        return str(self._frame(escape, begin, end).to_markdown(index=False, **options))

    def _notes(self, mark: str) -> list[str]:
        return [*([f"{mark}: {self.bold}."] if self.bold else []), *self.notes]


def latex_escape(text: str) -> str:
    return re.sub(r"(?<!\w)-(?=\d)", r"$-$", text.translate(_LATEX))


def _markdown(text: str) -> str:
    return text.translate(_MARKDOWN)
