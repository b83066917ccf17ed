"""Layers for Hugging Face's ``kernels``: modules without state, whose ``forward`` replaces that of another module.

``kernels.kernelize`` gives the other module this ``forward``, so that ``self`` is the other module: the attributes that
are annotated here must be there. The rules of the Hub allow no constructor, no further method, and no class variable
but ``has_backward`` and ``can_torch_compile``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..arguments import Reduction
from ..functional import balanced_loss
from ..label_statistics import LabelStatistics
from ..spec import LossSpec
from ..targets import SparseTargets


class BalancedLoss(nn.Module):
    """Any loss of the family, for a module that has ``spec``, ``statistics`` and ``reduction``."""

    has_backward: bool = True
    can_torch_compile: bool = True

    spec: LossSpec
    statistics: LabelStatistics | None
    reduction: Reduction

    def forward(self, logits: Tensor, targets: Tensor | SparseTargets) -> Tensor:
        """Loss of logits [..., C], as :func:`~fused_balanced_loss.balanced_loss` gives it."""
        return balanced_loss(logits, targets, self.spec, self.statistics, reduction=self.reduction)


class BCEWithLogitsLoss(nn.Module):
    """Replaces the ``forward`` of :class:`torch.nn.BCEWithLogitsLoss`, with the same result for targets in [0, 1]."""

    has_backward: bool = True
    can_torch_compile: bool = True

    weight: Tensor | None
    pos_weight: Tensor | None
    reduction: Reduction

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Loss of ``input`` [..., C] with ``target`` of the same shape.

        What the fused loss does not have, weights for each element and inputs without labels, takes PyTorch's operator.
        """
        weights = [weight for weight in (self.weight, self.pos_weight) if weight is not None]
        if input.dim() < 2 or not input.numel() or any(list(w.shape) != [input.shape[-1]] for w in weights):
            return nn.functional.binary_cross_entropy_with_logits(
                input, target, self.weight, reduction=self.reduction, pos_weight=self.pos_weight
            )
        loss: Tensor = balanced_loss(
            input, target, LossSpec(), weight=self.weight, pos_weight=self.pos_weight, reduction=self.reduction
        )
        return loss.to(torch.promote_types(input.dtype, target.dtype))
