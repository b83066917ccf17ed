"""Checks of an in-place optimizer: its settings, the classifier, and the tensors that its kernels read and write."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

WEIGHT_DTYPES = (torch.float32, torch.bfloat16)

# Shape and dtype of each of a state's buffers, by name.
StateForm = dict[str, tuple[tuple[int, ...], torch.dtype]]


def check_number(name: str, value: Any, *, positive: bool = False, below: float = math.inf) -> float:
    """The number; raises TypeError or ValueError unless it is finite, at least 0 (``positive``: above), and below."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}")
    if not (0 <= value < below) or (positive and value == 0):
        bounds = "above 0" if positive else "of at least 0"
        limit = " and finite" if below == math.inf else f" and below {below:g}"
        raise ValueError(f"{name}: expected a number {bounds}{limit}, got {value}")
    return float(value)


def check_number_or_tensor(name: str, value: Any, *, positive: bool = False) -> float | Tensor:
    """As :func:`check_number`; a floating-point tensor of one element is taken as it is, detached."""
    if not isinstance(value, Tensor):
        return check_number(name, value, positive=positive)
    if value.numel() != 1 or not value.is_floating_point():
        raise ValueError(
            f"{name}: expected a floating-point tensor of one element, got {value.dtype} of shape {list(value.shape)}"
        )
    return value.detach()


def check_classifier(weight: Tensor, bias: Tensor | None) -> None:
    """Raises TypeError or ValueError unless the kernels can change weight [C, D] and bias [C] in place."""
    for name, value in (("weight", weight), ("bias", bias)):
        if value is None:
            continue
        if value.dtype not in WEIGHT_DTYPES:
            raise TypeError(f"{name}: expected float32 or bfloat16 for an update in place, got {value.dtype}")
        if value.stride(-1) != 1 and value.shape[-1] > 1:
            raise ValueError(f"{name}: expected rows side by side in memory, got strides {list(value.stride())}")
        if value.is_neg():
            raise ValueError(f"{name}: expected a tensor without the negative bit; resolve_neg() gives one")
    if len(weight) > 1 and weight.stride(0) < weight.shape[1]:
        raise ValueError(f"weight: expected rows of their own memory, got strides {list(weight.stride())}")


def check_state(state: Mapping[str, Any], form: StateForm, device: torch.device) -> None:
    """Raises TypeError or ValueError unless every tensor of the state is what the kernels take it for.

    They read and write by pointer: another dtype, stride or device would silently give wrong numbers.
    """
    for name, (shape, dtype) in form.items():
        value = state.get(name)
        if not isinstance(value, Tensor):
            raise TypeError(f"update: expected a tensor in {name}, got {type(value).__name__}")
        if (value.dtype, value.shape, value.device) != (dtype, shape, device):
            raise ValueError(
                f"update: expected {name} as {dtype} of shape {list(shape)} on the device of the weight, {device}, got "
                f"{value.dtype} of shape {list(value.shape)} on {value.device}"
            )
        if value.layout != torch.strided or not value.is_contiguous() or value.is_neg():
            raise ValueError(
                f"update: expected {name} contiguous and without the negative bit, got strides {list(value.stride())}; "
                f"set it to {name}.resolve_neg().contiguous()"
            )
        if value.is_inference() and not torch.is_inference_mode_enabled():
            raise ValueError(
                f"update: expected {name} made outside torch.inference_mode(), whose tensors cannot change"
            )


def check_apart(tensors: Mapping[str, Tensor | None]) -> None:
    """Raises ValueError where two of the tensors share memory."""
    spans = []
    for name, value in tensors.items():
        if value is not None and value.numel():
            last = sum((size - 1) * stride for size, stride in zip(value.shape, value.stride(), strict=True))
            spans.append((value.data_ptr(), value.data_ptr() + (last + 1) * value.element_size(), name))
    for (_, stop, one), (start, _, other) in itertools.pairwise(sorted(spans)):
        if start < stop:
            raise ValueError(f"update: expected memory of its own for each tensor, but {one} and {other} overlap")
