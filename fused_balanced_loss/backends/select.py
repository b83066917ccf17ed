"""Which implementation computes a call: the one decision."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import warnings
from types import ModuleType
from typing import Any, Literal, Protocol, get_args

from torch import Tensor

from . import cpp, device
from .closed_form import COMPILED, EAGER
from .problem import Problem

Impl = Literal["auto", "triton", "cpp", "compile", "eager", "reference"]
IMPLS: tuple[str, ...] = get_args(Impl)


class Backend(Protocol):
    """What an implementation offers. All but the reference, which is forward only, offer the same."""

    def plan(self, problem: Problem) -> Any:
        """What depends only on the kind of a problem: its shapes, strides, dtypes, device, spec and which tensors it
        has. ``Problem.plan`` brings it to the other calls of the kind, which need it not decide again."""
        ...

    def prepare(self, problem: Problem) -> Problem:
        """The problem with what the forward and the backward share. Optional: the others make what is missing."""
        ...

    def value(self, problem: Problem, reduction: str, scale: float = ...) -> Tensor:
        """Loss: [N, C] for reduction "none", else ``scale`` times the sum of its elements."""
        ...

    def gradient(self, problem: Problem, upstream: Tensor, scale: float = ...) -> Tensor:
        """Gradient [N, C] of the logits, times ``scale`` and ``upstream`` (no dimensions, or [N, C])."""
        ...

    def value_and_gradient(self, problem: Problem, scale: float, out: Tensor | None = ...) -> tuple[Tensor, Tensor]:
        """``scale`` times the sum of the loss, and its gradient [N, C], written to ``out`` where that is given."""
        ...

    def scale_gradient(self, gradient: Tensor, upstream: Tensor) -> None:
        """Multiplies ``gradient`` in place by ``upstream`` (no dimensions)."""
        ...


@functools.cache
def triton_backend() -> Any | None:
    """The Triton implementation, or None, after one warning, where Triton cannot be imported."""
    return import_triton("fused_balanced_loss.backends.triton")


def import_triton(name: str) -> ModuleType | None:
    """A module of ours that needs Triton, or None, after a warning, where Triton cannot be imported."""
    if importlib.util.find_spec("triton") is None:
        warnings.warn("triton is not installed: GPU tensors take PyTorch operators, which are slower", stacklevel=3)
        return None
    try:
        return importlib.import_module(name)
    except Exception as error:
        warnings.warn(
            f"triton could not be imported ({type(error).__name__}: {error}): GPU tensors take PyTorch operators, "
            "which are slower",
            stacklevel=3,
        )
        return None


def select(impl: str, problem: Problem) -> Backend:
    """The implementation for ``impl``, one of IMPLS but "reference", and this problem's device, dtypes and spec.

    Raises:
        RuntimeError: where an implementation that was named cannot be had, with the reason.
    """
    where = problem.logits.device
    if impl == "compile":
        return COMPILED
    if impl == "eager":
        return EAGER
    if impl == "cpp":
        reason = cpp.unavailable(problem)
        if reason:
            raise RuntimeError(f"impl: 'cpp' cannot take this call: {reason}")
        return cpp
    if impl == "triton":
        if not (device.kind(where) == "cuda" or device.interpreting()):
            raise RuntimeError(
                f"impl: 'triton' needs logits on a GPU, or TRITON_INTERPRET=1 set before triton is imported; "
                f"got logits on {where}"
            )
        backend = triton_backend()
        if backend is None:
            raise RuntimeError("impl: 'triton' needs the package triton, which is not installed or does not import")
        return backend
    if device.kind(where) == "cuda":
        return triton_backend() or EAGER
    if device.kind(where) == "cpu" and cpp.unavailable(problem) is None:
        return cpp
    return EAGER
