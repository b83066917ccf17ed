"""Launches of the C++ kernel of a classifier's in-place step, for CPU tensors."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..backends.cpp_build import Macros, available, library, num_threads, pointer
from .rule import GradientConsumer, Step, ignore_gradients

_NAME = "classifier_update"
_BITS = {torch.float32: 32, torch.bfloat16: 16}
_ONE_A_ROW = 1


def begin(step: Step) -> GradientConsumer:
    """Begins a step; reads its numbers on the host."""
    if not bool(step.finite):
        return ignore_gradients
    # The members of the kernel's ``Settings``.
    numbers = (*step.numbers.tolist(), *step.constants.values(), step.max_row_norm or 0.0)
    settings = (ctypes.c_float * len(numbers))(*numbers)
    update, seed, number = kernel(_macros(step)), int(step.seed), int(step.number)

    def take_gradients(rows: slice, weight_gradient: Tensor, bias_gradient: Tensor) -> None:
        weight = step.weight.cut(rows)
        bias = (None,) * 3 if step.bias is None else step.bias.cut(rows)
        num_rows, num_features = weight_gradient.shape
        weight_gradient, bias_gradient = weight_gradient.contiguous(), bias_gradient.contiguous()
        update(
            *(weight_gradient.data_ptr(), bias_gradient.data_ptr()),
            *(weight.value.data_ptr(), weight.value.stride(0), *map(pointer, weight[1:])),
            *map(pointer, bias),
            *(num_rows, num_features, step.first_label + rows.start),
            *(settings, seed, number, num_threads(num_rows * num_features)),
        )

    return take_gradients


def is_built(step: Step) -> bool:
    """Whether there is a kernel for this step; builds it at the first question, and warns where that fails."""
    return available(_NAME, _macros(step))


def _macros(step: Step) -> Macros:
    weight = step.weight
    by_row = weight.second_moment is not None and weight.second_moment.shape != weight.value.shape
    return (
        ("ADAMW", int(step.adamw)),
        ("STOCHASTIC", int(step.stochastic)),
        ("WEIGHT_BITS", _bits(weight.value)),
        ("BIAS_BITS", 0 if step.bias is None else _bits(step.bias.value)),
        ("FIRST_MOMENT_BITS", _bits(weight.first_moment)),
        ("SECOND_MOMENT_BITS", _ONE_A_ROW if by_row else _bits(weight.second_moment)),
    )


@functools.cache
def kernel(macros: Macros) -> Callable[..., Any]:
    """The kernel for a set of its macros, built at its first use; raises KernelBuildError where that fails."""
    function = library(_NAME, macros).classifier_update
    address, integer = ctypes.c_void_p, ctypes.c_int64
    gradients, weight, bias = [address] * 2, [address, integer, address, address], [address] * 3
    place, settings = [integer] * 3, [address, integer, integer]
    argtypes: list[Any] = [*gradients, *weight, *bias, *place, *settings, ctypes.c_int]
    function.argtypes = argtypes
    function.restype = None
    return function


def _bits(tensor: Tensor | None) -> int:
    return 0 if tensor is None else _BITS[tensor.dtype]
