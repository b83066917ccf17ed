"""One build of a kernel at a time, among processes that share a folder; builds whose process died are removed.

The system releases a lock when its process ends, however it ends. So what lies in the folder of a build whose lock is
free was left by a process that died. The empty lock files stay: to remove one would let two processes hold locks of the
same name.
"""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

# A kernel of Hugging Face's Hub may require PyTorch alone.
HAS_LOCKS = importlib.util.find_spec("filelock") is not None
if HAS_LOCKS:
    from filelock import FileLock, Timeout


@contextlib.contextmanager
def build_lock(folder: Path, name: str, deadline: float) -> Iterator[Path]:
    """Holds the lock of the build ``name``, a name without dots; gives a folder for its temporary files.

    Where the file system has no locks, or filelock is not installed, builds run beside each other. Raises TimeoutError
    where another process holds the lock at the deadline, in ``time.monotonic``'s seconds, and OSError where the folder
    cannot be written.
    """
    _remove_dead_builds(folder)
    with contextlib.ExitStack() as held:
        if HAS_LOCKS:
            try:
                held.enter_context(_lock(folder, name, max(0.0, deadline - time.monotonic())))
            except Timeout as error:
                raise TimeoutError("another process is still building the kernel") from error
            except OSError:
                # Some network file systems have no locks.
                pass
        # A folder of this build alone: a compiler may outlive the process that started it, and write to its folder.
        yield Path(held.enter_context(tempfile.TemporaryDirectory(".build", f"{name}.", folder)))


def _remove_dead_builds(folder: Path) -> None:
    if not HAS_LOCKS:
        return
    for scratch in folder.glob("*.build"):
        # A lock that cannot be had at once is that of a living process.
        with contextlib.suppress(OSError), _lock(folder, scratch.name.split(".")[0], 0.0):
            shutil.rmtree(scratch)


def _lock(folder: Path, name: str, timeout: float) -> FileLock:
    return FileLock(folder / f"{name}.lock", timeout, mode=0o600)
