"""What a command prints and writes of the records of its runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from atomic_file import atomic_file
from experiment import Experiment, versions
from figure import draw_rare_labels
from records import KINDS, Json, Scores
from tables import Row, markdown_table, rows_as_json, summarize, text_table

CAPTION = "Micro/macro-F1 on the test documents, in percent"


def rows(records: Sequence[Json]) -> list[Row]:
    """The table's rows, the SVM's variants last."""
    found: dict[str, list[Scores]] = {}
    variants: dict[str, list[Scores]] = {}
    for record in records:
        found.setdefault(record["settings"]["method"], []).append(record["result"]["test"])
        for name, variant in record["result"].get("variants", {}).items():
            variants.setdefault(name, []).append(variant["test"])
    return [summarize(method, runs) for method, runs in (found | variants).items()]


def print_tables(records: Sequence[Json]) -> None:
    print(f"\n{CAPTION}\n\n{text_table(rows(records))}\n")


def print_summary(experiment: Experiment) -> None:
    if validation := experiment.validation_mean():
        micro, macro = (100 * validation[kind] for kind in KINDS)
        print(f"validation micro/macro-F1, mean of the losses: {micro:.2f}/{macro:.2f}")


def write_results(experiment: Experiment, folder: Path) -> list[Path]:
    """The table as JSON and Markdown, and the picture."""
    corpus, found = experiment.corpus, rows(experiment.records())
    title = corpus.notice or f"{corpus.name}, {experiment.plan.seeds} seed(s), '{experiment.plan.convention}'"
    content = {"notice": corpus.notice, "versions": versions(), "f1_percent": rows_as_json(found)}
    paths = [folder / name for name in ("table2.json", "table2.md", "rare_labels.png")]
    with atomic_file(paths[0]) as path:
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    with atomic_file(paths[1]) as path:
        path.write_text(f"# {title}\n\n{CAPTION}.\n\n{markdown_table(found)}", encoding="utf-8")
    draw_rare_labels(found, title, paths[2])
    return paths
