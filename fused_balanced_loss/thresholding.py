"""From logits to probabilities in bounded memory, and their exact comparison with thresholds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .input_values import describe
from .spec import check_choice

FloatArray = NDArray[np.float64]
Activation = Literal["sigmoid", "none"]

# Rows are taken so many elements at a time, which bounds the memory of a call, whatever the size of the batch.
CHUNK = 2**20


def check_logits(logits: Tensor, num_labels: int | None) -> int:
    """The number of labels C of logits [n, C], where it is known ``num_labels``; waits for the device.

    Raises TypeError for anything but a dense floating tensor, and ValueError for another shape and for a NaN.
    """
    if not isinstance(logits, Tensor) or not logits.is_floating_point():
        got = logits.dtype if isinstance(logits, Tensor) else type(logits).__name__
        raise TypeError(f"logits: expected a floating-point tensor, got {got}")
    if logits.layout != torch.strided or logits.is_nested:
        raise TypeError(f"logits: expected a dense tensor, got {describe(logits)}")
    if logits.dim() != 2 or logits.shape[1] != (num_labels or max(logits.shape[1], 1)):
        raise ValueError(f"logits: expected [n, {num_labels or 'C >= 1'}], got shape {list(logits.shape)}")
    for start, chunk in chunks(logits):
        # The maximum is NaN where any element is; it needs no memory, as a mask of all elements would.
        if bool(chunk.amax().isnan()):
            row, label = torch.nonzero(chunk.isnan())[0].tolist()
            raise ValueError(f"logits: expected numbers, got NaN in row {start + row} for label {label}")
    return logits.shape[1]


def probabilities(logits: Tensor, activation: Activation) -> Iterator[tuple[int, Tensor]]:
    """Chunks of the rows as float32 probabilities [rows, C], each with the number of its first row."""
    for start, chunk in chunks(logits):
        yield start, torch.sigmoid(chunk.float()) if activation == "sigmoid" else chunk.float()


def as_thresholds(thresholds: Any, activation: Activation) -> FloatArray:
    """Thresholds as a read-only float64 array [T].

    Raises TypeError or ValueError for an unknown activation, and for anything but numbers in [0, 1] or, with activation
    "none", in float32.
    """
    check_choice("activation", activation, get_args(Activation))
    try:
        values = np.array(thresholds, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise TypeError(f"thresholds: expected numbers, got {thresholds!r}") from error
    if values.ndim != 1 or not len(values):
        raise ValueError(f"thresholds: expected one dimension [T] with T >= 1, got shape {list(values.shape)}")
    low, high = (0.0, 1.0) if activation == "sigmoid" else (-np.finfo(np.float32).max, np.finfo(np.float32).max)
    wrong = ~((values >= low) & (values <= high))
    if wrong.any():
        raise ValueError(f"thresholds: expected numbers in [{low:g}, {high:g}], got {values[wrong][0]}")
    values.setflags(write=False)
    return values


def float32_below(thresholds: FloatArray) -> NDArray[np.float32]:
    """For each threshold the largest float32 number that is not above it.

    A float32 probability is greater than this number exactly if it is greater than the float64 threshold.
    """
    rounded = thresholds.astype(np.float32)
    return np.where(rounded > thresholds, np.nextafter(rounded, np.float32(-np.inf)), rounded)


def chunks(logits: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Chunks of the rows [rows, C], each with the number of its first row."""
    rows = max(1, CHUNK // logits.shape[1])
    for start in range(0, len(logits), rows):
        yield start, logits[start : start + rows]
