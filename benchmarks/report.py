"""Records as tables and plots.

    python benchmarks/report.py [FOLDER ...]

writes report.md and PNG plots into each folder (default: every one below benchmarks/results), from its records.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable
from pathlib import Path

from environment import device_text
from records import RESULTS, Record, read_records
from tables import comparison_table, crossover_lines, markdown, show_bytes, show_seconds, title

_SECTIONS = {
    "logits": "Loss over logits",
    "classifier": "Classifier and loss",
    "in-place update": "Training step with the update in place",
    "prediction": "Prediction",
    "metrics": "F1 at 21 thresholds",
    "first use": "First use",
    "device": "On the device",
}


def origin(records: Iterable[Record]) -> str:
    """Device, versions and dates of the records, each once."""
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
    """Raises ValueError for a folder without records, OSError where it cannot write."""
    records = list(read_records(folder).values())
    pictures: list[Path] = []
    try:
        from plots import write_plots
    except ImportError as error:
        print(f"no plots: {error}", file=sys.stderr)
    else:
        pictures = write_plots(records, folder, origin(records))
    lines = ["# Measured", "", origin(records) + ".", ""]
    lines += ["Contestants of a table ran in turn, in one process; times are of a call. "
              "The floor is the time in which a copy on this device moves the bytes that must move (or a large product "
              "makes the products that must be made).", ""]  # fmt: skip
    lines += [line for picture in pictures for line in (f"![{picture.stem}]({picture.name})", "")]
    crossovers = crossover_lines(records)
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
            lines += [comparison_table(record), ""]
        if "figures" in record:
            rows = [[name, _show(name, value)] for name, value in record["figures"].items()]
            lines += [markdown(["", "figure"], rows), ""]
    return lines


def _show(name: str, value: object) -> str:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if name.endswith("seconds"):
            return show_seconds(value)
        if name.endswith("bytes"):
            return show_bytes(value)
        return f"{value:.4g}"
    return str(value)


def _first_use_table(records: list[Record]) -> str:
    head = ["", "import beside torch", "first call", "first call, caches filled", "second call"]
    rows = [
        [
            record["settings"]["variant"],
            *(show_seconds(record["cold"][name]) for name in ("import", "first_call")),
            show_seconds(record["cached"]["first_call"]),
            show_seconds(record["cached"]["second_call"]),
        ]
        for record in records
    ]
    return markdown(head, rows)


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
