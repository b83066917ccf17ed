"""Files and folders that are whole or not there, and rows that are appended step by step."""

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
from numpy.typing import NDArray
from progress import progress

T = TypeVar("T")
Json = dict[str, Any]
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
        with naming(path):
            yield temporary
            # Without this a crash of the machine may leave the new name with no content.
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A new folder to fill, which takes the place of ``path`` when the block ends without an error; after one, the old
    stays as it was."""
    temporary, old = (path.with_name(f".{path.name}.{kind}") for kind in ("partial", "old"))
    try:
        with naming(path):
            # What a killed process has left is removed.
            for left in (temporary, old):
                shutil.rmtree(left, ignore_errors=True)
            temporary.mkdir(parents=True)
            yield temporary
            for written in (one for one in temporary.rglob("*") if one.is_file()):
                with open(written, "rb") as file:
                    os.fsync(file.fileno())
            if path.exists():
                path.rename(old)
            temporary.rename(path)
    finally:
        for left in (temporary, old):
            shutil.rmtree(left, ignore_errors=True)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Has an OSError name the file: a full disk shows in calls that do not."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def cached(
    folder: Path,
    made_of: Json,
    build: Callable[[Path], None],
    load: Callable[[Path], T],
    *,
    resumable: bool = False,
) -> T:
    """``load(folder)``, where ``folder`` was made of ``made_of``; else after ``build`` has filled it.

    Args:
        made_of: all that the content depends on; its ``version`` is the code's.
        build: fills the folder that it is given, which is moved to ``folder`` when it returns.
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
                    progress.warn(f"the cache {folder} {reason}; it is rebuilt")
                if not resumable or _why_not(partial, made_of, lambda _: None):
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


def _why_not(folder: Path, made_of: Json, load: Callable[[Path], Any]) -> str | None:
    """What keeps the folder from being used, or None."""
    try:
        found = json.loads((folder / MADE_OF).read_text(encoding="utf-8"))
        version = found["version"]
    except (OSError, ValueError, KeyError, TypeError):
        return "is not complete"
    if version != made_of["version"]:
        return f"was made by version {version!r}, this is {made_of['version']!r}"
    if found != made_of:
        return "was made of another state of its source"
    try:
        load(folder)
    except (OSError, ValueError, KeyError, EOFError) as error:
        return f"cannot be read ({error})"
    return None


class AppendedRows:
    """A file of float32 rows, to which whole blocks of ``block`` rows are appended, the last of which may be shorter.

    Attributes:
        done: rows that an earlier process has left; of a block that it could not finish, none.
    """

    def __init__(self, path: Path, shape: tuple[int, int], block: int) -> None:
        self.path, self.shape = path, shape
        row_bytes = 4 * shape[1]
        with open(path, "ab") as file:
            there = file.tell() // row_bytes
            self.done = there if there == shape[0] else there // block * block
            file.truncate(self.done * row_bytes)

    def append(self, rows: NDArray[np.float32]) -> None:
        """Raises OSError, naming the file, where the disk has no room."""
        with naming(self.path), open(self.path, "ab") as file:
            file.write(rows.astype(np.float32).tobytes())
            file.flush()
            os.fsync(file.fileno())
        self.done += len(rows)

    def values(self) -> NDArray[np.float32]:
        """All rows, memory-mapped."""
        return np.memmap(self.path, np.float32, "r", shape=self.shape)
