"""The C++ kernels, built at first use and kept on disk.

Environment variables, read when a kernel is built or loaded:

- ``FUSED_BALANCED_LOSS_CACHE``: the folder that keeps the kernels, an absolute path (:mod:`.cache_folders` says which
  folder is trusted and what is taken instead).
- ``FUSED_BALANCED_LOSS_MARCH``: the processor that the kernels are built for, as the compiler's ``-march`` takes it;
  ``native`` by default. Each value has kernels of its own; one built for ``haswell`` or ``x86-64`` fails on a processor
  that lacks what the name promises.
- ``CXX``: the compiler, with options if need be, as in ``g++ -O2``; by default the first of c++, g++ and clang++.

A file's name ends with the digest of its content. A file that was cut short or changed is never loaded: it is removed
and built again.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import re
import shlex
import shutil
import time
import warnings
from pathlib import Path

import torch
from torch import Tensor

from .build_lock import build_lock
from .cache_folders import cache_folders, check_file
from .compiler_process import run_compiler

_SOURCES = Path(__file__).parents[1] / "kernels"
_FLAGS = ("-std=c++17", "-O3", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC")
# Seconds after which a compiler, or a process that builds the same kernel, is taken to hang. A build takes some five.
_TIME_LIMIT = 300.0
# What a compiler without OpenMP complains about.
_NO_OPENMP = re.compile(r"openmp|[gil]omp|\bomp\b|omp\.h", re.IGNORECASE)
_LINES_OF_ERROR = 12
# Elements for which another thread is worth its start.
_ELEMENTS_A_THREAD = 1 << 13

Macros = tuple[tuple[str, int], ...]

_warned: set[str] = set()


class KernelBuildError(RuntimeError):
    """A C++ kernel cannot be had: there is no compiler, it fails, or there is no folder for what it makes."""


def library(name: str, macros: Macros) -> ctypes.CDLL:
    """The kernels of ``kernels/<name>.cpp``, which says what the macros mean, for one set of them.

    Raises KernelBuildError where it cannot be built or loaded. A process tries each set of macros once, until
    :func:`forget`.
    """
    found = _find(name, macros)
    if isinstance(found, str):
        raise KernelBuildError(found)
    return found


def available(name: str, macros: Macros) -> bool:
    """Whether :func:`library` succeeds for these macros; builds the kernel where that was not done yet.

    The first time in the process that a kernel of this name is not available, a warning gives the reason.
    """
    found = _find(name, macros)
    if isinstance(found, str) and name not in _warned:
        _warned.add(name)
        warnings.warn(f"C++ kernels are not available: {found}", stacklevel=2)
    return not isinstance(found, str)


def forget() -> None:
    """Lets the process load and build anew what it has loaded or failed to build."""
    _find.cache_clear()
    _warned.clear()


def num_threads(num_elements: int) -> int:
    """Threads for a kernel over so many elements."""
    most = num_elements // _ELEMENTS_A_THREAD
    return 1 if most <= 1 else min(torch.get_num_threads(), most)


def pointer(tensor: Tensor | None) -> int | None:
    """What a kernel takes for a tensor."""
    return None if tensor is None else tensor.data_ptr()


@functools.cache
def _find(name: str, macros: Macros) -> ctypes.CDLL | str:
    """The library, or why there is none: an exception that is kept would keep the tensors of its frames."""
    variant = f"{name} ({', '.join(f'{macro}={value}' for macro, value in macros)})"
    source, march = _SOURCES / f"{name}.cpp", os.environ.get("FUSED_BALANCED_LOSS_MARCH") or "native"
    try:
        if not source.is_file():
            raise KernelBuildError(f"the source {source} is missing: the package was installed without its kernels")
        options = [*_FLAGS, f"-march={march}", *(f"-D{macro}={value}" for macro, value in macros)]
        return _load_or_build(source, [*_compiler(), *options])
    except (OSError, KernelBuildError) as error:
        return f"{variant}: {error}"


def _load_or_build(source: Path, command: list[str]) -> ctypes.CDLL:
    """The library of a source; ``command``: the compiler with its options."""
    stem = _file_stem(source, command)
    folders = cache_folders()
    for folder in folders:
        kept = _load_kept(folder, stem)
        if kept is not None:
            return kept
    folder, deadline = folders[-1], time.monotonic() + _TIME_LIMIT
    with build_lock(folder, stem, deadline) as scratch:
        # Another process may have built it while this one waited.
        kept = _load_kept(folder, stem)
        if kept is not None:
            return kept
        made = scratch / "kernel.so"
        _compile(command, [str(source), "-o", str(made)], scratch, deadline)
        made.chmod(0o600)
        with open(made, "r+b") as file:
            digest = _digest(file.read())
            os.fsync(file.fileno())
        path = folder / f"{stem}-{digest}.so"
        os.replace(made, path)
    try:
        return _load(path)
    except OSError:
        path.unlink(missing_ok=True)
        raise


def _file_stem(source: Path, command: list[str]) -> str:
    """Changes with whatever the machine code depends on."""
    sources = [each.read_text() for each in (source, *sorted(_SOURCES.glob("*.h")))]
    # An upgrade replaces the compiler's file and keeps its name.
    compiler = os.stat(command[0])
    processor = _processor() if "-march=native" in command else ""
    parts = "\n".join([*sources, *command, str(compiler.st_size), str(compiler.st_mtime_ns), processor])
    return f"{source.stem}-{hashlib.sha256(parts.encode()).hexdigest()[:20]}"


def _load_kept(folder: Path, stem: str) -> ctypes.CDLL | None:
    for path in sorted(folder.glob(f"{stem}-*.so")):
        with contextlib.suppress(OSError):
            return _load(path)
        with contextlib.suppress(OSError):
            path.unlink()
    return None


def _load(path: Path) -> ctypes.CDLL:
    """Raises OSError where others could have written the file, it is not what was built, or it cannot be loaded."""
    check_file(path)
    # The loader maps the file: reading behind its end would kill the process.
    if _digest(path.read_bytes()) != path.stem.rpartition("-")[2]:
        raise OSError(f"{path} was changed or cut short")
    return ctypes.CDLL(str(path))


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]


def _compile(command: list[str], files: list[str], scratch: Path, deadline: float) -> None:
    failure, output = run_compiler([*command, "-fopenmp", *files], scratch, deadline)
    command = [*command, *files]
    # A compiler without OpenMP gives kernels that run on one thread. No other failure may end in such a kernel.
    if failure and _NO_OPENMP.search(output):
        failure, output = run_compiler(command, scratch, deadline)
    if failure:
        lines = [line for line in output.splitlines() if line.strip()][:_LINES_OF_ERROR]
        raise KernelBuildError("\n".join([f"the compiler {command[0]} {failure}", shlex.join(command), *lines]))


def _compiler() -> tuple[str, ...]:
    """The compiler's path and options."""
    chosen = os.environ.get("CXX", "").strip()
    candidates = [[name] for name in ("c++", "g++", "clang++")]
    if chosen:
        # A path may hold blanks.
        candidates = [[chosen], shlex.split(chosen, posix=os.name != "nt")]
    for program, *options in candidates:
        path = shutil.which(program)
        if path:
            return (os.path.abspath(path), *options)
    wanted = f"CXX = {chosen}" if chosen else "c++, g++ or clang++"
    raise KernelBuildError(f"no C++ compiler found ({wanted})")


@functools.cache
def _processor() -> str:
    """What ``-march=native`` goes by."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    wanted = ("model name", "flags", "Features", "CPU part")
    return "\n".join(sorted({line for line in lines if line.startswith(wanted)}))
