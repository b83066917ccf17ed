"""Large fresh tensors on the CPU, whose memory may be kept for the next one of its size.

Off unless the environment variable ``FUSED_BALANCED_LOSS_KEEP_MEMORY`` is ``1`` when the package is imported. The C
library takes memory of more than 32 MiB from the system at each allocation, and gives it back when the tensor is freed.
The system then clears each page at its first use. A step of ``linear_balanced_loss`` with few rows, whose weight
gradient is large and whose products are small, spends a quarter of its time on that; with many rows it is little. Kept
memory is still the system's to take whenever it runs short.

With glibc 2.35 or later, ``MALLOC_MMAP_THRESHOLD_=8589934592 MALLOC_TRIM_THRESHOLD_=17179869184`` does nearly as much,
for every tensor of the process; then the memory stays with the process.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import os
import weakref
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

_ADVICE = ("MAP_PRIVATE", "MAP_ANONYMOUS", "MADV_HUGEPAGE", "MADV_FREE")
_KEEPS = os.environ.get("FUSED_BALANCED_LOSS_KEEP_MEMORY") == "1" and all(hasattr(mmap, name) for name in _ADVICE)
# Bytes from which the C library maps an allocation of its own.
_MAPPED_FROM = 32 << 20
# Freed tensors whose memory is kept.
_MOST_KEPT = 2
_kept: list[mmap.mmap] = []


def empty(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """``torch.empty``, or a tensor in kept memory, whose storage cannot be resized."""
    count = math.prod(shape)
    large = count * dtype.itemsize >= _MAPPED_FROM and device.type == "cpu"
    memory = _take(count * dtype.itemsize) if large and _KEEPS else None
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
        memory = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
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
