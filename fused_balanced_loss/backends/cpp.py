"""Value and gradient by a C++ kernel, for CPU tensors."""

from __future__ import annotations

import ctypes
import functools
import struct
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..spec import LossSpec
from . import device
from .closed_form import EAGER
from .cpp_build import KernelBuildError, Macros, available, library, num_threads
from .problem import Problem, gradient_like

scale_gradient = EAGER.scale_gradient

# The macro LOGITS of kernels/vector_math.h.
LOGITS = {torch.float32: 32, torch.bfloat16: 16, torch.float16: 116, torch.float64: 64}
# TargetFormat of kernels/row_labels.h.
_TARGETS = {
    **{torch.bool: 1, torch.uint8: 1, torch.int8: 1, torch.uint16: 2, torch.int16: 2, torch.uint32: 4, torch.int32: 4},
    **{torch.uint64: 8, torch.int64: 8, torch.float16: 12, torch.bfloat16: 13, torch.float32: 14, torch.float64: 18},
}
# The members of ``Call`` and ``Spec`` in kernels/logits_loss.cpp.
_CALL = struct.Struct("@25Qd")
_SPEC = struct.Struct("@11d")
# Exponents of (1 - p) of the negatives that have a kernel of their own; -1 is one for all others.
_GAMMAS = (0.0, 1.0, 2.0, 4.0)
_ANY_GAMMA = -1


def unavailable(problem: Problem) -> str | None:
    """Why the kernel cannot take the problem, or None; its library is built where that was not done yet."""
    logits = problem.logits
    if device.kind(logits.device) != "cpu":
        return f"logits on {logits.device}"
    if type(logits) not in (Tensor, torch.nn.Parameter):
        return f"{type(logits).__name__}, which may have no memory of its own"
    try:
        plan(problem)
    except KernelBuildError as error:
        return str(error)
    return None


def prepare(problem: Problem) -> Problem:
    """The problem as it is: the kernel finds the labels of a row in the pass that needs them."""
    return problem


def value(problem: Problem, reduction: str, scale: float = 1.0) -> Tensor:
    """Loss: [N, C] for reduction "none", else ``scale`` times the sum of its elements."""
    if reduction == "none":
        loss = torch.empty_like(problem.logits, dtype=problem.dtype, memory_format=torch.contiguous_format)
        _run(problem, 1.0, elements=loss)
        return loss
    return _sum(problem, scale, None)


def gradient(problem: Problem, upstream: Tensor, scale: float = 1.0) -> Tensor:
    """Gradient [N, C] of the logits, times ``scale`` and ``upstream`` (no dimension, or [N, C])."""
    out = gradient_like(problem.logits)
    if upstream.dim() and upstream.numel() and not any(upstream.stride()):
        # The gradient of a sum repeats one number.
        upstream = upstream[0, 0]
    if upstream.dim():
        upstream = upstream.to(problem.dtype)
        upstream = upstream if upstream.stride(1) == 1 else upstream.contiguous()
        _run(problem, scale, gradient=out, upstream=upstream)
    else:
        _run(problem, scale * upstream.item(), gradient=out)
    return out


