"""Value and gradient by a C++ kernel, for CPU tensors."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .closed_form import EAGER
from .cpp_build import library, num_threads, pointer
from .memory import empty
from .problem import Problem

scale_gradient = EAGER.scale_gradient

_LOGITS = {torch.float32: 32, torch.bfloat16: 16, torch.float16: 116}
_TARGETS = {torch.bool: 8, torch.uint8: 8, torch.float32: 32}
_CSR = 0

# The kernel multiplies the denominators of two sigmoids; beyond, the product could leave float32.
_LARGEST_EXPONENT = 27.0


def unsupported(problem: Problem) -> str | None:
    """What of the problem the kernel does not know, or None. It knows no reduction "none" either."""
    spec, targets = problem.spec, problem.targets
    if problem.logits.device.type != "cpu" or problem.logits.dtype not in _LOGITS:
        return f"{problem.logits.dtype} logits on {problem.logits.device}"
    if type(problem.logits) not in (Tensor, torch.nn.Parameter):
        return f"{type(problem.logits).__name__}, which may have no memory of its own"
    if isinstance(targets, Tensor) and targets.dtype not in _TARGETS:
        return f"{targets.dtype} targets"
    if problem.label_mask is not None:
        return "a label mask"
    if spec.probability_margin:
        return "a probability margin"
    if any(gamma not in (0, 1, 2) for gamma in spec.gammas):
        return "gamma other than 0, 1 and 2"
    if problem.labels.inverse_frequency is not None and spec.beta * spec.mu > _LARGEST_EXPONENT:
        return f"beta * mu > {_LARGEST_EXPONENT:g}"
    return None


def unavailable(problem: Problem) -> str | None:
    return unsupported(problem)


def prepare(problem: Problem) -> Problem:
    return problem


def value(problem: Problem, reduction: str, scale: float = 1.0) -> Tensor:
    """``scale`` times the sum of the loss."""
    return _run("loss_value", problem, scale, None)


def gradient(problem: Problem, upstream: Tensor, scale: float = 1.0) -> Tensor:
    """Gradient [N, C] of the logits, times ``scale`` and ``upstream`` (no dimension)."""
    out = empty(problem.logits.shape, problem.logits.dtype, problem.logits.device)
    _run("loss_gradient", problem, scale * upstream.item(), out)
    return out


def value_and_gradient(problem: Problem, scale: float, out: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """``scale`` times the sum of the loss, and its gradient [N, C], written to ``out`` where that is given."""
    if out is None:
        out = empty(problem.logits.shape, problem.logits.dtype, problem.logits.device)
    return _run("loss_value_and_gradient", problem, scale, out), out


def _run(name: str, problem: Problem, scale: float, out: Tensor | None) -> Tensor:
    spec, logits, labels = problem.spec, problem.logits, problem.labels
    rows, columns = logits.shape
    loss = torch.empty((), dtype=torch.float32)
    dense, crow, col = problem.target_tensors()
    form = _CSR if dense is None else _TARGETS[dense.dtype]
    terms_present = (labels.bias is not None, labels.inverse_frequency is not None, labels.weight is not None)
    _kernel(name, spec.gammas, terms_present, logits.dtype, form)(
        logits.data_ptr(),
        logits.stride(0),
        None if out is None else out.data_ptr(),
        0 if out is None else out.stride(0),
        rows,
        columns,
        pointer(dense),
        0 if dense is None else dense.stride(0),
        pointer(crow),
        pointer(col),
        pointer(problem.row_sum),
        pointer(problem.row_weight),
        pointer(labels.bias),
        pointer(labels.inverse_frequency),
        pointer(labels.weight),
        spec.lam,
        spec.alpha,
        spec.beta,
        spec.mu,
        spec.positive_factor,
        spec.negative_factor,
        scale,
        loss.data_ptr(),
        num_threads(rows * columns),
    )
    return loss


@functools.lru_cache(maxsize=256)
def _kernel(
    name: str, gammas: tuple[float, float], terms: tuple[bool, bool, bool], dtype: torch.dtype, targets: int
) -> Callable[..., Any]:
    macros = {"LOGITS": _LOGITS[dtype], "TARGETS": targets}
    macros |= dict(zip(("GAMMA_POSITIVE", "GAMMA_NEGATIVE"), map(int, gammas), strict=True))
    macros |= dict(zip(("BIAS", "REBALANCED", "LABEL_WEIGHT"), map(int, terms), strict=True))
    kernel = getattr(library("logits_loss", tuple(macros.items())), name)
    address, integer, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
    kernel.argtypes = [
        *(address, integer, address, integer, integer, integer),
        *(address, integer, address, address),
        *(address,) * 5,
        *(number,) * 7,
        *(address, ctypes.c_int),
    ]
    kernel.restype = None
    return kernel
