"""Label constants in several copies, so that a GPU reads them 16 bytes at a time wherever a row of logits begins."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import device as devices
from .constants import MOST_KEPT, constants_cache
from .kept import keep
from .problem import LabelConstants, Problem

# Copies of more bytes would push the logits out of a GPU's cache; then one copy is read 4 bytes at a time.
MOST_COPIED = 1 << 24
# What bias, inverse_frequency and the weights are beyond the last label, where a tile may reach.
_FILL = (0.0, 1.0, 0.0, 0.0)


def aligned_copies(problem: Problem, key: tuple[object, ...], copies_key: tuple[Any, ...]) -> LabelConstants | None:
    """Copies [number, stride] of each constant: copy[h][k] = constant[h + k]; the bias times ``bias_unit``.

    They are kept beside the constants, which lie in their cache under ``key``. copies_key: number, stride and
    bias_unit, and then ``key``. None unless the problem's constants are those of the cache: a chunk of the labels is
    another at each call.
    """
    cache = constants_cache(problem.statistics, problem.label_weights)
    if cache is None or cache.get(key) is not problem.labels:
        return None
    kept: tuple[LabelConstants, LabelConstants] | None = cache.get(copies_key)
    # Constants that were made anew have copies of their own.
    if kept is not None and kept[0] is problem.labels:
        return kept[1]
    if devices.is_capturing(problem.logits.device):
        return None
    number, stride, bias_unit, *_ = copies_key
    with torch.inference_mode(False), torch.no_grad():
        parts = [
            None if part is None else _copies(part, number, stride, fill, unit)
            for part, fill, unit in zip(problem.labels, _FILL, (bias_unit, 1.0, 1.0, 1.0), strict=True)
        ]
    made = LabelConstants(*parts)
    keep(cache, copies_key, (problem.labels, made), MOST_KEPT, spare=key)
    return made


def _copies(part: Tensor, number: int, stride: int, fill: float, unit: float) -> Tensor:
    # The copies are made on the CPU, because a transfer from there is finished when the call returns, for all streams.
    padded = torch.full((stride + number,), fill, dtype=part.dtype)
    padded[: part.shape[0]] = part.cpu() * unit
    return padded.as_strided((number, stride), (1, 1)).contiguous().to(part.device)
