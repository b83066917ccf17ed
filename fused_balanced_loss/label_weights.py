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

    def factors(self) -> tuple[Tensor | None, Tensor | None]:
        """weight and pos_weight, each float64 [C] or None; on the CPU where they are kept, else on their device."""
        return self._factor(self.weight), self._factor(self.pos_weight)

    def _factor(self, value: Weight | None) -> Tensor | None:
        if value is None:
            return None
        if isinstance(value, Tensor):
            # Only where the result is kept may it wait for the device. It is a copy: the caller may change the tensor.
            where = value.device if self.cache is None else torch.device("cpu")
            exact = value.detach().to(where, torch.float64, copy=True)
            # Kernels read no negative bit.
            exact = exact if torch.compiler.is_compiling() else exact.resolve_neg()
            return exact.expand(self.num_labels)
        return torch.full((self.num_labels,), value, dtype=torch.float64, device="cpu")
