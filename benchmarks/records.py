"""Records of measurements: one JSON file each, written whole when it is made.

A record: "settings" (what was measured: "operation", "loss", "pass", "rows", "labels", "dtype", ...), "contestants" by
name (see ``contest.py``), "absent" (name: reason), "floor" ({"bytes", "flops", "seconds"} or null), "ceilings",
"device", "versions", "date".
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
    """Where the records of this device are."""
    return RESULTS / slug(device_text(device()))


def new_record(settings: dict[str, Any], **content: Any) -> Record:
    return {"settings": settings, **content, "device": device(), "versions": versions(), "date": today()}


def key(settings: dict[str, Any]) -> str:
    """A file name that says what was measured."""
    return slug(" ".join(f"{settings[name]}" for name in sorted(settings, key=_ORDER.index) if settings[name] != ""))


_ORDER = ["operation", "loss", "pass", "rows", "labels", "features", "dtype", "targets", "variant"]


def write_record(folder: Path, record: Record) -> Path:
    """The file takes its name when it is whole: whoever is interrupted leaves the old record or the new."""
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
    """Records of a folder by key, in the order of their settings.

    Raises:
        ValueError: for a file that is no record, and for a folder without any.
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
    """Names in the order of their first appearance, ours first."""
    names = dict.fromkeys(name for record in records for name in record["contestants"])
    return sorted(names, key=lambda name: not name.startswith("ours"))
