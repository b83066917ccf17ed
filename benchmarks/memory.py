"""Memory that a call allocates: on the CPU from the profiler's list of allocations, on a GPU from the allocator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from environment import DEVICE


def peak_bytes(run: Callable[[], Any], clear: Callable[[], Any] | None = None) -> int:
    """The most bytes that the call had allocated at once, beyond what was allocated before it.

    clear: frees what an earlier call has left, such as gradients. Otherwise the measured call would free it, and its
    figure would be too small.
    """
    return _memory(run, clear)[0]


def held_bytes(forward: Callable[[], Any], clear: Callable[[], Any] | None = None) -> int:
    """The bytes that live as long as the result: what waits for the backward, with a gradient that is already made."""
    return _memory(forward, clear)[1]


def _memory(run: Callable[[], Any], clear: Callable[[], Any] | None) -> tuple[int, int]:
    """The peak, and what is left while the result lives."""
    # A first call makes what is made once and kept, such as the constants of the labels.
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
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        kept = run()
    del kept
    now = peak = 0
    for event in sorted(profile.profiler.kineto_results.events(), key=lambda one: one.start_ns()):
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    return peak, now
