"""The caller's weights of the labels: ``weight`` and ``pos_weight``, as BCEWithLogitsLoss names them."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from .label_statistics import LabelStatistics

Weight: TypeAlias = Tensor | float


class LabelWeights(NamedTuple):
    """Weights of the labels, checked, with what is made of them.

    weight: [C] or a number; multiplies the loss of a label. None for 1.
    pos_weight: the same for the part of target 1 alone.
    num_labels: C.
    statistics: with which ``cache`` is made.
    cache: what the implementations have made of weights and statistics, by their own keys; None where the weights may
        change without a trace, so that nothing of them may be kept.
    """

    weight: Weight | None
    pos_weight: Weight | None
    num_labels: int
    statistics: LabelStatistics | None
    cache: dict[Any, Any] | None

    def factors(self, device: torch.device) -> tuple[Tensor | None, Tensor | None]:
        """weight and pos_weight, each float64 [C] or None, on ``device``; copies, for the caller may change tensors."""
        return self._factor(self.weight, device), self._factor(self.pos_weight, device)

    def _factor(self, value: Weight | None, device: torch.device) -> Tensor | None:
        if value is None:
            return None
        if not isinstance(value, Tensor):
            return torch.full((self.num_labels,), value, dtype=torch.float64, device=device)
        exact = value.detach().to(device, torch.float64, copy=True)
        # Kernels read no negative bit.
        exact = exact if torch.compiler.is_compiling() else exact.resolve_neg()
        return exact.expand(self.num_labels)
