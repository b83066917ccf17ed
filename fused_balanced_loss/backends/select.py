"""Which implementation computes a call."""

from __future__ import annotations

import functools
import importlib.util
import os
import warnings
from types import ModuleType
from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor

from . import compiled, cpp, eager, reference
from .problem import Problem

Impl = Literal["auto", "triton", "compile", "reference"]
IMPLS: tuple[str, ...] = get_args(Impl)

# Elements from which a CPU pass is worth the building of the C++ kernel (under a second, then kept on disk), and where
# that does not know the problem, compilation by torch.compile (seconds).
KERNEL_FROM = 1 << 14
COMPILE_FROM = 1 << 17


class Backend(Protocol):
    """What an implementation offers; see ``reference`` for the meaning of the three."""

    def value(self, problem: Problem, reduction: str, scale: float = ...) -> Tensor: ...
    def gradient(self, problem: Problem, upstream: Tensor, scale: float = ...) -> Tensor: ...
    def value_and_gradient(self, problem: Problem, scale: float, out: Tensor | None = ...) -> tuple[Tensor, Tensor]: ...
    def scale_gradient(self, gradient: Tensor, upstream: Tensor) -> None: ...


class _FirstThatWorks:
    """The C++ kernel for the CPU, the closed form under torch.compile, or uncompiled: the first that takes the problem.

    What fails is not tried again: one warning, then the next.
    """

    def __init__(self) -> None:
        self.failed: set[str] = set()

    def _call(self, name: str, problem: Problem, *arguments: Any) -> Any:
        whole = arguments[0] != "none" if name == "value" else name != "gradient" or arguments[0].dim() == 0
        if whole and "cpp" not in self.failed and cpp.unsupported(problem) is None:
            try:
                return getattr(cpp, name)(problem, *arguments)
            except Exception as error:
                self._give_up("cpp", "the C++ kernel", "torch.compile", error)
        if "compile" not in self.failed and problem.logits.numel() >= COMPILE_FROM:
            try:
                return getattr(compiled, name)(problem, *arguments)
            except compiled.LogitsLostError:
                raise
            except Exception as error:
                # The uncompiled form raises again what was the caller's fault.
                result = getattr(eager, name)(problem, *arguments)
                self._give_up("compile", "torch.compile", "the uncompiled closed form", error)
                return result
        return getattr(eager, name)(problem, *arguments)

    def _give_up(self, which: str, what: str, instead: str, error: Exception) -> None:
        self.failed.add(which)
        warnings.warn(
            f"{what} failed ({type(error).__name__}: {str(error).partition(chr(10))[0]}); "
            f"impl='auto' goes on with {instead}, which is slower",
            stacklevel=3,
        )

    def value(self, problem: Problem, reduction: str, scale: float = 1.0) -> Tensor:
        return self._call("value", problem, reduction, scale)

    def gradient(self, problem: Problem, upstream: Tensor, scale: float = 1.0) -> Tensor:
        return self._call("gradient", problem, upstream, scale)

    def value_and_gradient(self, problem: Problem, scale: float, out: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._call("value_and_gradient", problem, scale, out)

    scale_gradient = staticmethod(eager.scale_gradient)


COMPILED = _FirstThatWorks()


@functools.cache
def triton_backend() -> ModuleType | None:
    """The Triton implementation, or None, after one warning, where Triton cannot be imported."""
    if importlib.util.find_spec("triton") is None:
        warnings.warn("triton is not installed: GPU tensors take torch.compile", stacklevel=2)
        return None
    try:
        from . import triton, triton_operator  # noqa: F401 (registers the operator)
    except Exception as error:
        warnings.warn(
            f"triton could not be imported ({type(error).__name__}: {error}): GPU tensors take torch.compile",
            stacklevel=2,
        )
        return None
    return triton


def interpreting() -> bool:
    """Whether Triton's interpreter runs kernels on CPU tensors."""
    return os.environ.get("TRITON_INTERPRET", "0") in ("1", "true", "True", "on")


def select(impl: str, device: torch.device, size: int) -> Backend:
    """The implementation for ``impl``, one of IMPLS, on a device, for ``size`` logits at once.

    Raises:
        RuntimeError: for ``impl="triton"`` where Triton or a GPU is missing.
    """
    if impl == "reference":
        return reference
    if impl == "compile":
        return compiled
    if impl == "triton":
        if not (device.type == "cuda" or interpreting()):
            raise RuntimeError(
                f"impl: 'triton' needs logits on a GPU, or TRITON_INTERPRET=1 set before triton is imported; "
                f"got logits on {device}"
            )
        backend = triton_backend()
        if backend is None:
            raise RuntimeError("impl: 'triton' needs the package triton, which is not installed or does not import")
        return backend
    if device.type == "cuda":
        return triton_backend() or COMPILED
    if torch.compiler.is_compiling():
        return compiled
    if device.type == "cpu" and size >= KERNEL_FROM:
        return COMPILED
    return eager