def value_and_gradient(problem: Problem, scale: float, out: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """``scale`` times the sum of the loss, and its gradient [N, C], written to ``out`` where that is given."""
    if out is None:
        out = gradient_like(problem.logits)
    return _sum(problem, scale, out), out


def _sum(problem: Problem, scale: float, gradient: Tensor | None) -> Tensor:
    loss = torch.empty_like(_number(problem.dtype))
    _run(problem, scale, loss=loss, gradient=gradient)
    return loss


@functools.cache
def _number(dtype: torch.dtype) -> Tensor:
    """A tensor of no dimensions. To make another like it takes half the time of making one by its dtype."""
    with torch.inference_mode(False):
        return torch.empty((), dtype=dtype, device="cpu")


def _run(
    problem: Problem,
    scale: float,
    *,
    loss: Tensor | None = None,
    elements: Tensor | None = None,
    gradient: Tensor | None = None,
    upstream: Tensor | None = None,
) -> None:
    """One call of the kernel. loss: its sum; elements: of each element [N, C]; both are written, like ``gradient``."""
    logits, targets, _, labels, row_weight, mask, row_sum, *_ = problem
    rows, columns = logits.shape
    kernel, numbers = problem.plan or plan(problem)
    if isinstance(targets, Tensor):
        target_fields = targets.data_ptr(), targets.stride(0), _TARGETS[targets.dtype], 0, 0, 0
    else:
        target_fields = 0, 0, 0, targets.crow.data_ptr(), targets.col.data_ptr(), targets.col.shape[0]
    bias, inverse_frequency, label_weight, positive_weight = labels
    # No function for the address of what may be None: so many calls would take a microsecond.
    call = _CALL.pack(
        logits.data_ptr(),
        logits.stride(0),
        0 if gradient is None else gradient.data_ptr(),
        0 if gradient is None else gradient.stride(0),
        rows,
        columns,
        *target_fields,
        0 if mask is None else mask.data_ptr(),
        0 if mask is None else mask.stride(0),
        0 if row_sum is None else row_sum.data_ptr(),
        0 if row_weight is None else row_weight.data_ptr(),
        0 if bias is None else bias.data_ptr(),
        0 if inverse_frequency is None else inverse_frequency.data_ptr(),
        0 if label_weight is None else label_weight.data_ptr(),
        0 if positive_weight is None else positive_weight.data_ptr(),
        0 if upstream is None else upstream.data_ptr(),
        0 if upstream is None else upstream.stride(0),
        0 if elements is None else elements.data_ptr(),
        0 if loss is None else loss.data_ptr(),
        num_threads(rows * columns),
        scale,
    )
    kernel(call, numbers)


_Kernel = Callable[[bytes, bytes], Any]


class _Kernels(NamedTuple):
    """What is made once for a spec.

    numbers: ``Spec`` of kernels/logits_loss.cpp.
    macros: of the kernel, as far as the spec says them.
    by_key: the kernels by the dtype of the logits and by which constants of the labels there are.
    """

    spec: LossSpec
    numbers: bytes
    macros: Macros
    by_key: dict[tuple[torch.dtype, bool, bool, bool], _Kernel]


# By the identity of the spec, which takes less time than its hash. An entry holds its spec, so that no other object
# gets the same identity.
_KERNELS: dict[int, _Kernels] = {}
_MOST_SPECS = 64


def plan(problem: Problem) -> tuple[_Kernel, bytes]:
    """The kernel for problems of this kind, and its second argument."""
    spec, labels = problem.spec, problem.labels
    kernels = _KERNELS.get(id(spec))
    if kernels is None:
        if len(_KERNELS) >= _MOST_SPECS:
            _KERNELS.clear()
        kernels = _KERNELS[id(spec)] = _Kernels(spec, _numbers(spec), _macros(spec), {})
    has_bias, rebalanced = labels.bias is not None, labels.inverse_frequency is not None
    key = (problem.logits.dtype, has_bias, rebalanced, labels.weight is not None)
    kernel = kernels.by_key.get(key)
    if kernel is None:
        kernel = kernels.by_key[key] = _kernel(kernels.macros, *key)
    return kernel, kernels.numbers


def _numbers(spec: LossSpec) -> bytes:
    weight, factors = (spec.alpha, spec.beta, spec.mu or 0.0), (spec.lam, spec.positive_factor, spec.negative_factor)
    rest = (spec.poly_epsilon, spec.label_smoothing)
    return _SPEC.pack(*spec.gammas, spec.probability_margin, *weight, *factors, *rest)


def _macros(spec: LossSpec) -> Macros:
    gamma = spec.gammas[1]
    return (
        ("GAMMA", int(gamma) if gamma in _GAMMAS else _ANY_GAMMA),
        ("MARGIN", int(spec.probability_margin > 0)),
        ("POLY", int(spec.poly_epsilon != 0)),
    )


@functools.cache
def _kernel(macros: Macros, dtype: torch.dtype, has_bias: bool, rebalanced: bool, has_weight: bool) -> _Kernel:
    present = (("BIAS", int(has_bias)), ("REBALANCED", int(rebalanced)), ("LABEL_WEIGHT", int(has_weight)))
    variant = (("LOGITS", LOGITS[dtype]), *macros, *present)
    # Only this warns where the kernel cannot be had, and once in a process.
    available("logits_loss", variant)
    kernel = library("logits_loss", variant).logits_loss
    kernel.argtypes = [ctypes.c_char_p, ctypes.c_char_p]
    kernel.restype = None
    return kernel


def forget() -> None:
    """Forgets the kernels that were loaded; a kept call has its own until ``kept_calls.forget``."""
    _KERNELS.clear()
    _kernel.cache_clear()
