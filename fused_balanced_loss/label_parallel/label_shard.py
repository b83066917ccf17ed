"""What the ranks tell each other in one call of the classifier's loss."""

from __future__ import annotations

from collections.abc import Sequence

import torch.distributed as dist
from torch import Tensor, nn

from ..arguments import Batch
from .collectives import check_batch, gathered_logits, loss_of_shards, replicated_features
from .update import ShardUpdate


class LabelShard:
    """This rank's labels of a classifier, as ``classifier.functional.run`` takes a shard.

    Args:
        first_label: the label of the first row of this rank's weight.
        sizes: how many labels each rank has.
        group: the ranks.
        step: the call's update in place, which is told the loss of all ranks.
        check: whether the ranks compare their batches.
    """

    def __init__(
        self,
        first_label: int,
        sizes: Sequence[int],
        group: dist.ProcessGroup,
        step: ShardUpdate | None = None,
        *,
        check: bool = False,
    ) -> None:
        self.first_label = first_label
        self.num_labels = sum(sizes)
        self._sizes, self._group, self._step, self._check = sizes, group, step, check

    def check_batch(self, features: Tensor, batch: Batch) -> None:
        """Raises ValueError on all ranks unless they have the same features [N, D] and the same batch."""
        if self._check and len(features):
            check_batch(features, batch.targets, batch.sample_weight, batch.label_mask, self._group)

    def logits(self, features: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Logits [N, C] of all labels, which all ranks differentiate alike."""
        own = nn.functional.linear(self.replicated(features).to(features.dtype), weight, bias)
        return gathered_logits(own, list(self._sizes), self._group)

    def replicated(self, features: Tensor) -> Tensor:
        """The features in the compute dtype, whose gradient becomes the sum over the ranks."""
        return replicated_features(features, self._group)

    def total(self, loss: Tensor) -> Tensor:
        """The sum of the ranks' losses."""
        total = loss_of_shards(loss, self._group)
        if self._step is not None:
            self._step.loss = total.detach()
        return total
