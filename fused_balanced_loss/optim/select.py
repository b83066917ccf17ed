"""Which implementation takes an in-place step: the only place that decides it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import ModuleType

from ..backends.device import kind
from ..backends.select import import_triton, triton_backend
from . import cpp, eager
from .rule import GradientConsumer, Step


def select_update(step: Step) -> Callable[[Step], GradientConsumer]:
    """The ``begin`` of the implementation for this step.

    A GPU takes Triton's kernel, a CPU the C++ kernel. PyTorch's operators serve where the one cannot be imported or the
    other cannot be built, after one warning.
    """
    device = kind(step.weight.value.device)
    if device == "cuda":
        triton = triton_update()
        return eager.begin if triton is None else triton.begin
    if device == "cpu" and cpp.is_built(step):
        return cpp.begin
    return eager.begin


@functools.cache
def triton_update() -> ModuleType | None:
    """The implementation in Triton, or None where Triton cannot be imported."""
    # Where the loss has found no Triton, its warning is enough.
    return None if triton_backend() is None else import_triton("fused_balanced_loss.optim.triton")
