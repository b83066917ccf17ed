"""Folders made once: whole or not there, and rebuilt when what they were made of has changed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock

T = TypeVar("T")
Json = dict[str, Any]
Say = Callable[[str], None]
MADE_OF = "made_of.json"


class CacheError(Exception):
    """The cache cannot be written; the message says where and why."""


def cached(
    folder: Path,
    made_of: Json,
    build: Callable[[Path], None],
    load: Callable[[Path], T],
    warn: Say,
    *,
    resumable: bool = False,
) -> T:
    """``load(folder)``, where ``folder`` was made of ``made_of``; else after ``build`` has filled it.

    Args:
        made_of: all that the content depends on; its ``version`` is the code's.
        build: fills the folder that it is given, which is moved to ``folder`` when it returns.
        warn: told why a folder that is there is rebuilt.
        resumable: whether ``build`` goes on with what an interrupted one has left.

    Raises:
        CacheError: where the folder cannot be written, such as on a full disk.
    """
    partial = folder.with_name(folder.name + ".partial")
    made_of = json.loads(json.dumps(made_of))
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Several processes of one training may ask at once: one builds, the others wait and find.
        with FileLock(folder.with_name(folder.name + ".lock")):
            reason = _why_not(folder, made_of, load)
            if reason:
                if folder.exists():
                    warn(f"the cache {folder} {reason}; it is rebuilt")
                if not resumable or _made_of(partial) != made_of:
                    shutil.rmtree(partial, ignore_errors=True)
                    partial.mkdir()
                    (partial / MADE_OF).write_text(json.dumps(made_of), encoding="utf-8")
                build(partial)
                shutil.rmtree(folder, ignore_errors=True)
                partial.rename(folder)
    except OSError as error:
        raise CacheError(f"{folder}: the cache cannot be written: {error.strerror or error}") from error
    finally:
        if not resumable:
            shutil.rmtree(partial, ignore_errors=True)
    return load(folder)


def _made_of(folder: Path) -> Any:
    try:
        return json.loads((folder / MADE_OF).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _why_not(folder: Path, made_of: Json, load: Callable[[Path], Any]) -> str | None:
    """What keeps the folder from being used, or None."""
    found = _made_of(folder)
    if not isinstance(found, dict):
        return "is not complete"
    if found.get("version") != made_of["version"]:
        return f"was made by version {found.get('version')!r}, this is {made_of['version']!r}"
    if found != made_of:
        return "was made of another state of its source"
    try:
        load(folder)
    except (OSError, ValueError, KeyError, EOFError) as error:
        return f"cannot be read ({error})"
    return None
