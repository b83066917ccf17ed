"""The report: all tables and figures of the runs in some folders, as Markdown and LaTeX, and their numbers as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from files import atomic_file
from matplotlib.figure import Figure

from report.agreement import claims_table, order_table, overview_table
from report.co_occurrence_figure import draw_co_occurrence
from report.confusion_table import confusion_table
from report.corpus_figures import SIZES, CorpusFigures, read_corpus_figures
from report.corpus_table import corpus_table
from report.figure_files import save
from report.groups import Figures, Group, group_runs, slug
from report.long_tail_figure import draw_long_tail
from report.paper_scores import Scores, paper_scores
from report.record_files import Json, Run, Warn, read_runs
from report.score_figure import draw_rare_labels
from report.score_tables import ablation_table, frequency_table, instance_table, runs_table
from report.table import Table, latex_escape

PREAMBLE = r"""\documentclass{article}
\usepackage[a4paper,margin=2cm]{geometry}
\usepackage[T1]{fontenc}
\usepackage{amssymb,booktabs,graphicx}
\begin{document}
"""


class NothingToReportError(Exception):
    """There is neither a record nor a corpus."""


@dataclass
class Document:
    """Text in both languages; tables and pictures are files of their own below ``folder``."""

    folder: Path
    markdown: list[str] = field(default_factory=list)
    latex: list[str] = field(default_factory=list)
    written: list[Path] = field(default_factory=list)

    def heading(self, level: int, text: str) -> None:
        self.markdown.append(f"{'#' * level} {text}\n")
        self.latex.append(rf"\{('section', 'section', 'subsection')[level - 1]}*{{{latex_escape(text)}}}")

    def paragraph(self, text: str) -> None:
        self.markdown.append(f"{text}\n")
        self.latex.append(latex_escape(text) + "\n")

    def table(self, table: Table | None, place: str) -> None:
        if table is None:
            return
        path = Path(place, f"{table.name}.tex")
        self._write(path, table.latex() + "\n")
        self.markdown.append(table.markdown())
        self.latex.append(rf"\input{{{path.with_suffix('').as_posix()}}}")

    def figure(self, figure: Figure, place: str, name: str, caption: str) -> None:
        stem = Path(place, name)
        (self.folder / stem).parent.mkdir(parents=True, exist_ok=True)
        self.written += save(figure, self.folder / stem)
        self.markdown.append(f"![{caption}]({stem.as_posix()}.png)\n")
        self.latex.append(
            "\\begin{figure}[htbp]\\centering\n"
            rf"\includegraphics[width=\linewidth]{{{stem.as_posix()}}}"
            f"\n\\caption{{{latex_escape(caption)}}}\n\\end{{figure}}"
        )

    def finish(self, content: Json) -> list[Path]:
        """Writes report.md, report.tex and report.json; all files written."""
        self._write(Path("report.md"), "\n".join(self.markdown))
        self._write(Path("report.tex"), PREAMBLE + "\n".join(self.latex) + "\n\\end{document}\n")
        self._write(Path("report.json"), json.dumps(content, indent=1, ensure_ascii=False) + "\n")
        return self.written

    def _write(self, path: Path, text: str) -> None:
        (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(self.folder / path) as temporary:
            temporary.write_text(text, encoding="utf-8")
        self.written.append(self.folder / path)


def make_report(folders: Sequence[Path], output: Path, warn: Warn) -> list[Path]:
    """Writes the report of all records below ``folders`` into ``output``.

    warn: told of what is missing or cannot be used; the report is made without it.

    Returns:
        The files written, ``report.md``, ``report.tex`` and ``report.json`` last.

    Raises:
        NothingToReportError: where there is neither a record nor a corpus.
        OSError: where ``output`` cannot be written.
    """
    runs, corpora = read_runs(folders, warn), _corpora(folders, warn)
    if not runs and not corpora:
        raise NothingToReportError(f"no record below {', '.join(map(str, folders))}: expected JSON files in 'records'")
    groups = group_runs(runs)
    names = {fingerprint: figures.sizes["name"] for fingerprint, figures in corpora.items()}
    names |= {group.fingerprint: group.corpus for group in groups}
    document = Document(output)
    document.heading(1, "Report")
    content: Json = {"corpora": [], "groups": []}
    papers = {fingerprint: figures.sizes["paper"] for fingerprint, figures in corpora.items()}
    document.table(overview_table([(group, papers.get(group.fingerprint)) for group in groups]), "")
    places: set[str] = set()
    for fingerprint, name in names.items():
        place = _unused(slug(name), places)
        document.heading(2, name)
        figures = corpora.get(fingerprint)
        if figures is None:
            warn(f"{name} ({fingerprint}): no {SIZES}, so no Table 1, no Figures 2 and 3 and no figures of the paper")
        else:
            _add_corpus(document, figures, place)
            content["corpora"].append(figures.sizes)
        for group in groups:
            if group.fingerprint == fingerprint:
                paper = papers.get(fingerprint)
                _add_group(document, group, paper, _unused(f"{place}/{group.slug}", places))
                content["groups"].append(_as_json(group, paper))
    return document.finish(content)


def _add_corpus(document: Document, figures: CorpusFigures, place: str) -> None:
    notice = figures.sizes["notice"]
    if notice:
        document.paragraph(notice)
    document.table(corpus_table(figures.sizes), place)
    name = figures.sizes["name"]
    document.figure(
        draw_long_tail(figures), place, "figure2", f"{name}: training documents of each label (Figure 2 of the paper)"
    )
    document.figure(
        draw_co_occurrence(figures),
        place,
        "figure3",
        f"{name}: co-occurrence p(i|j), grey where no training document has j (Figure 3 of the paper)",
    )


def _add_group(document: Document, group: Group, paper: str | None, place: str) -> None:
    document.heading(3, group.about)
    if group.unfinished:
        document.paragraph(f"Not finished: {'; '.join(map(_progress, group.unfinished))}.")
    if not group.rows:
        return
    if paper:
        document.table(claims_table(group), place)
        document.table(order_table(group, paper), place)
    document.table(frequency_table(group, paper), place)
    document.figure(draw_rare_labels(group, paper), place, "rare_labels", f"{group.about}: medium and tail labels")
    for table in (instance_table, ablation_table, confusion_table):
        document.table(table(group, paper), place)
    document.table(runs_table(group), place)


def _progress(run: Run) -> str:
    scores = [score for epoch in run.epochs if isinstance(score := epoch.get("micro_f1"), (int, float))]
    so_far = f", best validation micro-F1 {100 * max(scores):.2f}" if scores else ""
    return f"{run.method} seed {run.seed} ({len(run.epochs)} epochs{so_far})"


def _corpora(folders: Iterable[Path], warn: Warn) -> dict[str, CorpusFigures]:
    found: dict[str, CorpusFigures] = {}
    for folder in folders:
        for path in sorted(folder.rglob(SIZES)):
            try:
                figures = read_corpus_figures(path.parent)
            except (OSError, ValueError) as error:
                warn(f"left out: {error}")
                continue
            found.setdefault(figures.sizes["fingerprint"], figures)
    return found


def _as_json(group: Group, paper: str | None) -> Json:
    """F1 in percent by row, ours and the paper's."""

    def ours(figures: Figures) -> Json:
        return {
            name: {kind: {"mean": f1.mean, "std": f1.std} for kind, f1 in kinds.items()}
            for name, kinds in figures.items()
        }

    def theirs(table: int, method: str | None) -> Scores:
        return paper_scores(table, paper).get(method or "", {})

    return {
        "corpus": group.corpus,
        "encoder": group.encoder,
        "convention": group.convention,
        "rows": {
            row.name: {
                "runs": len(row.runs),
                "by_label_frequency": {"ours": ours(row.by_label), "paper": theirs(2, row.method)},
                "by_labels_an_instance": {"ours": ours(row.by_instance), "paper": theirs(3, row.method)},
            }
            for row in group.rows
        },
    }


def _unused(place: str, places: set[str]) -> str:
    number, unused = 1, place
    while unused in places:
        number += 1
        unused = f"{place}-{number}"
    places.add(unused)
    return unused
