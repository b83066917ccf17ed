"""A result against float64 numbers and how far from them it may be."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Bounds(NamedTuple):
    """What a result should be, how far off it may be, and where nothing can be said; float64 and bool, of its shape."""

    value: Tensor
    margin: Tensor
    free: Tensor


def disagreement(ours: Tensor, expected: Bounds) -> str | None:
    """Where and how far a result is out of its bounds; None where it is not."""
    if ours.shape != expected.value.shape:
        return f"has shape {list(ours.shape)} for {list(expected.value.shape)}"
    got, value = ours.double(), expected.value
    # Beyond the largest number of the dtype a result may be infinite.
    large = 0.98 * torch.finfo(ours.dtype).max
    wrong = ~((got - value).abs() <= expected.margin)
    wrong &= ~(torch.isnan(got) & torch.isnan(value))
    wrong &= ~(got == value)
    wrong &= ~((got.abs() >= large) & (value.abs() >= large) & (got.sign() == value.sign()))
    wrong &= ~expected.free
    if not bool(wrong.any()):
        return None
    where = torch.nonzero(wrong)[0].tolist() if ours.dim() else []
    at = tuple(where)
    return (
        f"is {got[at].item():.9g} for {value[at].item():.9g} at {where} "
        f"(off by {abs((got[at] - value[at]).item()):.3g}, "
        f"allowed {expected.margin[at].item():.3g}; {int(wrong.sum())} of {ours.numel()} wrong)"
    )
