"""Least work of a call: bytes that must move and products that must be made, and the time that takes here."""

from __future__ import annotations

from typing import NamedTuple

import torch
from environment import copy_bandwidth, matmul_rate

_TARGET_BYTES = {"uint8": 1, "bool": 1, "float": 4}


class Floor(NamedTuple):
    """num_bytes: moved at the bandwidth of a copy. num_flops: at the rate of a large product in ``dtype``."""

    num_bytes: int
    num_flops: int
    dtype: torch.dtype

    @property
    def seconds(self) -> float:
        products = self.num_flops / matmul_rate(self.dtype) if self.num_flops else 0.0
        return max(self.num_bytes / copy_bandwidth(), products)


def logits_floor(
    num_rows: int, num_labels: int, dtype: torch.dtype, form: str, num_positives: int, what: str
) -> Floor | None:
    """Of a pass over the logits: reads logits and targets, writes the gradient where one is made.

    None for "backward", which alone need do nothing once the gradient has been made with the value.
    """
    if what == "backward":
        return None
    elements = num_rows * num_labels
    targets = 8 * (num_positives + num_rows + 1) if form == "csr" else _TARGET_BYTES[form] * elements
    passes = 1 if what == "value" else 2
    return Floor(passes * dtype.itemsize * elements + targets, 0, dtype)


def classifier_floor(num_rows: int, num_labels: int, num_features: int, dtype: torch.dtype, what: str) -> Floor:
    """Of classifier and loss: reads the weight, writes its gradient (or the weight changed, and its state).

    what: "value", "forward and backward", or "update".
    """
    products = 1 if what == "value" else 3
    weight = dtype.itemsize * num_labels * (num_features + 1)
    features = dtype.itemsize * num_rows * num_features
    passes = 1 if what == "value" else 2
    return Floor(passes * (weight + features), 2 * products * num_rows * num_labels * num_features, dtype)
