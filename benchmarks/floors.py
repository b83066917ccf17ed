"""The least work of a call, in bytes and floating-point operations, and the time that it takes on this device."""

from __future__ import annotations

from typing import NamedTuple

import torch
from environment import copy_bandwidth, matmul_rate

_TARGET_BYTES = {"uint8": 1, "bool": 1, "float": 4}


class Floor(NamedTuple):
    """The least work of a call.

    num_bytes: bytes that must be read or written; they move at the bandwidth of a copy.
    num_flops: operations of matrix products, done at the rate of a large product in ``dtype``.
    """

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
    """The floor of a pass over the logits, which reads logits and targets and, with a backward, writes the gradient.

    None for "backward" alone: once the forward has made the gradient, nothing is left to do.
    """
    if what == "backward":
        return None
    elements = num_rows * num_labels
    targets = 8 * (num_positives + num_rows + 1) if form == "csr" else _TARGET_BYTES[form] * elements
    passes = 1 if what == "value" else 2
    return Floor(passes * dtype.itemsize * elements + targets, 0, dtype)


def classifier_floor(num_rows: int, num_labels: int, num_features: int, dtype: torch.dtype, what: str) -> Floor:
    """The floor of classifier and loss, which read the weight and write its gradient or, in an update, the new weight.

    what: "value", "forward and backward", or "update". The bytes of an optimizer's state are not counted.
    """
    products = 1 if what == "value" else 3
    weight = dtype.itemsize * num_labels * (num_features + 1)
    features = dtype.itemsize * num_rows * num_features
    passes = 1 if what == "value" else 2
    return Floor(passes * (weight + features), 2 * products * num_rows * num_labels * num_features, dtype)
