"""One build of a kernel at a time, among processes that share a folder, and nothing left of a build whose process died.

A build holds the lock of a file in a folder of its own. The system releases the lock when the process ends, however it
ends. So a build's folder whose lock is free belongs to a process that died.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # On Windows builds of the same kernel run beside each other.
    fcntl = None  # type: ignore[assignment]

_SUFFIX = ".build"
_SECONDS_BETWEEN_TRIES = 0.05
# A deadline that is over.
_NOW = -math.inf


@contextlib.contextmanager
def build_lock(folder: Path, name: str, deadline: float) -> Iterator[Path]:
    """Holds the lock of the build ``name``; gives a folder for its temporary files, which is removed afterwards.

    Where the file system has no locks, builds run beside each other; each must keep to a subfolder of its own.

    Raises:
        TimeoutError: where another process holds the lock at the deadline, in ``time.monotonic``'s seconds.
        OSError: where the folder cannot be written.
    """
    place = folder / (name + _SUFFIX)
    with _lock(place, deadline) as locked:
        if locked:
            _remove_content(place)
        try:
            yield place
        finally:
            # The file is removed while the lock is held: whoever waits for it sees that it has another file's lock.
            with contextlib.suppress(OSError):
                os.unlink(place / "lock")
            with contextlib.suppress(OSError):
                place.rmdir()


def remove_dead_builds(folder: Path) -> None:
    """Removes what builds have left whose processes died."""
    for place in folder.glob(f"*{_SUFFIX}"):
        with contextlib.suppress(OSError), _lock(place, _NOW) as locked:
            if locked:
                _remove_content(place)
                os.unlink(place / "lock")
                place.rmdir()


@contextlib.contextmanager
def _lock(place: Path, deadline: float) -> Iterator[bool]:
    """Holds the lock of the folder, which is made where it is missing; False where there are no locks.

    Raises:
        TimeoutError: where another process holds it at the deadline.
    """
    while True:
        place.mkdir(mode=0o700, exist_ok=True)
        # The holder before may remove the folder or the file at any moment: then the next try makes them anew.
        with contextlib.suppress(FileNotFoundError), contextlib.ExitStack() as opened:
            file = opened.enter_context(open(place / "lock", "ab"))
            locked = _acquire(file, deadline)
            if os.path.samestat(os.fstat(file.fileno()), os.stat(place / "lock")):
                held = opened.pop_all()
                break
    with held:
        yield locked


def _acquire(file: IO[bytes], deadline: float) -> bool:
    while True:
        with contextlib.suppress(BlockingIOError):
            return _lock_now(file)
        if time.monotonic() > deadline:
            raise TimeoutError("another process is still building the kernel")
        time.sleep(_SECONDS_BETWEEN_TRIES)


def _lock_now(file: IO[bytes]) -> bool:
    """Raises:
    BlockingIOError: where another process, or another thread of this one, holds the lock.
    """
    if fcntl is None:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:
        # Some network file systems have no locks.
        return False
    return True


def _remove_content(place: Path) -> None:
    for entry in place.iterdir():
        if entry.name != "lock":
            shutil.rmtree(entry, ignore_errors=True)
