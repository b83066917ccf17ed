"""Which implementation takes an in-place step."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..backends.select import triton_backend
from . import cpp, eager
from .rule import ChunkUpdate, Step


def select_update(device: torch.device) -> Callable[[Step], ChunkUpdate]:
    """What begins a step on a device."""
    if device.type == "cuda" and triton_backend() is not None:
        from . import triton

        return triton.begin
    return cpp.begin if device.type == "cpu" else eager.begin
