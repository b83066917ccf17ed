"""Checks of the parameters of BalancedClassifier."""

from __future__ import annotations

import math
import numbers
from typing import Any

import torch
from numpy import integer
from sklearn.base import BaseEstimator

from ...spec import PRESETS, LossSpec

_CHOICES = {
    "optimizer": ("adamw", "sgd"),
    "optimizer_state": ("float32", "bfloat16", "row"),
    "dtype": ("float32", "bfloat16"),
}
# Bounds of numbers, and whether the bounds themselves are allowed.
_NUMBERS = {
    "learning_rate": (0.0, math.inf, False),
    "weight_decay": (0.0, math.inf, True),
    "validation_fraction": (0.0, 1.0, False),
    "threshold": (0.0, 1.0, False),
}
_OTHER_THAN_INTEGERS = {"batch_size": "auto", "hidden_layer_size": None}
_INTEGERS = ("batch_size", "max_iter", "n_iter_no_change", "hidden_layer_size")


def check_parameters(estimator: BaseEstimator) -> None:
    """Raises ValueError, naming the parameter, what was expected and what came."""
    given: dict[str, Any] = estimator.get_params(deep=False)
    for name, choices in _CHOICES.items():
        if given[name] not in choices:
            _refuse(name, f"one of {', '.join(map(repr, choices))}", given[name])
    for name in _INTEGERS:
        value = given[name]
        whole = isinstance(value, (int, integer)) and not isinstance(value, bool) and value >= 1
        others = [_OTHER_THAN_INTEGERS[name]] if name in _OTHER_THAN_INTEGERS else []
        if not whole and not (type(value) in (str, type(None)) and value in others):
            _refuse(name, " or ".join(["an integer of at least 1", *map(repr, others)]), value)
    for name, (low, high, closed) in _NUMBERS.items():
        value = given[name]
        if isinstance(value, str) and name == "threshold" and value == "validation":
            continue
        number = isinstance(value, numbers.Real) and not isinstance(value, bool)
        if not number or not (low < value < high or (closed and value == low)):
            bounds = f"a number above {low:g}" if high == math.inf else f"a number between {low:g} and {high:g}"
            bounds = bounds.replace("above", "of at least") if closed else bounds
            _refuse(name, bounds + (" or 'validation'" if name == "threshold" else ""), value)
    if not isinstance(given["loss"], LossSpec) and given["loss"] not in PRESETS:
        _refuse("loss", f"a LossSpec or one of {', '.join(PRESETS)}", given["loss"])
    chosen_device(given["device"])


def chosen_device(device: str | torch.device | None) -> torch.device:
    """The device that was asked for; with None a GPU where there is one."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device: expected one of PyTorch, such as 'cpu', got {device!r}") from error


def _refuse(name: str, expected: str, value: object) -> None:
    raise ValueError(f"{name}: expected {expected}, got {value!r}")
