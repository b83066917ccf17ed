"""Launches of the C++ kernel of a classifier's in-place step, for CPU tensors."""

from __future__ import annotations

import ctypes
import functools
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..backends.cpp_build import library, num_threads, pointer
from . import eager
from .rule import ChunkUpdate, Rows, Rule, Step

_BITS = {torch.float32: 32, torch.bfloat16: 16}
_BY_ROW, _NONE = 1, 0


def begin(step: Step) -> ChunkUpdate:
    """What takes one chunk after another; looks at the step's numbers on the host."""
    if not bool(step.finite):
        return eager.begin(step)
    rule = step.rule
    beta1, beta2 = rule.betas
    settings = (rule.momentum, 1 - beta1, beta2, 1 - beta2, rule.eps, rule.weight_decay, rule.max_row_norm or 0.0)
    numbers = (ctypes.c_float * 11)(*step.numbers.tolist(), *settings)
    return functools.partial(_update, step, numbers, int(step.seed), int(step.number))


def _update(
    step: Step,
    numbers: Any,
    seed: int,
    number: int,
    gradient: Tensor,
    bias_gradient: Tensor,
    weight: Rows,
    bias: Rows | None,
    first_row: int,
) -> None:
    kernel = _kernel(step.rule, weight, bias)
    if kernel is None:
        eager.begin(step)(gradient, bias_gradient, weight, bias, first_row)
        return
    rows, columns = gradient.shape
    gradient, bias_gradient = gradient.contiguous(), bias_gradient.contiguous()
    kernel(
        gradient.data_ptr(),
        bias_gradient.data_ptr(),
        weight.value.data_ptr(),
        weight.value.stride(0),
        pointer(weight.first),
        pointer(weight.second),
        None if bias is None else bias.value.data_ptr(),
        None if bias is None else pointer(bias.first),
        None if bias is None else pointer(bias.second),
        rows,
        columns,
        first_row,
        numbers,
        seed,
        number,
        num_threads(rows * columns),
    )


def _kernel(rule: Rule, weight: Rows, bias: Rows | None) -> Callable[..., Any] | None:
    second = _NONE if weight.second is None else _BITS[weight.second.dtype]
    if weight.second is not None and weight.second.shape != weight.value.shape:
        second = _BY_ROW
    return _built(
        rule.kind == "adamw",
        rule.stochastic,
        _BITS[weight.value.dtype],
        _NONE if bias is None else _BITS[bias.value.dtype],
        _NONE if weight.first is None else _BITS[weight.first.dtype],
        second,
    )


@functools.cache
def _built(*macros: int) -> Callable[..., Any] | None:
    """The kernel, or None, after one warning, where it cannot be built."""
    names = ("ADAMW", "STOCHASTIC", "WEIGHT", "BIAS", "FIRST", "SECOND")
    try:
        kernel = library("classifier_update", tuple(zip(names, map(int, macros), strict=True))).classifier_update
    except Exception as error:
        warnings.warn(
            f"the C++ kernel of the in-place update failed ({type(error).__name__}: {str(error).partition(chr(10))[0]}"
            "); it goes on with PyTorch operators, which are slower",
            stacklevel=2,
        )
        return None
    address, integer = ctypes.c_void_p, ctypes.c_int64
    kernel.argtypes = [
        *(address, address, address, integer),
        *(address,) * 5,
        *(integer,) * 3,
        *(address, integer, integer, ctypes.c_int),
    ]
    kernel.restype = None
    return kernel
