"""Files and folders that are whole or not there, and arrays that are filled step by step."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from filelock import FileLock

T = TypeVar("T")
Json = dict[str, Any]
Say = Callable[[str], None]
MADE_OF = "made_of.json"


class CacheError(Exception):
    """The cache cannot be written; the message says where and why."""


def digest(value: Any) -> str:
    """16 hex digits that name a JSON value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """A path to write to, of the same suffix, which takes the place of ``path`` when the block ends without an error.

    Whoever reads ``path`` finds the old content or the new, never a part; after an error, the old.
    """
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield temporary
        # Without this a crash of the machine may leave the new name with no content.
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        # A full disk shows in calls that do not name the file.
        error.filename = error.filename or str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


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


class ResumableArray:
    """float32 array at ``path``; ``done`` says how many steps of filling it are finished.

    Raises:
        OSError: where the disk has no room for the whole array.
    """

    def __init__(self, path: Path, shape: tuple[int, ...]) -> None:
        self._note = path.with_suffix(".done")
        try:
            self.done = int(self._note.read_text()) if path.exists() else 0
        except (FileNotFoundError, ValueError):
            self.done = 0
        self.values: Any = np.lib.format.open_memmap(path, "r+" if self.done else "w+", np.float32, shape)
        if hasattr(os, "posix_fallocate"):
            # Memory that maps a file with holes kills the process where the disk is full.
            try:
                with open(path, "r+b") as file:
                    os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
            except OSError as error:
                raise OSError(error.errno, error.strerror, str(path)) from error

    def finish(self, done: int) -> None:
        """Steps up to ``done`` are finished, and stay so."""
        self.values.flush()
        with atomic_file(self._note) as note:
            note.write_text(str(done))
        self.done = done
