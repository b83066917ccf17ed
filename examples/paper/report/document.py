"""The report: all tables and figures of the runs in some folders, as Markdown and LaTeX, and their numbers as JSON."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from files import Json, atomic_file
from matplotlib.figure import Figure
from progress import progress
from records import GROUPS, Run, make_run

from report.agreement import claims_table, order_table, overview_table
from report.corpus_figures import SIZES, CorpusFigures, read_corpus_figures
from report.figures import draw_co_occurrence, draw_long_tail, draw_rare_labels, save
from report.groups import Figures, Group, group_runs, read_runs, slug
from report.labels import label_table
from report.paper_scores import paper_scores
from report.table import Table, latex_escape
from report.tables import ablation_table, confusion_table, corpus_table, frequency_table, instance_table, runs_table
from report.thresholds import ranking_table, threshold_table

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
    places: set[str] = field(default_factory=set)

    def heading(self, level: int, text: str) -> None:
        self.markdown.append(f"{'#' * level} {text}\n")
        self.latex.append(rf"\{('section', 'section', 'subsection')[level - 1]}*{{{latex_escape(text)}}}")

    def paragraph(self, text: str) -> None:
        self.markdown.append(f"{text}\n")
        self.latex.append(latex_escape(text) + "\n")

    def table(self, table: Table | None, place: str) -> None:
        if table is not None:
            path = Path(place, f"{table.name}.tex")
            self._write(path, table.latex() + "\n")
            self.markdown.append(table.markdown())
            self.latex.append(rf"\input{{{path.with_suffix('').as_posix()}}}")

    def file(self, text: str, place: str, what: str) -> None:
        self._write(Path(place), text)
        self.markdown.append(f"[{what}]({place})\n")

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

    def unused(self, place: str) -> str:
        """The folder, with a number where another part of the report has it already."""
        names = (place if number == 1 else f"{place}-{number}" for number in range(1, len(self.places) + 2))
        unused = next(name for name in names if name not in self.places)
        self.places.add(unused)
        return unused

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


def make_report(folders: Sequence[Path], output: Path) -> list[Path]:
    """Writes the report of all records below ``folders`` into ``output``.

    It is made without what is missing or cannot be used, with a warning.

    Returns:
        The files written, ``report.md``, ``report.tex`` and ``report.json`` last.

    Raises:
        NothingToReportError: where there is neither a record nor a corpus.
        OSError: where ``output`` cannot be written.
    """
    runs, corpora = read_runs(folders), _corpora(folders)
    if not runs and not corpora:
        raise NothingToReportError(f"no record below {', '.join(map(str, folders))}: expected JSON files in 'records'")
    groups = group_runs(runs)
    names = {fingerprint: figures.sizes["name"] for fingerprint, figures in corpora.items()}
    names |= {group.fingerprint: group.corpus for group in groups}
    papers = {fingerprint: figures.sizes["paper"] for fingerprint, figures in corpora.items()}
    content: Json = {"corpora": [], "groups": []}
    document = Document(output)
    document.heading(1, "Report")
    document.table(overview_table([(group, papers.get(group.fingerprint)) for group in groups]), "")
    for fingerprint, name in names.items():
        place = document.unused(slug(name))
        document.heading(2, name)
        if fingerprint in corpora:
            _add_corpus(document, corpora[fingerprint], place)
            content["corpora"].append(corpora[fingerprint].sizes)
        else:
            progress.warn(
                f"{name} ({fingerprint}): no {SIZES}, so no Table 1, no Figures 2 and 3 and no figures of the paper"
            )
        for group in groups:
            if group.fingerprint == fingerprint:
                paper = papers.get(fingerprint)
                counts = corpora[fingerprint].label_counts if fingerprint in corpora else {}
                _add_group(document, group, paper, document.unused(f"{place}/{group.slug}"), counts)
                content["groups"].append(_as_json(group, paper))
    return document.finish(content)


def tables_text(records: Iterable[Json], paper: str | None) -> str:
    """Tables 2 and 3 and the paper's claims as text, for each group of records that may be compared.

    paper: the corpus of the paper whose figures stand beside ours, if any.

    Raises:
        ValueError: for a record that is none.
    """
    texts = []
    for group in group_runs(make_run(Path(), record) for record in records):
        if group.rows:
            claims = claims_table(group) if paper else None
            tables = [frequency_table(group, paper), instance_table(group, paper), claims]
            tables += [threshold_table(group), ranking_table(group)]
            texts += [table.text() for table in tables if table is not None]
    return "\n\n".join(texts)


def _corpora(folders: Iterable[Path]) -> dict[str, CorpusFigures]:
    found: dict[str, CorpusFigures] = {}
    for path in (path for folder in folders for path in sorted(folder.rglob(SIZES))):
        try:
            figures = read_corpus_figures(path.parent)
        except (OSError, ValueError) as error:
            progress.warn(f"left out: {error}")
            continue
        found.setdefault(figures.sizes["fingerprint"], figures)
    return found


def _add_corpus(document: Document, corpus: CorpusFigures, place: str) -> None:
    name, notice = corpus.sizes["name"], corpus.sizes["notice"]
    if notice:
        document.paragraph(notice)
    document.table(corpus_table(corpus.sizes), place)
    caption = f"{name}: training documents of each label (Figure 2 of the paper)"
    document.figure(draw_long_tail(corpus), place, "figure2", caption)
    caption = f"{name}: co-occurrence p(i|j), grey where no training document has j (Figure 3 of the paper)"
    document.figure(draw_co_occurrence(corpus), place, "figure3", caption)


def _add_group(
    document: Document, group: Group, paper: str | None, place: str, label_counts: Mapping[str, int]
) -> None:
    document.heading(3, group.about)
    if group.unfinished:
        document.paragraph(f"Not finished: {'; '.join(map(_progress, group.unfinished))}.")
    if not group.rows:
        return
    if paper:
        document.table(claims_table(group), place)
        document.table(claims_table(group, own=True), place)
        document.table(order_table(group, paper), place)
    document.table(frequency_table(group, paper), place)
    document.table(threshold_table(group), place)
    document.table(ranking_table(group), place)
    document.figure(draw_rare_labels(group, paper), place, "rare_labels", f"{group.about}: medium and tail labels")
    for table in (instance_table, ablation_table, confusion_table):
        document.table(table(group, paper), place)
    if labels := label_table(group, label_counts):
        document.file(labels, f"{place}/labels.csv", "Each label by itself, at the methods' own thresholds")
    document.table(runs_table(group), place)


def _progress(run: Run) -> str:
    scores = [score for epoch in run.epochs if isinstance(score := epoch.get("micro_f1"), (int, float))]
    so_far = f", best validation micro-F1 {100 * max(scores):.2f}" if scores else ""
    return f"{run.method} seed {run.seed} ({len(run.epochs)} epochs{so_far})"


def _as_json(group: Group, paper: str | None) -> Json:
    """F1 in percent by row, ours and the paper's."""
    rows: Json = {}
    for row in group.rows:
        ours = _means(row.scores)
        rows[row.name] = {"runs": len(row.runs)}
        for part, table, by_label in (("by_label_frequency", 2, True), ("by_labels_an_instance", 3, False)):
            rows[row.name][part] = {
                "ours": {name: f1s for name, f1s in ours.items() if (name in GROUPS) is by_label},
                "paper": paper_scores(table, paper).get(row.method or "", {}),
            }
        for name in ("own", "by_group", "by_label"):
            if scores := row.scores_at(name):
                rows[row.name][name] = _means(scores)
    return {"corpus": group.corpus, "encoder": group.encoder, "convention": group.convention, "rows": rows}


def _means(scores: Figures) -> Json:
    return {
        name: {kind: {"mean": f1.mean, "std": f1.std} for kind, f1 in kinds.items()} for name, kinds in scores.items()
    }
