"""An array on disk that is filled step by step, and goes on where it was broken off."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from atomic_file import atomic_file


class ResumableArray:
    """float32 array at ``path``; ``done`` says how many steps of filling it are finished.

    Raises:
        OSError: where the disk has no room for the whole array.
    """

    def __init__(self, path: Path, shape: tuple[int, ...]) -> None:
        self._note = path.with_suffix(".done")
        self.done = self._noted() if path.exists() else 0
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

    def _noted(self) -> int:
        try:
            return int(self._note.read_text())
        except (FileNotFoundError, ValueError):
            return 0
