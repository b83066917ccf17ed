"""Two sets of records, before and after a change, in ratios with their noise.

    python benchmarks/compare.py BEFORE AFTER

Other contestants of the same record tell how fast the machine was each time: the ratio that counts is that of ours to
theirs. Exit status 1 where memory or launches grew; never for time, which noise decides.
"""

from __future__ import annotations

import argparse
import math
import statistics as stats
import sys
from pathlib import Path

from environment import device_text
from records import Record, contestants_of, read_records
from tables import markdown, show_bytes, title


def spread(entry: dict) -> float:
    """Half the distance from p20 to p80, relative to the median."""
    s = entry["seconds"]
    return (s["p80"] - s["p20"]) / 2 / s["p50"]


def machine_ratio(before: Record, after: Record) -> float | None:
    """How much slower the contestants that are not ours were after: the machine, not the change."""
    common = [name for name in contestants_of([before]) if not name.startswith("ours") and name in after["contestants"]]
    if not common:
        return None
    return math.exp(stats.mean(math.log(_median(after, name) / _median(before, name)) for name in common))


def compare(before: Record, after: Record) -> tuple[list[list[str]], list[str]]:
    """Rows of the table, and what grew that noise does not explain: memory and launches."""
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
            [
                f"{title(before['settings'])}: {name}",
                f"{ratio:.2f}",
                f"{steady:.2f} +- {noise:.2f}",
                verdict,
                _bytes(old, new, "peak_bytes"),
                _bytes(old, new, "held_bytes"),
            ]
        )
        # A page here or there is the allocator's.
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
    return f"{show_bytes(old[what])} -> {show_bytes(new[what])}"


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
    head = ["", "time after / before", "beside the peers", "", "peak memory", "held for backward"]
    print(f"\n{markdown(head, rows)}\n")
    for name, records in (("before", before), ("after", after)):
        for key in records:
            if key not in both:
                print(f"only {name}: {title(records[key]['settings'])}")
    for line in grown:
        print(f"grew: {line}")
    sys.exit(1 if grown else 0)


if __name__ == "__main__":
    main()
