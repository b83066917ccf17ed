"""Counters by which the last program of a launch knows that it is the last."""

from __future__ import annotations

import threading

import torch
from torch import Tensor

from . import device as devices
from .kept import keep

# Streams whose counters a thread keeps: most have one or two.
_MOST_KEPT = 64


class _Counters(threading.local):
    """By device and stream, what the thread keeps."""

    def __init__(self) -> None:
        self.kept: dict[tuple[torch.device, int], Tensor] = {}


# Threads do not share counters, because one number may name another stream in each thread.
_of_thread = _Counters()


def counters(device: torch.device, number: int, may_keep: bool) -> Tensor:
    """At least ``number`` zeros, int32, for a launch on the current stream that leaves zeros behind.

    Launches on one stream run one after the other, so they share one tensor where it ``may_keep`` memory. A CUDA graph
    may be replayed on any stream, so it gets its own.
    """
    if not may_keep or devices.is_capturing(device):
        return torch.zeros(number, dtype=torch.int32, device=device)
    key = device, devices.stream(device)
    kept = _of_thread.kept.get(key)
    if kept is None or kept.shape[0] < number:
        # An inference tensor could not be written to elsewhere.
        with torch.inference_mode(False):
            kept = torch.zeros(max(number, 1024), dtype=torch.int32, device=device)
        keep(_of_thread.kept, key, kept, _MOST_KEPT)
    return kept


def forget() -> None:
    """Drops this thread's counters, because a launch that failed may have left others than zeros."""
    _of_thread.kept.clear()
