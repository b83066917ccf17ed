"""Records of measurements. Each is one JSON file, which is written as soon as its measurement is done.

A record has "settings" (what was measured: "operation", "loss", "pass", "rows", "labels", "dtype", ...), "contestants"
by name (``contest.py`` says what is kept of each), "absent" (the reason by name), "floor" ({"bytes", "flops",
"seconds"} or null), "ceilings", "device", "versions" and "date".
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from environment import device, device_text, slug, today, versions

RESULTS = Path(__file__).parent / "results"
Record = dict[str, Any]


def default_folder() -> Path:
    """Where the records of this device lie."""
    return RESULTS / slug(device_text(device()))


def new_record(settings: dict[str, Any], **content: Any) -> Record:
    return {"settings": settings, **content, "device": device(), "versions": versions(), "date": today()}


def title(settings: dict[str, Any]) -> str:
    """What was measured, in words."""
    size = " x ".join(f"{settings[name]:,}" for name in ("rows", "labels", "features") if settings.get(name))
    parts = [settings["operation"], settings.get("loss"), settings.get("pass"), size, settings.get("dtype")]
    targets = settings.get("targets")
    parts += [f"{targets} targets" if targets else None, settings.get("variant")]
    return ", ".join(part for part in parts if part)


def key(settings: dict[str, Any]) -> str:
    """A file name that says what was measured."""
    return slug(" ".join(f"{settings[name]}" for name in sorted(settings, key=_ORDER.index) if settings[name] != ""))


_ORDER = ["operation", "loss", "pass", "rows", "labels", "features", "dtype", "targets", "variant"]


def write_record(folder: Path, record: Record) -> Path:
    """Writes a temporary file and renames it, so that an interrupted run leaves the old record or the new one."""
    folder = folder / "records"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{key(record['settings'])}.json"
    temporary = path.with_name(f".{path.stem}.{os.getpid()}")
    try:
        with open(temporary, "w") as file:
            json.dump(record, file, indent=1, sort_keys=True)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def read_records(folder: Path) -> dict[str, Record]:
    """The records of a folder by key, in the order of their settings.

    Raises:
        ValueError: for a file that is no record, and for a folder without records.
    """
    read = [_read(path) for path in sorted((folder / "records").glob("*.json"))]
    records = {key(record["settings"]): record for record in read}
    if not records:
        raise ValueError(f"{folder}: expected records/*.json, found none; make them with pytest benchmarks")
    return dict(sorted(records.items(), key=lambda item: _sortable(item[1]["settings"])))


def _read(path: Path) -> Record:
    try:
        record: Record = json.loads(path.read_text())
        key(record["settings"]), record["device"]["kind"], record["versions"]
        return record
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: expected a record, got {type(error).__name__}: {error}") from error


def _sortable(settings: dict[str, Any]) -> list[tuple[int, float, str]]:
    values = (settings.get(name, "") for name in _ORDER)
    return [(0, value, "") if isinstance(value, (int, float)) else (1, 0, str(value)) for value in values]


def contestants_of(records: Iterable[Record]) -> list[str]:
    """The names of all contestants in the order of their first appearance; ours come first."""
    names = dict.fromkeys(name for record in records for name in record["contestants"])
    return sorted(names, key=lambda name: not name.startswith("ours"))
