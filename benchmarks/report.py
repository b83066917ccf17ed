"""Makes tables and plots from records.

    python benchmarks/report.py [FOLDER ...]

reads the records of each folder (default: every folder below benchmarks/results) and writes report.md and PNG plots
beside them.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable
from pathlib import Path

import pandas as pd
from environment import device_text
from quantities import bytes_text, seconds_text
from records import RESULTS, Record, contestants_of, read_records, title
from tables import comparison, markdown

_SECTIONS = {
    "logits": "Loss over logits",
    "weighted": "Weights of labels, soft targets, smoothing, Poly-1",
    "factory": "timm's factory of losses and ours",
    "classifier": "Classifier and loss",
    "in-place update": "Training step with the update in place",
    "prediction": "Prediction",
    "metrics": "Metrics",
    "first use": "First use",
    "device": "On the device",
}


def origin(records: Iterable[Record]) -> str:
    """The devices, versions, commits and dates of the records, each named once."""
    records = list(records)
    devices = sorted({device_text(record["device"]) for record in records})
    versions = sorted(
        {
            ", ".join(
                f"{name} {version}" for name, version in record["versions"].items() if version and name != "commit"
            )
            for record in records
        }
    )
    commits = sorted({record["versions"].get("commit") or "unknown" for record in records})
    dates = sorted({record["date"] for record in records})
    when = " to ".join(dict.fromkeys((dates[0], dates[-1])))
    return f"{'; '.join(devices)}; {'; '.join(versions)}; commit {', '.join(commits)}; {when}"


def write_report(folder: Path) -> list[Path]:
    """Writes report.md and the plots, and returns their paths.

    Raises:
        ValueError: for a folder without records, or with a file that is none.
        OSError: where a file cannot be written.
    """
    records = list(read_records(folder).values())
    pictures: list[Path] = []
    try:
        from plots import write_plots
    except ImportError as error:
        print(f"no plots: {error}", file=sys.stderr)
    else:
        pictures = write_plots(records, folder, origin(records))
    lines = ["# Measured", "", origin(records) + ".", ""]
    lines += ["The contestants of a table ran in turn in one process. Times are of one call. The floor is the least "
              "time that the work can take here: a copy on this device would need it to move the bytes that must move, "
              "or a large matrix product to do the multiplications.", ""]  # fmt: skip
    lines += [line for picture in pictures for line in (f"![{picture.stem}]({picture.name})", "")]
    crossovers = who_is_ahead(records)
    if crossovers:
        lines += ["## Who is ahead", "", *crossovers, ""]
    for operation, heading in _SECTIONS.items():
        some = [record for record in records if record["settings"]["operation"] == operation]
        if some:
            lines += [f"## {heading}", "", *_section(some)]
    path = folder / "report.md"
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text("\n".join(lines).rstrip() + "\n")
    os.replace(temporary, path)
    return [path, *pictures]


def _section(records: list[Record]) -> list[str]:
    if "cold" in records[0]:
        return [_first_use_table(records), ""]
    lines = []
    for record in records:
        lines += [f"**{title(record['settings'])}**", ""]
        if "contestants" in record:
            lines += [markdown(comparison(record)), ""]
        if record.get("figures"):
            rows = [(name, _text(name, value)) for name, value in record["figures"].items()]
            lines += [markdown(pd.DataFrame(rows, columns=["", "figure"])), ""]
    return lines


def _text(name: str, value: object) -> str:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if name.endswith("seconds"):
            return seconds_text(value)
        if name.endswith("bytes"):
            return bytes_text(value)
        return f"{value:.4g}"
    return str(value)


def _first_use_table(records: list[Record]) -> str:
    rows = [
        {
            "": record["settings"]["variant"],
            "import beside torch": seconds_text(record["cold"]["import"]),
            "first call": seconds_text(record["cold"]["first_call"]),
            "first call, caches filled": seconds_text(record["cached"]["first_call"]),
            "second call": seconds_text(record["cached"]["second_call"]),
        }
        for record in records
    ]
    return markdown(pd.DataFrame(rows))


def who_is_ahead(records: Iterable[Record]) -> list[str]:
    """A line for each peer: at how many sizes ours is ahead, level within the noise or behind; and where behind."""
    compared: dict[str, list[tuple[str, float, Record]]] = {}
    for record in records:
        # Ours makes the gradient in the forward pass, so a comparison of one pass alone would say nothing.
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="*", type=Path, help="default: every folder below benchmarks/results")
    folders = parser.parse_args().folders or sorted(path.parent for path in RESULTS.glob("*/records"))
    if not folders:
        parser.error(f"no records below {RESULTS}; make them with pytest benchmarks")
    for folder in folders:
        try:
            written = write_report(folder)
        except (ValueError, OSError) as error:
            parser.error(str(error))
        print("\n".join(map(str, written)))


if __name__ == "__main__":
    main()
