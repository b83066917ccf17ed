"""Grids of thresholds among which the best one is searched."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..spec import check_choice
from ..thresholding import Activation, FloatArray, as_thresholds

__all__ = ["PAPER_THRESHOLDS", "Activation", "FloatArray", "as_grid", "threshold_grid"]

PAPER_THRESHOLDS: FloatArray = np.arange(40, 61) / 100
"""0.40 to 0.60 by 0.01 (Huang et al., 2021, section 4.2)."""

# A decade below 0.01 has so many thresholds, each 1.097 times the one before.
_A_DECADE = 25


def _full() -> FloatArray:
    low = [float(f"{10.0 ** (power / _A_DECADE - 4):.4g}") for power in range(2 * _A_DECADE)]
    high = [round(1 - threshold, 7) for threshold in reversed(low)]
    return np.array([*low, *(np.arange(1, 100) / 100), *high])


_GRIDS = {"paper": PAPER_THRESHOLDS, "full": _full()}
for _grid in _GRIDS.values():
    _grid.setflags(write=False)


def threshold_grid(thresholds: Any) -> FloatArray:
    """Thresholds of the probability, as a read-only float64 array [T].

    Args:
        thresholds: ``"paper"``: 0.40 to 0.60 by 0.01, 21 thresholds (Huang et al., 2021, section 4.2). ``"full"``: 199
            from 0.0001 to 0.9999: by 0.01 between 0.01 and 0.99, so that the paper's are among them; below, each 1.10
            times the one before, and above likewise in 1 - threshold. Losses without weights, such as BCE, often have
            their best threshold far below 0.4 for rare labels. Or numbers in [0, 1], in any order.

    Raises:
        TypeError, ValueError: for another name, and anything but numbers in [0, 1].
    """
    return as_grid(thresholds, "sigmoid")


def as_grid(thresholds: Any, activation: Activation) -> FloatArray:
    """As :func:`threshold_grid`; numbers for activation "none" are any finite ones."""
    if isinstance(thresholds, str):
        check_choice("thresholds", thresholds, tuple(_GRIDS))
        return _GRIDS[thresholds]
    return as_thresholds(thresholds, activation)
