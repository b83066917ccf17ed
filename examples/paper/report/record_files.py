"""The records of runs in folders; what cannot be used is named and left out."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Json = dict[str, Any]
Warn = Callable[[str], None]
KINDS = ("micro", "macro")
LABEL_GROUPS = ("total", "head", "medium", "tail")


@dataclass(frozen=True)
class Run:
    """One record. result: None while the run goes on, or where it was broken off."""

    path: Path
    settings: Json
    versions: Json
    epochs: list[Json]
    result: Json | None

    @property
    def method(self) -> str:
        return str(self.settings["method"])

    @property
    def seed(self) -> int:
        return int(self.settings["seed"])


def read_runs(folders: Iterable[Path], warn: Warn) -> list[Run]:
    """The runs of all records below the folders, each once.

    A record is a JSON file in a folder named ``records``, or in a folder that is given itself.

    warn: told of each file that is left out, and why.
    """
    found: dict[str, Run] = {}
    for path in _files(folders):
        try:
            run = _read(path)
        except (OSError, ValueError) as error:
            warn(f"{path}: left out, {error}")
            continue
        if run is None:
            continue
        settings = json.dumps(run.settings, sort_keys=True)
        other = found.get(settings)
        if other is None or (other.result is None and run.result is not None):
            found[settings] = run
        elif run.result is not None and run.result != other.result:
            warn(f"{path}: left out, {other.path} has the same settings")
    return list(found.values())


def _files(folders: Iterable[Path]) -> Iterator[Path]:
    seen = set()
    for folder in folders:
        for place in [folder, *sorted(path for path in folder.rglob("records") if path.is_dir())]:
            for path in sorted(place.glob("*.json")):
                if path.resolve() not in seen and not path.name.startswith("."):
                    seen.add(path.resolve())
                    yield path


def _read(path: Path) -> Run | None:
    """None for another kind of file.

    Raises:
        OSError, ValueError: for a record that cannot be used, saying why.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"it is no JSON: {error}") from error
    if path.parent.name != "records" and not (isinstance(record, dict) and "settings" in record):
        return None
    return make_run(path, record)


def make_run(path: Path, record: Json) -> Run:
    """The run of a record.

    Raises:
        ValueError: saying what is wrong with it.
    """
    settings = _mapping("settings", _mapping("record", record).get("settings"))
    for key, kind in (("method", str), ("seed", int), ("corpus", str), ("corpus_fingerprint", str)):
        if not isinstance(settings.get(key), kind):
            raise ValueError(f"settings.{key}: expected {kind.__name__}, got {settings.get(key)!r}")
    running = record.get("status") == "running"
    if not running:
        _check_result(record.get("result"))
    versions, epochs = record.get("versions"), record.get("epochs")
    return Run(
        path,
        settings,
        versions if isinstance(versions, dict) else {},
        [epoch for epoch in epochs if isinstance(epoch, dict)] if isinstance(epochs, list) else [],
        None if running else record["result"],
    )


def _check_result(result: Any) -> None:
    result = _mapping("result", result)
    test = _mapping("result.test", result.get("test"))
    if missing := [group for group in LABEL_GROUPS if group not in test]:
        raise ValueError(f"result.test: {', '.join(missing)} missing")
    _check_scores("result.test", test)
    _check_scores("result.test_by_instance", result.get("test_by_instance", {}))
    for name, variant in _mapping("result.variants", result.get("variants", {})).items():
        for part in ("test", "test_by_instance"):
            _check_scores(f"result.variants[{name!r}].{part}", _mapping(name, variant).get(part, {}))
    pairs = result.get("confused", [])
    if not isinstance(pairs, list) or not all(
        isinstance(pair, dict)
        and isinstance(pair.get("missed"), str)
        and isinstance(pair.get("predicted"), str)
        and isinstance(pair.get("count"), int)
        for pair in pairs
    ):
        raise ValueError("result.confused: expected a list of missed, predicted and count")


def _check_scores(name: str, scores: Any) -> None:
    for group, kinds in _mapping(name, scores).items():
        for kind in KINDS:
            value = _mapping(f"{name}.{group}", kinds).get(kind)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
                raise ValueError(f"{name}.{group}.{kind}: expected a number in [0, 1], got {value!r}")


def _mapping(name: str, value: Any) -> Json:
    if not isinstance(value, dict):
        raise ValueError(f"{name}: expected a mapping, got {type(value).__name__}")
    return value
