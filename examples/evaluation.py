"""Threshold choice, and F1 by label frequency."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import f1_score

GROUPS = ("total", "head", "medium", "tail")
KINDS = ("micro", "macro")
THRESHOLDS: NDArray[np.float64] = np.arange(40, 61) / 100

Scores = dict[str, dict[str, float]]


def micro_f1(targets: NDArray[np.uint8], predictions: NDArray[np.bool_]) -> float:
    return float(f1_score(targets, predictions, average="micro", zero_division=0))


def macro_f1(targets: NDArray[np.uint8], predictions: NDArray[np.bool_]) -> float:
    return float(f1_score(targets, predictions, average="macro", zero_division=0))


def choose_threshold(
    targets: NDArray[np.uint8], scores: NDArray[np.floating], thresholds: NDArray[np.float64] = THRESHOLDS
) -> tuple[float, float]:
    """The threshold of the best micro-F1, the lowest of equals, and that micro-F1."""
    f1 = [micro_f1(targets, scores > threshold) for threshold in thresholds]
    best = int(np.argmax(f1))
    return float(thresholds[best]), f1[best]


def f1_by_group(
    targets: NDArray[np.uint8], predictions: NDArray[np.bool_], groups: Mapping[str, NDArray[np.bool_]]
) -> Scores:
    """Micro- and macro-F1 over each group's labels, all documents counting."""
    return {
        name: {
            "micro": micro_f1(targets[:, mask], predictions[:, mask]),
            "macro": macro_f1(targets[:, mask], predictions[:, mask]),
        }
        for name, mask in groups.items()
    }
