"""Checks of single values from a caller: integers and arrays of numbers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

INT64_MAX = 2**63 - 1
_NUMBERS = (bool, int, float, np.bool_, np.integer, np.floating)


def as_integer(name: str, value: Any, at_least: int | None = None) -> int:
    """The value as a Python int. NumPy's integers are taken, bools are not.

    Raises TypeError for another type, and ValueError for an integer below ``at_least`` or outside int64.
    """
    expected = "an integer" if at_least is None else f"an integer >= {at_least}"
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name}: expected {expected}, got {type(value).__name__} {value!r}")
    number = int(value)
    if at_least is not None and number < at_least:
        raise ValueError(f"{name}: expected {expected}, got {number}")
    if not -INT64_MAX - 1 <= number <= INT64_MAX:
        raise ValueError(f"{name}: expected an integer that fits into 64 bits, got {number}")
    return number


def as_number(name: str, value: Any) -> float:
    """The value as a Python float. NumPy's numbers are taken, bools are not.

    Raises TypeError for another type, and ValueError for a number that is not finite.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{name}: expected a number, got {type(value).__name__} {value!r}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"{name}: expected a finite number, got {value}")
    return number


def as_tensor(name: str, value: Any) -> Tensor:
    """A dense tensor of the numbers of an array, a table such as a pandas DataFrame, or nested sequences.

    Raises TypeError for anything that is no dense array of numbers, and ValueError for integers outside int64.
    """
    if isinstance(value, Tensor):
        if value.layout != torch.strided or value.is_nested:
            raise TypeError(f"{name}: expected a dense tensor, got {describe(value)}")
        return value
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name}: expected an array without a mask, which would be ignored, got {describe(value)}")
    try:
        return torch.as_tensor(_as_array(value) if hasattr(value, "__array__") else value)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        # The type of this error differs between versions of PyTorch.
        if "overflow" in str(error).lower():
            raise ValueError(f"{name}: expected integers that fit into 64 bits, got larger ones") from error
        raise TypeError(f"{name}: expected an array of numbers, got {describe(value)}") from error


def _as_array(value: Any) -> np.ndarray:
    """A C-contiguous array. Python's numbers become float64: so a table with columns of bool and int64 is taken."""
    array = np.asarray(value, order="C")
    if array.dtype == object and all(issubclass(kind, _NUMBERS) for kind in {type(item) for item in array.flat}):
        return array.astype(np.float64)
    # PyTorch warns of memory that it must not write, which is what pandas gives.
    return array if array.flags.writeable else array.copy()


def describe(value: object) -> str:
    """What a value is, for a message: its type, and for arrays dtype and shape."""
    if isinstance(value, Tensor):
        if value.is_nested:
            return f"a nested tensor of {value.dtype}"
        return f"a {value.layout} tensor of {value.dtype} with shape {list(value.shape)}"
    if isinstance(value, np.ndarray):
        return f"{type(value).__name__} of {value.dtype} with shape {list(value.shape)}"
    return type(value).__name__
