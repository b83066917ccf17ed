"""Results kept one JSON file each, written as they come, so that an interrupted run goes on where it stopped."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from files import Json, atomic_file, digest
from progress import progress
from pydantic import BaseModel, Field, ValidationError

from fused_balanced_loss import SparseTargets
from fused_balanced_loss.metrics import LabelRow, write_label_report
from fused_balanced_loss.spec import PAPER_LOSSES

METHODS = ("SVM", *PAPER_LOSSES)
GROUPS = ("total", "head", "medium", "tail")
KINDS = ("micro", "macro")
RUNNING, DONE = "running", "done"
# What a result of this version has, and an earlier one may lack.
LATEST = {"own", "by_group", "by_label", "ranking"}
RESERVE_BYTES = 1 << 20


class RecordError(Exception):
    """A record cannot be written; the message says where, why, and what became of the result."""


def fingerprint(settings: Json) -> str:
    """Hash of all settings, whatever their order."""
    return digest(settings)[:12]


class Settings(BaseModel):
    """What the settings of every record have, whatever else."""

    method: str
    seed: int
    corpus: str
    corpus_fingerprint: str


class F1(BaseModel):
    micro: Annotated[float, Field(ge=0, le=1)]
    macro: Annotated[float, Field(ge=0, le=1)]


class LabelGroups(BaseModel):
    total: F1
    head: F1
    medium: F1
    tail: F1


class Pair(BaseModel):
    """``count`` test documents have the label ``missed`` and were predicted the label ``predicted``."""

    missed: str
    predicted: str
    count: int


class Variant(BaseModel):
    """Scores of the SVM with another hyperplane."""

    test: dict[str, F1] = {}
    test_by_instance: dict[str, F1] = {}


class Scored(BaseModel):
    """Test scores at other thresholds."""

    test: LabelGroups
    test_by_instance: dict[str, F1] = {}


class OwnScored(Scored):
    """Those at the method's own best threshold."""

    threshold: float
    validation: LabelGroups
    at_edge: bool


class Result(BaseModel):
    """What the tables are made from; a result may have more, and those of earlier versions have less."""

    validation: LabelGroups
    test: LabelGroups
    test_by_instance: dict[str, F1] = {}
    own: OwnScored | None = None
    by_group: Scored | None = None
    by_label: Scored | None = None
    ranking: dict[str, float] = {}
    confused: list[Pair] = []
    variants: dict[str, Variant] = {}


def check(what: str, value: Any, form: type[BaseModel]) -> None:
    """Raises ValueError saying where ``value`` is not of the form, what was expected there, and what came."""
    try:
        form.model_validate(value, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, (what, *first["loc"])))
        raise ValueError(f"{where}: {first['msg']}, got {first['input']!r:.80}") from error


def is_complete(record: Json) -> bool:
    """Whether the result has all figures that this version makes; an SVM's has no others."""
    return record["settings"]["method"] == "SVM" or set(record["result"]) >= LATEST


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
    """The run of a record; ValueError says what is wrong with one."""
    if not isinstance(record, dict):
        raise ValueError(f"expected a mapping, got {type(record).__name__}")
    check("settings", record.get("settings"), Settings)
    running = record.get("status") == RUNNING
    if not running:
        check("result", record.get("result"), Result)
    result = None if running else record["result"]
    return Run(path, record["settings"], record.get("versions") or {}, record.get("epochs") or [], result)


@dataclass(frozen=True)
class RecordStore:
    """Records in one folder, named by method, seed and fingerprint of the settings."""

    folder: Path

    def stem(self, settings: Json) -> str:
        return f"{settings['method']}-seed{settings['seed']}-{fingerprint(settings)}"

    def path(self, settings: Json) -> Path:
        return self.folder / f"{self.stem(settings)}.json"

    def load(self, settings: Json) -> Json | None:
        """The record of exactly these settings, or None where there is none that is done and can be read."""
        path = self.path(settings)
        try:
            record: Json = json.loads(path.read_text(encoding="utf-8"))
            run = make_run(path, record)
            if run.settings != settings:
                raise ValueError("its settings are other ones")
            return record if run.result is not None else None
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            progress.warn(f"{path} is not a record of this run ({error}); redoing it")
            return None

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
            progress.warn(f"{self.path(settings)} cannot be written yet: {error.strerror or error}")

    def save_done(self, settings: Json, versions: Json, epochs: list[Json], result: Json) -> None:
        """Writes the predictions and the scores of each label, then the record, on a full disk the record alone.

        Raises:
            RecordError: where something could not be written, after all that could be was.
        """
        predictions: SparseTargets = result["predictions"]
        labels: list[LabelRow] | None = result.get("labels")
        result = {name: value for name, value in result.items() if name != "labels"} | {"predictions": None}
        failed, stem = None, self.stem(settings)
        try:
            with atomic_file(self.folder / f"{stem}.npz") as path:
                np.savez_compressed(path, crow=predictions.crow.numpy(), col=predictions.col.numpy().astype(np.int32))
            result["predictions"] = f"{stem}.npz"
            if labels:
                with atomic_file(self.folder / f"{stem}.csv") as path:
                    write_label_report(path, labels)
                result["labels"] = f"{stem}.csv"
        except OSError as error:
            failed = error
            self.close()
        record = {"versions": versions, "status": DONE, "epochs": epochs, "result": result}
        try:
            try:
                self._write(settings, record)
            except OSError:
                self.close()
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
