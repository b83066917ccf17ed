"""Plots of records: time by labels and by rows, share of the floor, peak memory.

Each plot names the device, the versions and the commit that its figures come from.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from records import Record, contestants_of

_Value = Callable[[Record, str], "float | None"]


def write_plots(records: Sequence[Record], folder: Path, origin: str) -> list[Path]:
    """Draws each sweep that has at least two sizes, and returns the paths of the plots."""
    plain = [
        record
        for record in records
        if record["settings"]["operation"] == "logits"
        and record["settings"]["loss"] == "DB"
        and record["settings"]["pass"] == "forward and backward"
        and record["settings"]["dtype"] == "float32"
        and record["settings"]["targets"] == "csr"
    ]
    along_c = [record for record in plain if record["settings"]["rows"] == 32]
    along_n = [record for record in plain if record["settings"]["labels"] == 18_211]
    plots: list[tuple[str, list[Record], str, str, _Value]] = [
        ("time_by_labels", along_c, "labels", "ms, 32 rows", _milliseconds),
        ("time_by_rows", along_n, "rows", "ms, 18,211 labels", _milliseconds),
        ("share_of_floor", along_c, "labels", "share of a copy's bandwidth, 32 rows", _share),
        ("memory_by_labels", along_c, "labels", "peak MB, 32 rows", _megabytes),
    ]
    return [
        _plot(folder / f"{name}.png", some, axis, label, value, origin)
        for name, some, axis, label, value in plots
        if len({record["settings"][axis] for record in some}) > 1
    ]


def _milliseconds(record: Record, name: str) -> float | None:
    return record["contestants"][name]["seconds"]["p50"] * 1e3


def _share(record: Record, name: str) -> float | None:
    return record["contestants"][name].get("share_of_floor")


def _megabytes(record: Record, name: str) -> float | None:
    peak = record["contestants"][name].get("peak_bytes")
    return None if peak is None else peak / 1e6


def _plot(path: Path, records: Sequence[Record], axis: str, label: str, value: _Value, origin: str) -> Path:
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for name in contestants_of(records):
        points = sorted(
            (record["settings"][axis], value(record, name)) for record in records if name in record["contestants"]
        )
        points = [point for point in points if point[1] is not None]
        style: dict[str, Any] = {"linewidth": 2.5} if name == "ours" else {"linewidth": 1.2, "linestyle": "--"}
        axes.plot(*zip(*points, strict=True), marker="o", label=name, **style)
    axes.set(xscale="log", yscale="log", xlabel=axis, ylabel=label)
    axes.set_title("Distribution-balanced loss, forward and backward, float32", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.supxlabel("\n".join(origin.split("; ")), fontsize=6)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.png")
    figure.savefig(temporary, dpi=130)
    plt.close(figure)
    os.replace(temporary, path)
    return path
