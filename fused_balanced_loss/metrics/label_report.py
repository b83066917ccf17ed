"""Support, precision, recall and F1 of every label, as rows and as a CSV file."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from .thresholded_f1 import ThresholdedF1


class LabelRow(NamedTuple):
    """One label of a report.

    label: its name, or its id where no names are given. support, predicted: samples that carry it, and that it is
    predicted for. precision, recall, f1: 0 for 0/0.
    """

    label: str | int
    support: int
    predicted: int
    threshold: float
    precision: float
    recall: float
    f1: float


def label_report(counted: ThresholdedF1, threshold: Any, names: Sequence[str] | None = None) -> list[LabelRow]:
    """A row for each label, by id.

    Args:
        counted: what has counted the samples.
        threshold: one of its thresholds, or [C], one of them for each label.
        names: names of the C labels; None takes their ids.

    Raises:
        ValueError, RuntimeError: for other thresholds, another number of names, and before any sample was counted.
    """
    if names is not None and len(names) != counted.num_labels:
        raise ValueError(f"names: expected {counted.num_labels}, one for each label, got {len(names)}")
    support, predicted, hits = counted.label_counts(threshold)
    thresholds = np.broadcast_to(np.asarray(threshold, np.float64), support.shape)

    def ratio(part: Any, whole: Any) -> list[float]:
        ratios: list[float] = np.divide(part, whole, out=np.zeros(len(whole)), where=whole > 0).tolist()
        return ratios

    columns = (
        range(counted.num_labels) if names is None else names,
        support.tolist(),
        predicted.tolist(),
        thresholds.tolist(),
        ratio(hits, predicted),
        ratio(hits, support),
        ratio(2 * hits, support + predicted),
    )
    return [LabelRow(*row) for row in zip(*columns, strict=True)]


def write_label_report(path: str | os.PathLike[str], rows: Iterable[LabelRow]) -> None:
    """Writes the rows of :func:`label_report` as CSV in UTF-8, with a line of the column names.

    Raises:
        OSError: where the file cannot be written.
    """
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(LabelRow._fields)
        writer.writerows(rows)
