"""Where compiled kernels are kept: folders to which nobody but this user or root can write.

Code from such a folder runs in this process. A folder is therefore trusted as ssh trusts one: it and every folder above
it belong to this user or to root, and neither the group nor others may write to them. A folder *above* it that others
may write to, as ``/tmp`` is, must have the sticky bit: there nobody can rename or remove what belongs to someone else.
Links are resolved first, and the path that they lead to is what is checked. On Windows, where a file's mode says
nothing, the user's own folders are taken as they are.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import shutil
import stat
import sys
import tempfile
import warnings
from pathlib import Path

CHOSEN = "FUSED_BALANCED_LOSS_CACHE"
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def cache_folders() -> list[Path]:
    """Trusted folders to look for kernels in, the preferred one first. New kernels go to the last one.

    The preferred folder is the one that ``FUSED_BALANCED_LOSS_CACHE`` names, else ``fused_balanced_loss`` in
    ``XDG_CACHE_HOME`` or in ``~/.cache``. Where it cannot be made, written or trusted, the user's processes share a
    folder in the temporary folder. Where that is not trusted either, the process has its own folder there, which it
    removes when it ends. Raises OSError where not even the temporary folder can be trusted.
    """
    folders = []
    try:
        folders.append(_trusted(Path(os.path.realpath(_preferred()))))
    except OSError as error:
        if os.environ.get(CHOSEN):
            _warn_once(f"{CHOSEN}: {error}; the compiled kernels are kept in a temporary folder instead")
    if folders and _can_hold_libraries(folders[0]):
        return folders
    temporary = Path(os.path.realpath(tempfile.gettempdir()))
    if sys.platform != "win32":
        with contextlib.suppress(OSError):
            shared = _trusted(temporary / f"fused_balanced_loss-{os.geteuid()}")
            if _can_hold_libraries(shared):
                return [*folders, shared]
    _check(temporary, _made(temporary), above=True)
    # A folder that was removed meanwhile, say by a cleaner of old files, is made again.
    return [*folders, _trusted(_folder_of_process(temporary, os.getpid()))]


def check_file(path: Path) -> None:
    """Raises OSError for anything but a file that this user or root owns and nobody else can write."""
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode):
        raise PermissionError(f"{path} is not a file")
    _check(path, status)


def _preferred() -> str:
    chosen = os.environ.get(CHOSEN)
    if chosen:
        folder = os.path.expanduser(chosen)
        if not os.path.isabs(folder):
            raise FileNotFoundError(f"expected an absolute path, got {chosen!r}")
        return folder
    # The specification of XDG_CACHE_HOME says that a relative path is to be ignored.
    cache = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(cache):
        # Without a home, "~" stays as it is; an empty HOME would give "/".
        home = os.path.expanduser("~") if os.environ.get("HOME") != "" else ""
        if not (os.path.isabs(home) and os.path.isdir(home)):
            raise FileNotFoundError("the user has no home folder")
        cache = os.path.join(home, ".cache")
    return os.path.join(cache, "fused_balanced_loss")


def _trusted(folder: Path) -> Path:
    """The folder, given without links; it and what is missing above it is made with mode 0700.

    Raises OSError where that fails or the folder is not trusted; the message names the folder at fault.
    """
    # From the top: nothing is made in a folder that is not trusted.
    for each in reversed(folder.parents):
        _check(each, _made(each), above=True)
    _check(folder, _made(folder))
    return folder


def _made(folder: Path) -> os.stat_result:
    if not os.path.lexists(folder):
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode):
        raise NotADirectoryError(f"{folder} is not a folder")
    return status


def _check(path: Path, status: os.stat_result, *, above: bool = False) -> None:
    """Raises PermissionError for what others own or may write; ``above``: a folder above one of ours."""
    if sys.platform == "win32":
        return
    if status.st_uid not in {0, os.geteuid()} | (_owners_outside() if above else set()):
        raise PermissionError(f"{path} belongs to user {status.st_uid}, neither to this user nor to root")
    if status.st_mode & _OTHERS_WRITE and not (above and status.st_mode & stat.S_ISVTX):
        raise PermissionError(f"{path} can be written by other users (mode {stat.S_IMODE(status.st_mode):o})")


@functools.cache
def _owners_outside() -> set[int]:
    """The user as whom root shows in a container without root's rights, where root is outside of its user namespace."""
    try:
        if Path("/proc/self/uid_map").read_text().split() == ["0", "0", str(2**32 - 1)]:
            return set()
        return {int(Path("/proc/sys/kernel/overflowuid").read_text())}
    except (OSError, ValueError):
        return set()


def _can_hold_libraries(folder: Path) -> bool:
    if not os.access(folder, os.W_OK | os.X_OK):
        return False
    # Some systems mount homes or the temporary folder so that no code can be loaded from them.
    no_execution = getattr(os, "ST_NOEXEC", 0)
    return not (no_execution and os.statvfs(folder).f_flag & no_execution)


@functools.cache
def _folder_of_process(temporary: Path, process: int) -> Path:
    """A new folder, which the process removes at its end; a forked child has another."""
    folder = Path(tempfile.mkdtemp(prefix="fused_balanced_loss-", dir=temporary))

    def remove() -> None:
        if os.getpid() == process:
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)
    return folder


@functools.cache
def _warn_once(message: str) -> None:
    warnings.warn(message, stacklevel=2)
