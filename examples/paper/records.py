"""Results kept one JSON file each, written as they come, so that an interrupted run goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from files import atomic_file

from fused_balanced_loss import SparseTargets

Json = dict[str, Any]
GROUPS = ("total", "head", "medium", "tail")
KINDS = ("micro", "macro")
RUNNING, DONE = "running", "done"
RESERVE_BYTES = 1 << 20


class RecordError(Exception):
    """A record cannot be written; the message says where, why, and what became of the result."""


def fingerprint(settings: Json) -> str:
    """Hash of all settings, whatever their order."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


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
            record = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            self.warn(f"{path} cannot be read ({error}); redoing it")
            return None
        if isinstance(record, dict) and record.get("settings") == settings and record.get("status") == RUNNING:
            return None
        if not isinstance(record, dict) or record.get("settings") != settings or not _is_result(record.get("result")):
            self.warn(f"{path} is not a record of this run; redoing it")
            return None
        return record

    def open(self) -> None:
        """Makes the folder, and in it a reserve of space for the record of a run that ends on a full disk.

        Raises:
            RecordError: where it cannot be written to.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
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
            self._reserve.unlink(missing_ok=True)
        record = {"versions": versions, "status": DONE, "epochs": epochs, "result": result}
        try:
            self._write(settings, record)
        except OSError:
            self._reserve.unlink(missing_ok=True)
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


def _is_result(result: Any) -> bool:
    """Whether the tables can be made from it: micro- and macro-F1 by group on validation and test."""
    return isinstance(result, dict) and all(_are_scores(result.get(part)) for part in ("validation", "test"))


def _are_scores(scores: Any) -> bool:
    return isinstance(scores, dict) and all(
        isinstance(f1, dict) and all(isinstance(f1.get(kind), float) for kind in KINDS)
        for f1 in (scores.get(group) for group in GROUPS)
    )
