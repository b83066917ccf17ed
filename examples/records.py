"""Results kept one JSON file each, so that an interrupted run goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation import GROUPS, KINDS

Json = dict[str, Any]


def fingerprint(settings: Json) -> str:
    """Hash of all settings, whatever their order."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


def write_atomically(path: Path, text: str) -> None:
    """Whoever reads ``path`` finds the old text or the new, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@dataclass(frozen=True)
class RecordStore:
    """Records in one folder, named by method, seed and fingerprint of the settings.

    warn: told of each file that is no record of the settings in its name.
    """

    folder: Path
    warn: Callable[[str], None]

    def path(self, settings: Json) -> Path:
        return self.folder / f"{settings['method']}-seed{settings['seed']}-{fingerprint(settings)}.json"

    def load(self, settings: Json) -> Json | None:
        """The result for exactly these settings, or None where there is none that can be read."""
        path = self.path(settings)
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            self.warn(f"{path} cannot be read ({error}); redoing it")
            return None
        if not isinstance(record, dict) or record.get("settings") != settings or not _is_result(record.get("result")):
            self.warn(f"{path} is not a record of this run; redoing it")
            return None
        result: Json = record["result"]
        return result

    def save(self, settings: Json, result: Json, versions: Json) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        record = {"settings": settings, "versions": versions, "result": result}
        write_atomically(self.path(settings), json.dumps(record, indent=1) + "\n")


def _is_result(result: Any) -> bool:
    """Whether the table can be made from it: micro- and macro-F1 by group on validation and test."""
    return isinstance(result, dict) and all(_are_scores(result.get(part)) for part in ("validation", "test"))


def _are_scores(scores: Any) -> bool:
    return isinstance(scores, dict) and all(
        isinstance(f1, dict) and all(isinstance(f1.get(kind), float) for kind in KINDS)
        for f1 in (scores.get(group) for group in GROUPS)
    )
