"""The C++ kernels, built for this CPU at first use and kept on disk."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

_SOURCES = Path(__file__).parents[1] / "kernels"
_FLAGS = ("-std=c++17", "-O3", "-march=native", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math")
# Some compilers have no OpenMP: the kernels then run on one thread.
_THREADING = (("-fopenmp",), ())
# Elements for which another thread is worth its start.
_ELEMENTS_A_THREAD = 1 << 13


@functools.cache
def library(name: str, macros: tuple[tuple[str, int], ...]) -> ctypes.CDLL:
    """The kernels of ``kernels/<name>.cpp``, which says what the macros mean, for one set of them.

    Raises:
        RuntimeError: where there is no C++ compiler, or it fails.
    """
    source = _SOURCES / f"{name}.cpp"
    path = cache_folder() / f"{name}-{_key(source, dict(macros))}.so"
    if not path.exists():
        _build(source, path, dict(macros))
    return ctypes.CDLL(str(path))


def num_threads(num_elements: int) -> int:
    """Threads for a kernel over so many elements."""
    return max(1, min(torch.get_num_threads(), num_elements // _ELEMENTS_A_THREAD))


def pointer(tensor: Tensor | None) -> int | None:
    """What a kernel takes for a tensor."""
    return None if tensor is None else tensor.data_ptr()


def cache_folder() -> Path:
    """``FUSED_BALANCED_LOSS_CACHE``, else a folder in the user's cache; one of the temporary folder where neither
    can be written."""
    chosen = os.environ.get("FUSED_BALANCED_LOSS_CACHE")
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    folder = Path(chosen or os.path.join(cache, "fused_balanced_loss"))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    except OSError:
        pass
    return _own_temporary_folder()


@functools.cache
def _own_temporary_folder() -> Path:
    # Of this process alone: what others can write must not be loaded.
    return Path(tempfile.mkdtemp(prefix="fused_balanced_loss-"))


def _build(source: Path, path: Path, macros: Mapping[str, int]) -> None:
    defines = [f"-D{name}={value}" for name, value in macros.items()]
    errors = []
    for threading in _THREADING:
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            made = Path(folder) / path.name
            command = [_compiler(), *_FLAGS, *threading, *defines, "-shared", "-fPIC", str(source), "-o", str(made)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode == 0:
                # Whoever else builds the same at this moment finds the whole file or none.
                os.replace(made, path)
                return
            errors.append(done.stderr)
    raise RuntimeError(f"the C++ compiler {_compiler()} failed: {errors[0].strip()[:2000]}")


@functools.cache
def _compiler() -> str:
    chosen = os.environ.get("CXX")
    for name in (chosen,) if chosen else ("c++", "g++", "clang++"):
        path = shutil.which(name)
        if path:
            return path
    raise RuntimeError(f"no C++ compiler found ({chosen or 'c++, g++ or clang++'})")


def _key(source: Path, macros: Mapping[str, int]) -> str:
    """Changes with whatever the machine code depends on."""
    sources = [source, *sorted(_SOURCES.glob("*.h"))]
    parts = [*(each.read_text() for each in sources), repr(sorted(macros.items())), _cpu(), _compiler(), *_FLAGS]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:20]


@functools.cache
def _cpu() -> str:
    """What ``-march=native`` goes by."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    wanted = ("model name", "flags", "Features", "CPU part")
    return "\n".join(sorted({line for line in lines if line.startswith(wanted)}))
