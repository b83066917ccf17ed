"""Records as Markdown tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from records import Record, contestants_of


def title(settings: dict[str, Any]) -> str:
    """What was measured, in words."""
    size = " x ".join(f"{settings[name]:,}" for name in ("rows", "labels", "features") if settings.get(name))
    parts = [settings["operation"], settings.get("loss"), settings.get("pass"), size, settings.get("dtype")]
    targets = settings.get("targets")
    parts += [f"{targets} targets" if targets else None, settings.get("variant")]
    return ", ".join(part for part in parts if part)


def comparison_table(record: Record) -> str:
    """A row for each contestant, then the absent."""
    ours = next(iter(contestants_of([record])))
    base = record["contestants"][ours]["seconds"]["p50"]
    rows = []
    for name in contestants_of([record]):
        one = record["contestants"][name]
        s = one["seconds"]
        rows.append(
            [
                name + ("" if one.get("same_work", True) else " (computes less)"),
                show_seconds(s["p50"]),
                f"{show_seconds(s['p20'])} to {show_seconds(s['p80'])}",
                f"{s['p50'] / base:.2f}",
                show_share(one.get("share_of_floor")),
                show_bytes(one.get("peak_bytes")),
                show_bytes(one.get("held_bytes")),
                "" if one.get("launches") is None else str(one["launches"]),
            ]
        )
    rows += [[f"{name}: absent", *[""] * 7] for name in record["absent"]]
    head = ["", "median", "p20 to p80", "of ours", "of the floor", "peak memory", "held for backward", "launches"]
    return markdown(head, rows)


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table, without the columns that are empty in all rows; all but the first to the right."""
    rows = [list(row) for row in rows]
    kept = [k for k in range(len(head)) if k == 0 or any(row[k] for row in rows)]
    lines = [" | ".join(head[k] for k in kept), "|".join(["---", *["---:"] * (len(kept) - 1)])]
    lines += [" | ".join(row[k] for k in kept) for row in rows]
    return "\n".join(f"| {line} |" if k != 1 else f"|{line}|" for k, line in enumerate(lines))


def show_seconds(seconds: float) -> str:
    for unit, factor in (("s", 1), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= factor:
            return f"{seconds / factor:.3g} {unit}" if seconds < 100 * factor else f"{seconds / factor:.0f} {unit}"
    return f"{seconds * 1e9:.3g} ns"


def show_bytes(number: float | None) -> str:
    if number is None:
        return ""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= factor:
            return f"{number / factor:.3g} {unit}" if number < 100 * factor else f"{number / factor:.0f} {unit}"
    return f"{number} B"


def show_share(share: float | None) -> str:
    """A share of 1 and more is of data that stays in cache, which memory's bandwidth does not bound."""
    return "" if share is None else f"{100 * share:.0f} %" if share < 1 else "in cache"
