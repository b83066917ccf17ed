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

    Args:
        groups: None, a mapping of names to masks, or a named tuple of masks.
        num_labels: C.

    Raises:
        TypeError, ValueError: naming the group, what was expected and what came.
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


def label_count_ranges(groups: Any) -> dict[str, tuple[int, int | None]]:
    """Ranges (low, high) of the number of labels of an instance, by name; high None stands for no limit.

    Args:
        groups: None, or a mapping of names to pairs.

    Raises:
        TypeError, ValueError: naming the group, what was expected and what came.
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
        low, high = as_integer(argument, low), None if high is None else as_integer(argument, high)
        if low < 0 or (high is not None and high < low):
            raise ValueError(f"{argument}: expected 0 <= low <= high, got {given!r}")
        # sys.maxsize is a usual way to say that there is no limit; one more would overflow.
        ranges[name] = (low, None if high == INT64_MAX else high)
    return ranges
