"""Records as tables. This module needs pandas and tabulate; nothing that runs on a bare GPU machine imports it."""

from __future__ import annotations

import pandas as pd
from quantities import bytes_text, seconds_text, share_text
from records import Record, contestants_of
from tabulate import tabulate


def comparison(record: Record) -> pd.DataFrame:
    """One row for each contestant of a record, then one for each that is absent."""
    names = contestants_of([record])
    base = record["contestants"][names[0]]["seconds"]["p50"]
    rows = [_row(name, record["contestants"][name], base) for name in names]
    rows += [{"": f"{name}: absent"} for name in record["absent"]]
    return pd.DataFrame(rows).fillna("")


def _row(name: str, one: dict, base: float) -> dict[str, str]:
    seconds = one["seconds"]
    return {
        "": name + ("" if one.get("same_work", True) else " (computes less)"),
        "median": seconds_text(seconds["p50"]),
        "p20 to p80": f"{seconds_text(seconds['p20'])} to {seconds_text(seconds['p80'])}",
        "of ours": f"{seconds['p50'] / base:.2f}",
        "of the floor": share_text(one.get("share_of_floor")),
        "peak memory": bytes_text(one.get("peak_bytes")),
        "held for backward": bytes_text(one.get("held_bytes")),
        "launches": "" if one.get("launches") is None else str(one["launches"]),
    }


def markdown(frame: pd.DataFrame) -> str:
    """A frame of strings as a Markdown table: the first column to the left, the others to the right.

    Columns that are empty in every row are left out, but never the first.
    """
    kept = [name for name in frame.columns if name == frame.columns[0] or (frame[name] != "").any()]
    align = ["left"] + ["right"] * (len(kept) - 1)
    # Without disable_numparse tabulate would write "1.00" as 1.
    return tabulate(
        frame[kept], headers="keys", tablefmt="pipe", showindex=False, colalign=align, disable_numparse=True
    )
