"""Launches of the C++ kernel of a classifier's in-place step, for CPU tensors."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..backends.cpp_build import Macros, available, library, num_threads, pointer
from .rule import GradientConsumer, Rows, Step, ignore_gradients

_NAME = "classifier_update"
_BITS = {torch.float32: 32, torch.bfloat16: 16}
_NONE = 0
_ONE_A_ROW = 1


class Variant(NamedTuple):
    """What the kernel is compiled for: its macros, in lower case; see ``kernels/classifier_update.cpp``."""

    adamw: int
    stochastic: int
    weight_bits: int
    bias_bits: int
    first_moment_bits: int
    second_moment_bits: int

    def macros(self) -> Macros:
        """The macros in the form that ``cpp_build`` takes."""
        return tuple((name.upper(), value) for name, value in self._asdict().items())


class _Settings(ctypes.Structure):
    """The kernel's ``Settings``: the same fields in the same order."""

    _fields_ = [
        (name, ctypes.c_float)
        for name in (
            *("gradient_scale", "step_size", "weight_scale", "root_correction"),
            *("momentum", "one_minus_beta1", "beta2", "one_minus_beta2", "eps", "l2_penalty", "max_row_norm"),
        )
    ]


def begin(step: Step) -> GradientConsumer:
    """Begins a step; reads its numbers on the host."""
    if not bool(step.finite):
        return ignore_gradients
    limit = step.rule.max_row_norm or 0.0
    settings = _Settings(*step.numbers.tolist(), **step.rule.constants(), max_row_norm=limit)
    return functools.partial(_update, step, kernel(variant_of(step)), settings, int(step.seed), int(step.number))


def variant_of(step: Step) -> Variant:
    """The kernel's variant for a step."""
    weight, bias = step.weight, step.bias
    second = _bits(weight.second_moment)
    if weight.second_moment is not None and weight.second_moment.shape != weight.value.shape:
        second = _ONE_A_ROW
    return Variant(
        adamw=int(step.rule.kind == "adamw"),
        stochastic=int(step.rule.stochastic),
        weight_bits=_bits(weight.value),
        bias_bits=_NONE if bias is None else _bits(bias.value),
        first_moment_bits=_bits(weight.first_moment),
        second_moment_bits=second,
    )


def is_built(variant: Variant) -> bool:
    """Whether there is a kernel for this variant; builds it at the first question, and warns where that fails."""
    return available(_NAME, variant.macros())


@functools.cache
def kernel(variant: Variant) -> Callable[..., Any]:
    """The kernel, built at its first use.

    Raises:
        KernelBuildError: where it cannot be built.
    """
    function = library(_NAME, variant.macros()).classifier_update
    address, integer = ctypes.c_void_p, ctypes.c_int64
    function.argtypes = [
        # Gradients of weight and bias.
        *(address, address),
        # The weight with the stride of its rows, and its moments.
        *(address, integer, address, address),
        # The bias and its moments.
        *(address, address, address),
        # Shape of the chunk, and the label of its first row.
        *(integer, integer, integer),
        # Settings, and the source of the random bits.
        *(ctypes.POINTER(_Settings), integer, integer),
        # Threads.
        ctypes.c_int,
    ]
    function.restype = None
    return function


def _update(
    step: Step,
    kernel: Callable[..., Any],
    settings: _Settings,
    seed: int,
    number: int,
    rows: slice,
    weight_gradient: Tensor,
    bias_gradient: Tensor,
) -> None:
    weight = step.weight.cut(rows)
    bias = Rows(None, None, None) if step.bias is None else step.bias.cut(rows)  # type: ignore[arg-type]
    num_rows, num_features = weight_gradient.shape
    weight_gradient, bias_gradient = weight_gradient.contiguous(), bias_gradient.contiguous()
    kernel(
        weight_gradient.data_ptr(),
        bias_gradient.data_ptr(),
        weight.value.data_ptr(),
        weight.value.stride(0),
        pointer(weight.first_moment),
        pointer(weight.second_moment),
        pointer(bias.value),
        pointer(bias.first_moment),
        pointer(bias.second_moment),
        num_rows,
        num_features,
        step.first_label + rows.start,
        settings,
        seed,
        number,
        num_threads(num_rows * num_features),
    )


def _bits(tensor: Tensor | None) -> int:
    return _NONE if tensor is None else _BITS[tensor.dtype]
