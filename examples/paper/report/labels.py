"""The scores of each label, of all methods side by side."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from progress import progress
from records import Run

from report.groups import Group

Rows = list[dict[str, str]]


def label_table(group: Group, counts: Mapping[str, int]) -> str | None:
    """As CSV: training and test documents of each label, then F1 and threshold of each method, means over the seeds.

    Args:
        counts: training documents by label.

    Returns:
        None where no run has left such scores; a method is left out where one of its runs has left none.
    """
    every = {method: [_read(run) for run in row.runs] for method, row in group.by_method.items()}
    found = {method: runs for method, runs in every.items() if all(runs)}
    if not found:
        return None
    first = next(iter(found.values()))[0]
    columns: dict[str, Sequence[object]] = {
        "label": [row["label"] for row in first],
        "training documents": [counts.get(row["label"], "") for row in first],
        "test documents": [row["support"] for row in first],
    }
    for method, runs in found.items():
        for name in ("f1", "threshold"):
            means = (fmean(float(row[name]) for row in rows) for rows in zip(*runs, strict=True))
            columns[f"{method} {name}"] = [f"{mean:.4f}" for mean in means]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    return text.getvalue()


def _read(run: Run) -> Rows:
    """The file beside a record; empty where there is none."""
    name = (run.result or {}).get("labels")
    path = run.path.parent / Path(str(name)).name
    if not name or not path.exists():
        return []
    try:
        with open(path, encoding="utf-8", newline="") as file:
            return [{key: row[key] for key in ("label", "support", "f1", "threshold")} for row in csv.DictReader(file)]
    except (OSError, KeyError, ValueError, csv.Error) as error:
        progress.warn(f"{path}: left out, {error}")
        return []
