"""Reproduces Table 2 of Huang et al. (EMNLP 2021) on Reuters-21578, with a small network in the place of BERT.

Protocol: 7,769 training documents, 1,000 of them for validation, and 3,019 for test; 90 labels. Vocabulary, label
counts and frequency groups (head: 35 training documents and more, tail: 8 and fewer) come from the 6,769 documents
left for training. All losses are trained alike. The epoch and one threshold from 0.40 to 0.60 are those with the best
validation micro-F1. TUNING.md says how network and training were chosen.
"""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from corpus import Corpus
from evaluation import KINDS
from experiment import Experiment, versions
from figure import draw_rare_labels
from generated_corpus import generate_corpus
from options import Options, parse_options
from records import RecordStore, write_atomically
from reuters_corpus import ReutersUnavailableError, load_reuters
from tables import Row, markdown_table, rows_as_json, text_table

INTERRUPTED = 130
CAPTION = "Micro/macro-F1 on the test documents, in percent"


def choose_corpus(options: Options) -> Corpus:
    """Reuters, or, on request and where it is not to be had, the generated corpus."""
    reason = "asked for by --generated"
    if not options.generated:
        try:
            return load_reuters()
        except ReutersUnavailableError as error:
            reason = f"Reuters is not available: {error}"
    return generate_corpus(f"GENERATED DATA: the figures are NOT on Reuters ({reason})", options.documents)


def run(corpus: Corpus, options: Options) -> int:
    start = time.perf_counter()
    print(corpus.describe())
    store = RecordStore(options.output / "records", warn=lambda message: print(f"warning: {message}", file=sys.stderr))
    experiment = Experiment(corpus, options, store)
    try:
        experiment.run_missing()
    except KeyboardInterrupt:
        rows = experiment.rows()
        print("\n\nInterrupted." + (f" {CAPTION}, as far as done:\n\n{text_table(rows)}\n" if rows else ""))
        print(f"The same command goes on from here: {shlex.join(['python', *sys.argv])}")
        return INTERRUPTED
    rows = experiment.rows()
    print(f"\n{CAPTION}\n\n{text_table(rows)}\n")
    statistics, targets = experiment.dataset.statistics, experiment.dataset.train.targets
    print(f"mu by LabelStatistics.suggest_mu: {statistics.suggest_mu(targets):.3f} (paper: 0.9)")
    print_gain(rows)
    if validation := experiment.validation_mean():
        micro, macro = (100 * validation[kind] for kind in KINDS)
        print(f"validation micro/macro-F1, mean of the losses: {micro:.2f}/{macro:.2f}")
    for path in write_results(rows, experiment, options):
        print(f"wrote {path}")
    print(f"{time.perf_counter() - start:.0f} s in all")
    return 0


def print_gain(rows: Sequence[Row]) -> None:
    figures = {row.method: row.figures for row in rows}
    if "DB" in figures and "BCE" in figures:
        macro, tail = (
            figures["DB"][group][kind].mean - figures["BCE"][group][kind].mean
            for group, kind in (("total", "macro"), ("tail", "micro"))
        )
        print(f"DB over BCE: total macro-F1 {macro:+.2f} (paper: +17.15), tail micro-F1 {tail:+.2f} (paper: +48.89)")


def write_results(rows: Sequence[Row], experiment: Experiment, options: Options) -> list[Path]:
    """The table as JSON and Markdown, and the picture."""
    corpus = experiment.corpus
    title = corpus.notice or f"{corpus.name}, {options.seeds} seed(s), convention '{options.convention}'"
    content = {
        "notice": corpus.notice,
        "corpus": corpus.describe(),
        "convention": options.convention,
        "versions": versions(),
        "validation_mean": experiment.validation_mean(),
        "f1_percent": rows_as_json(rows),
    }
    paths = [options.output / name for name in ("table2.json", "table2.md", "rare_labels.png")]
    write_atomically(paths[0], json.dumps(content, indent=1) + "\n")
    write_atomically(paths[1], f"# {title}\n\n{CAPTION}.\n\n{markdown_table(rows)}")
    draw_rare_labels(rows, title, paths[2])
    return paths


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_options(arguments)
    torch.set_num_threads(options.threads)
    # The moments of features that a batch lacks decay into denormal numbers, with which a CPU is slow.
    torch.set_flush_denormal(True)
    try:
        corpus = choose_corpus(options)
    except KeyboardInterrupt:
        print("Interrupted before anything was done.", file=sys.stderr)
        return INTERRUPTED
    if corpus.notice is None:
        return run(corpus, options)
    print(corpus.notice, flush=True)
    try:
        return run(corpus, options)
    finally:
        print(corpus.notice, flush=True)


if __name__ == "__main__":
    sys.exit(main())
