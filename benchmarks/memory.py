"""Memory that a call allocates, on the CPU by the profiler's record of each allocation, on a GPU by its allocator."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from environment import DEVICE

from fused_balanced_loss.backends import memory as own_memory


def peak_bytes(run: Callable[[], Any], clear: Callable[[], Any] | None = None) -> int:
    """Most memory that the call had allocated at once, beyond what was there before.

    clear: frees what an earlier call has left, the gradients, so that it is not freed within the record.
    """
    return _memory(run, clear)[0]


def held_bytes(forward: Callable[[], Any], clear: Callable[[], Any] | None = None) -> int:
    """Memory that the result keeps: what waits for the backward, the gradient included where it is made already."""
    return _memory(forward, clear)[1]


def _memory(run: Callable[[], Any], clear: Callable[[], Any] | None) -> tuple[int, int]:
    """(peak, what is left while the result lives)."""
    # Whatever is made once is made now.
    kept = run()
    del kept
    if clear is not None:
        clear()
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        kept = run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before, torch.cuda.memory_allocated() - before
    # What the library maps itself the profiler would not see.
    with (
        mock.patch.object(own_memory, "_MAPPED_FROM", math.inf),
        torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile,
    ):
        kept = run()
    del kept
    now = peak = 0
    for event in sorted(profile.profiler.kineto_results.events(), key=lambda one: one.start_ns()):
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    return peak, now
