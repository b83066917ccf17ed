"""The gate for the caller's weights of the labels."""

from __future__ import annotations

import math
import numbers
import weakref
from typing import Any

import torch
from torch import Tensor

from .backends import device as devices
from .backends.kept import keep
from .broadcast import is_broadcast
from .label_statistics import LabelStatistics
from .label_weights import LabelWeights, Weight

# By identity and version of the tensors: weights that do not change are checked and converted once. An entry goes with
# the first of its tensors, so no other tensor is taken for it. It holds the statistics.
_kept: dict[Any, tuple[LabelWeights, list[Tensor]]] = {}
_MOST_KEPT = 16
# The tensors, by identity, whose end takes their entries away.
_watched: set[int] = set()


def label_weights(
    weight: Weight | None,
    pos_weight: Weight | None,
    statistics: LabelStatistics | None,
    num_labels: int,
    device: torch.device,
    name: str = "weight",
) -> LabelWeights | None:
    """The weights for logits of ``num_labels`` labels on ``device``; None where there are none.

    Args:
        weight, pos_weight: a number, or a tensor [C] or []; >= 0.
        name: what the caller calls ``weight``.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
    """
    if weight is None and pos_weight is None:
        return None
    tensors = [part for part in (weight, pos_weight) if isinstance(part, Tensor)]
    key = None
    if not torch.compiler.is_compiling() and not (tensors and is_broadcast()):
        marks = _mark(weight), _mark(pos_weight)
        key = None if None in marks else (*marks, id(statistics), num_labels, device)
        found, values = _kept.get(key, (None, []))
        # What shares its memory with an array may change without a new version. On a GPU looking would stall.
        if found is not None and (devices.kind(device) != "cpu" or all(map(torch.equal, tensors, values))):
            return found
    if tensors and devices.is_capturing(device):
        raise RuntimeError(
            f"{name}, pos_weight: expected a call with these weights before the capture of a CUDA graph, which cannot "
            "wait for their values"
        )
    for which, value in ((name, weight), ("pos_weight", pos_weight)):
        if value is not None:
            check_weight(which, value, num_labels, device, wait=key is not None or devices.kind(device) == "cpu")
    # Other objects over the same memory, so that the entry does not keep the caller's tensors.
    own, own_pos = (part.detach() if isinstance(part, Tensor) else part for part in (weight, pos_weight))
    made = LabelWeights(own, own_pos, num_labels, statistics, None if key is None else {})
    if key is not None:
        values = [part.clone() for part in tensors] if devices.kind(device) == "cpu" else []
        keep(_kept, key, (made, values), _MOST_KEPT)
        for part in tensors:
            if id(part) not in _watched:
                _watched.add(id(part))
                weakref.finalize(part, _forget, id(part)).atexit = False
    return made


def _forget(tensor: int) -> None:
    _watched.discard(tensor)
    for key in list(_kept):
        if tensor in (key[0][0], key[1][0]):
            _kept.pop(key, None)


def _mark(value: Weight | None) -> object:
    """What tells a weight from any other, and from itself after a change; None where nothing can."""
    if value is None or isinstance(value, (int, float)):
        return type(value), value
    # Inference tensors have no version, and traced ones no address.
    if type(value) is not Tensor or value.is_inference():
        return None
    return id(value), value._version, value.data_ptr()


def check_weight(
    name: str, value: Weight, num_labels: int = 1, device: torch.device | None = None, wait: bool = True
) -> None:
    """Raises TypeError or ValueError unless ``value`` is a number, or a tensor [num_labels] or [] on ``device``.

    Without ``wait`` an assertion of the device fails where the tensor has a wrong value.
    """
    if isinstance(value, bool) or not isinstance(value, (Tensor, numbers.Real)):
        raise TypeError(f"{name}: expected a number or a tensor, one number for each label, got {type(value).__name__}")
    if not isinstance(value, Tensor):
        if not 0 <= value < math.inf:
            raise ValueError(f"{name}: expected a finite number >= 0, got {value}")
        return
    if value.dtype == torch.bool or value.is_complex() or value.layout != torch.strided:
        raise TypeError(f"{name}: expected a dense tensor of real numbers, got {value.dtype} of layout {value.layout}")
    if value.shape not in ((), (num_labels,)):
        raise ValueError(f"{name}: expected shape [{num_labels}], one for each label, got {list(value.shape)}")
    if value.requires_grad:
        raise ValueError(f"{name}: expected a tensor without gradient, got one that requires it")
    if value.device != device:
        raise ValueError(f"{name}: expected the device of the logits, {device}, got {value.device}")
    # Traced tensors have no values.
    if torch.compiler.is_compiling() or type(value) is not Tensor:
        return
    wrong = ~((value >= 0) & (value < math.inf))
    if not wait:
        torch._assert_async(~wrong.any(), f"{name}: expected finite numbers >= 0")
    elif bool(wrong.any()):
        raise ValueError(f"{name}: expected finite numbers >= 0, got {value[wrong][0].item()}")
