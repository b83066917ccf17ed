"""Large fresh tensors on the CPU."""

from __future__ import annotations

import contextlib
import math
import mmap
import weakref
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

# The C library maps anything larger afresh at each allocation and unmaps it when it is freed; the first touch of each
# page then costs a fault, together as much as a matrix product over the tensor.
_MAPPED_FROM = 32 << 20
# Freed memory that is kept for the next tensor of its size.
_MOST_KEPT = 2
_kept: list[mmap.mmap] = []

_PRIVATE = getattr(mmap, "MAP_PRIVATE", 0) | getattr(mmap, "MAP_ANONYMOUS", 0)
_ADVICE = (getattr(mmap, "MADV_HUGEPAGE", None), getattr(mmap, "MADV_FREE", None))
_SUPPORTED = bool(_PRIVATE) and None not in _ADVICE


def empty(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """``torch.empty``; on Linux a large one on the CPU is in huge pages, where the system has them, and takes the
    memory that the last one of its size has left.

    What is kept in between is the system's to take whenever it runs short (``MADV_FREE``). The storage of a large one
    cannot be resized.
    """
    count = math.prod(shape)
    large = device.type == "cpu" and count * dtype.itemsize >= _MAPPED_FROM and _SUPPORTED
    memory = _take(count * dtype.itemsize) if large else None
    if memory is None:
        return torch.empty(shape, dtype=dtype, device=device)
    # The tensor's storage holds the array, whose end is the storage's.
    array = np.frombuffer(memory, np.uint8)
    weakref.finalize(array, _keep, memory).atexit = False
    return torch.frombuffer(array, dtype=dtype, count=count).view(tuple(shape))


def _take(num_bytes: int) -> mmap.mmap | None:
    for memory in tuple(_kept):
        if len(memory) == num_bytes:
            # Another thread may have been faster.
            with contextlib.suppress(ValueError):
                _kept.remove(memory)
                return memory
    try:
        memory = mmap.mmap(-1, num_bytes, flags=_PRIVATE)
    except OSError:
        # It counts as in use where the system promises no more than it has.
        _kept.clear()
        return None
    # Not every system has huge pages.
    with contextlib.suppress(OSError):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


def _keep(memory: mmap.mmap) -> None:
    with contextlib.suppress(OSError):
        memory.madvise(mmap.MADV_FREE)
        _kept.append(memory)
        del _kept[:-_MOST_KEPT]
