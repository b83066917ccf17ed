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


def crossover_lines(records: Iterable[Record]) -> list[str]:
    """For each peer, at how many sizes ours is ahead, level within the noise, or behind, and where it is behind."""
    compared: dict[str, list[tuple[str, float, Record]]] = {}
    for record in records:
        # Ours makes the gradient in the forward: a half of the two alone compares nothing.
        if "contestants" not in record or record["settings"].get("pass") in ("forward", "backward"):
            continue
        ours = record["contestants"][contestants_of([record])[0]]["seconds"]
        for name, one in record["contestants"].items():
            if name.startswith("ours"):
                continue
            label = name + ("" if one["same_work"] else " (computes less)")
            theirs = one["seconds"]
            order = "ahead" if ours["p80"] < theirs["p20"] else "behind" if theirs["p80"] < ours["p20"] else "level"
            compared.setdefault(label, []).append((order, ours["p50"] / theirs["p50"], record))
    lines = []
    for label, found in compared.items():
        number = {order: sum(one[0] == order for one in found) for order in ("ahead", "level", "behind")}
        where = [
            f"{title(record['settings'])} ({ratio:.2f} times)" for order, ratio, record in found if order == "behind"
        ]
        counts = f"ours is ahead at {number['ahead']}, level at {number['level']}, behind at {number['behind']} sizes"
        lines.append(f"* {label}: {counts}" + (f": {'; '.join(where)}" if where else ""))
    return lines
