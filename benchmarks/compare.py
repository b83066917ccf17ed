"""Compares two sets of records, made before and after a change, and gives ratios with their noise.

    python benchmarks/compare.py BEFORE AFTER

The two sets were made at different times, when the machine may have been faster or slower. The other contestants of
each record show by how much, and the column "beside the peers" divides by it. The exit status is 1 where memory or the
number of launches grew. Time never changes the exit status, because noise could decide it.

``compare_checkouts.py`` measures two commits in one run, which is more exact for small differences.
"""

from __future__ import annotations

import argparse
import math
import statistics as stats
import sys
from pathlib import Path

import pandas as pd
from environment import device_text
from quantities import bytes_text
from records import Record, contestants_of, read_records, title
from tables import markdown


def spread(entry: dict) -> float:
    """Half the distance from p20 to p80, relative to the median."""
    seconds = entry["seconds"]
    return (seconds["p80"] - seconds["p20"]) / 2 / seconds["p50"]


def machine_ratio(before: Record, after: Record) -> float | None:
    """How much more time the contestants that are not ours took after: the machine's share of a change.

    None where the two records have no such contestant in common.
    """
    common = [name for name in contestants_of([before]) if not name.startswith("ours") and name in after["contestants"]]
    if not common:
        return None
    return math.exp(stats.mean(math.log(_median(after, name) / _median(before, name)) for name in common))


def compare(before: Record, after: Record) -> tuple[list[dict[str, str]], list[str]]:
    """The rows of the table, and a line for each figure of memory or launches that grew."""
    rows, grown = [], []
    machine = machine_ratio(before, after)
    for name in contestants_of([before]):
        if not name.startswith("ours") or name not in after["contestants"]:
            continue
        old, new = before["contestants"][name], after["contestants"][name]
        ratio = _median(after, name) / _median(before, name)
        noise = math.hypot(spread(old), spread(new))
        steady = ratio / machine if machine else ratio
        verdict = "level" if abs(steady - 1) <= noise else "faster" if steady < 1 else "slower"
        rows.append(
            {
                "": f"{title(before['settings'])}: {name}",
                "time after / before": f"{ratio:.2f}",
                "beside the peers": f"{steady:.2f} +- {noise:.2f}",
                "verdict": verdict,
                "peak memory": _bytes(old, new, "peak_bytes"),
                "held for backward": _bytes(old, new, "held_bytes"),
            }
        )
        # The allocator rounds up to pages, so a page more is no growth.
        grown += [
            f"{title(before['settings'])}, {name}: {what} {old[what]:,} -> {new[what]:,}"
            for what, slack in (("peak_bytes", 4096), ("held_bytes", 4096), ("launches", 0))
            if old.get(what) is not None and (new.get(what) or 0) > 1.02 * old[what] + slack
        ]
    return rows, grown


def _median(record: Record, name: str) -> float:
    return record["contestants"][name]["seconds"]["p50"]


def _bytes(old: dict, new: dict, what: str) -> str:
    if old.get(what) is None or new.get(what) is None:
        return ""
    return f"{bytes_text(old[what])} -> {bytes_text(new[what])}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("before", type=Path, help="folder with records")
    parser.add_argument("after", type=Path, help="folder with records")
    options = parser.parse_args()
    try:
        before, after = read_records(options.before), read_records(options.after)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    for name, records in (("before", before), ("after", after)):
        devices = sorted({device_text(record["device"]) for record in records.values()})
        commits = sorted({record["versions"].get("commit") or "unknown" for record in records.values()})
        print(f"{name}: {'; '.join(devices)}, commit {', '.join(commits)}")
    rows, grown, both = [], [], [key for key in before if key in after]
    for key in both:
        if "contestants" in before[key] and "contestants" in after[key]:
            some, more = compare(before[key], after[key])
            rows += some
            grown += more
    if rows:
        print(f"\n{markdown(pd.DataFrame(rows))}\n")
    for name, records in (("before", before), ("after", after)):
        for key in records:
            if key not in both:
                print(f"only {name}: {title(records[key]['settings'])}")
    for line in grown:
        print(f"grew: {line}")
    sys.exit(1 if grown else 0)


if __name__ == "__main__":
    main()
