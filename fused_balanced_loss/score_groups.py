"""Groups of labels and of instances that are scored by themselves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .input_values import INT64_MAX, as_integer, as_tensor

TOTAL = "total"


def label_masks(groups: Any, num_labels: int) -> dict[str, Tensor]:
    """Masks, bool [C], by name, with ``"total"`` for all labels as the first.

    ``groups`` is None, a mapping of names to masks, or a named tuple of masks. Raises TypeError or ValueError.
    """
    masks = {TOTAL: torch.ones(num_labels, dtype=torch.bool)}
    if groups is None:
        return masks
    groups = groups._asdict() if hasattr(groups, "_asdict") else groups
    if not isinstance(groups, Mapping):
        raise TypeError(f"label_groups: expected a mapping of names to masks, got {type(groups).__name__}")
    for name, given in groups.items():
        mask = as_tensor(f"label_groups[{name!r}]", given).cpu()
        if mask.dtype != torch.bool or mask.shape != (num_labels,):
            raise ValueError(
                f"label_groups[{name!r}]: expected bool [{num_labels}], got {mask.dtype} of shape {list(mask.shape)}"
            )
        if name == TOTAL and not bool(mask.all()):
            raise ValueError(f"label_groups[{name!r}]: expected all labels, got {int(mask.sum())} of {num_labels}")
        masks[name] = mask.clone()
    return masks


def label_count_ranges(groups: Any) -> dict[str, tuple[int, int]]:
    """Lowest and highest number of labels of an instance, by name.

    ``groups`` is None, or a mapping of names to (low, high), where high None stands for no limit. Raises TypeError or
    ValueError.
    """
    if groups is None:
        return {}
    if not isinstance(groups, Mapping):
        raise TypeError(f"instance_groups: expected a mapping of names to (low, high), got {type(groups).__name__}")
    ranges = {}
    for name, given in groups.items():
        argument = f"instance_groups[{name!r}]"
        try:
            low, high = given
        except (TypeError, ValueError) as error:
            raise TypeError(f"{argument}: expected (low, high), got {given!r}") from error
        low, high = as_integer(argument, low), INT64_MAX if high is None else as_integer(argument, high)
        if not 0 <= low <= high:
            raise ValueError(f"{argument}: expected 0 <= low <= high, got {given!r}")
        ranges[name] = low, high
    return ranges
