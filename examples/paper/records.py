"""Results kept one JSON file each, written as they come, so that an interrupted run goes on where it stopped."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from files import Json, atomic_file, digest

from fused_balanced_loss import SparseTargets
from fused_balanced_loss.spec import PAPER_LOSSES

METHODS = ("SVM", *PAPER_LOSSES)
GROUPS = ("total", "head", "medium", "tail")
KINDS = ("micro", "macro")
RUNNING, DONE = "running", "done"
RESERVE_BYTES = 1 << 20


class RecordError(Exception):
    """A record cannot be written; the message says where, why, and what became of the result."""


def fingerprint(settings: Json) -> str:
    """Hash of all settings, whatever their order."""
    return digest(settings)[:12]


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


def make_run(path: Path, record: Any) -> Run:
    """The run of a record.

    Raises:
        ValueError: saying what is wrong with it.
    """
    settings = _mapping("settings", _mapping("record", record).get("settings"))
    for key, kind in (("method", str), ("seed", int), ("corpus", str), ("corpus_fingerprint", str)):
        if not isinstance(settings.get(key), kind):
            raise ValueError(f"settings.{key}: expected {kind.__name__}, got {settings.get(key)!r}")
    running = record.get("status") == RUNNING
    if not running:
        check_result(record.get("result"))
    versions, epochs = record.get("versions"), record.get("epochs")
    return Run(
        path,
        settings,
        versions if isinstance(versions, dict) else {},
        [epoch for epoch in epochs if isinstance(epoch, dict)] if isinstance(epochs, list) else [],
        None if running else record["result"],
    )


def check_result(result: Any) -> None:
    """Whether the tables can be made from it.

    Raises:
        ValueError: saying what is missing or wrong.
    """
    result = _mapping("result", result)
    _check_scores("result.test", result.get("test"), GROUPS)
    _check_scores("result.validation", result.get("validation"), GROUPS)
    _check_scores("result.test_by_instance", result.get("test_by_instance", {}))
    for name, variant in _mapping("result.variants", result.get("variants", {})).items():
        for part in ("test", "test_by_instance"):
            _check_scores(f"result.variants[{name!r}].{part}", _mapping(name, variant).get(part, {}))
    pairs, kinds = result.get("confused", []), {"missed": str, "predicted": str, "count": int}
    if not isinstance(pairs, list) or not all(
        isinstance(pair, dict) and all(isinstance(pair.get(key), kind) for key, kind in kinds.items()) for pair in pairs
    ):
        raise ValueError("result.confused: expected a list of missed, predicted and count")


def _check_scores(name: str, scores: Any, needed: tuple[str, ...] = ()) -> None:
    if missing := [group for group in needed if group not in _mapping(name, scores)]:
        raise ValueError(f"{name}: {', '.join(missing)} missing")
    for group, kinds in _mapping(name, scores).items():
        for kind in KINDS:
            value = _mapping(f"{name}.{group}", kinds).get(kind)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
                raise ValueError(f"{name}.{group}.{kind}: expected a number in [0, 1], got {value!r}")


def _mapping(name: str, value: Any) -> Json:
    if not isinstance(value, dict):
        raise ValueError(f"{name}: expected a mapping, got {type(value).__name__}")
    return value


@dataclass(frozen=True)
class RecordStore:
    """Records in one folder, named by method, seed and fingerprint of the settings.

    warn: told of each file that is no record of the settings in its name.
    """

    folder: Path
    warn: Callable[[str], None]

    def stem(self, settings: Json) -> str:
        return f"{settings['method']}-seed{settings['seed']}-{fingerprint(settings)}"

    def path(self, settings: Json) -> Path:
        return self.folder / f"{self.stem(settings)}.json"

    def load(self, settings: Json) -> Json | None:
        """The record of exactly these settings, or None where there is none that is done and can be read."""
        path = self.path(settings)
        try:
            record = _mapping("record", json.loads(path.read_text(encoding="utf-8")))
            if record.get("settings") != settings:
                raise ValueError("its settings are other ones")
            if record.get("status") == RUNNING:
                return None
            check_result(record.get("result"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            self.warn(f"{path} is not a record of this run ({error}); redoing it")
            return None
        return record

    def open(self) -> None:
        """Makes the folder, and in it a reserve of space for the record of a run that ends on a full disk.

        Removes what a killed process has left half-written.

        Raises:
            RecordError: where it cannot be written to.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for unfinished in self.folder.glob(".*-seed*"):
                unfinished.unlink()
            if not self._reserve.exists():
                with atomic_file(self._reserve) as path:
                    path.write_bytes(os.urandom(RESERVE_BYTES))
        except OSError as error:
            raise RecordError(f"{self.folder}: cannot be written to: {error.strerror or error}") from error

    def close(self) -> None:
        self._reserve.unlink(missing_ok=True)

    def save_running(self, settings: Json, versions: Json, epochs: list[Json]) -> None:
        """Says how far a run is; a disk that has no room for it costs nothing but this."""
        try:
            self._write(settings, {"versions": versions, "status": RUNNING, "epochs": epochs})
        except OSError as error:
            self.warn(f"{self.path(settings)} cannot be written yet: {error.strerror or error}")

    def save_done(self, settings: Json, versions: Json, epochs: list[Json], result: Json) -> None:
        """Writes the predictions, then the record, on a full disk the record alone.

        Raises:
            RecordError: where something could not be written, after all that could be was.
        """
        result = dict(result)
        predictions: SparseTargets = result.pop("predictions")
        failed = None
        result["predictions"] = f"{self.stem(settings)}.npz"
        try:
            with atomic_file(self.folder / result["predictions"]) as path:
                np.savez_compressed(path, crow=predictions.crow.numpy(), col=predictions.col.numpy().astype(np.int32))
        except OSError as error:
            failed, result["predictions"] = error, None
            self.close()
        record = {"versions": versions, "status": DONE, "epochs": epochs, "result": result}
        try:
            self._write(settings, record)
        except OSError:
            self.close()
            try:
                self._write(settings, record)
            except OSError as error:
                raise RecordError(
                    f"{self.path(settings)} cannot be written: {error.strerror or error}; what it would hold:\n"
                    + json.dumps({"settings": settings, **record})
                ) from error
        if failed is not None:
            raise RecordError(
                f"{self.folder}: {failed.strerror or failed}; the result is recorded, its predictions are not"
            ) from failed

    @property
    def _reserve(self) -> Path:
        return self.folder / ".reserve.bin"

    def _write(self, settings: Json, record: Json) -> None:
        with atomic_file(self.path(settings)) as path:
            path.write_text(json.dumps({"settings": settings, **record}, indent=1) + "\n", encoding="utf-8")
