"""What the ranks tell each other in one call of the classifier's loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..arguments import Batch
from ..backends.problem import compute_dtype
from ..classifier.prediction import LabelsAbove, TopLabels, by_row, predict_above, predict_topk
from ..optim.base import ClassifierUpdate
from ..optim.rule import GradientConsumer
from .collectives import averaged, check_batch, exchange, gather, gather_columns, summed


class LabelShard:
    """This rank's labels of a classifier in one call: the ``Shard`` of ``classifier.functional.run``, and its update.

    Args:
        first_label: the label of the first row of this rank's weight.
        sizes: how many labels each rank of ``group`` has.
        update: changes this rank's rows in place. A step is skipped by all ranks or by none; its gradients are averaged
            over ``data_group``, the ranks that hold the same labels and have batches of their own.
        check: whether the ranks compare their batches.
    """

    def __init__(
        self,
        first_label: int,
        sizes: Sequence[int],
        group: dist.ProcessGroup,
        update: ClassifierUpdate | None = None,
        data_group: dist.ProcessGroup | None = None,
        *,
        check: bool = False,
    ) -> None:
        self.first_label, self.num_labels = first_label, sum(sizes)
        self._sizes, self._group, self._check = list(sizes), group, check
        self._update, self._data_group = update, data_group

    def check_batch(self, features: Tensor, batch: Batch) -> None:
        if self._check and len(features):
            check_batch(features, batch.targets, batch.sample_weight, batch.label_mask, self._group)

    def logits(self, features: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        own = nn.functional.linear(self.replicated(features).to(features.dtype), weight, bias)
        first, last = self.first_label, self.first_label + len(weight)
        return exchange(
            own, lambda part: gather_columns(part, self._sizes, self._group), lambda upstream: upstream[:, first:last]
        )

    def replicated(self, features: Tensor) -> Tensor:
        """The features in the compute dtype, whose gradient becomes the sum over the ranks.

        Features in half precision are summed in float32, too: the part of one shard is smaller than the sum, and half
        precision would round it, or in float16 flush it to zero, before it is added.
        """
        dtype, group = features.dtype, self._group
        return exchange(
            features, lambda own: own.to(compute_dtype(dtype)), lambda upstream: summed(upstream, group).to(dtype)
        )

    def total(self, loss: Tensor) -> Tensor:
        total = exchange(loss, lambda own: summed(own, self._group))
        self._loss = total.detach()
        return total

    def expect_backward(self, node: Any) -> None:
        assert self._update is not None
        self._update.expect_backward(node)

    def step(self, weight: Tensor, bias: Tensor | None, factor: Tensor, finite: Tensor) -> GradientConsumer:
        assert self._update is not None
        finite, group = finite & torch.isfinite(self._loss), self._data_group
        if group is None:
            return self._update.step(weight, bias, factor, finite)
        everywhere = finite.to(torch.uint8)
        dist.all_reduce(everywhere, dist.ReduceOp.MIN, group=group)
        take_gradients = self._update.step(weight, bias, torch.ones_like(factor), everywhere.bool())

        def take_averaged(rows: slice, d_weight: Tensor, d_bias: Tensor) -> None:
            # The ranks' factors differ where their batches do.
            take_gradients(rows, averaged(d_weight * factor, group), averaged(d_bias * factor, group))

        return take_averaged

    @torch.no_grad()
    def predict_topk(
        self, features: Tensor, weight: Tensor, bias: Tensor | None, k: int, chunk_size: int | None
    ) -> TopLabels:
        """As :func:`predict_topk`, of all labels, on every rank."""
        if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= self.num_labels:
            raise ValueError(f"k: expected an integer in [1, {self.num_labels}], the number of labels, got {k!r}")
        own = predict_topk(features, *_some(weight, bias), max(1, min(k, len(weight))), chunk_size=chunk_size)
        widths = [min(k, size) for size in self._sizes]
        logits = gather_columns(own.logits, widths, self._group)
        labels = gather_columns(own.labels + self.first_label, widths, self._group)
        best, order = logits.topk(k)
        return TopLabels(best, labels.gather(1, order))

    @torch.no_grad()
    def predict_above(
        self, features: Tensor, weight: Tensor, bias: Tensor | None, threshold: float, chunk_size: int | None
    ) -> LabelsAbove:
        """As :func:`predict_above`, of all labels, on every rank."""
        own = predict_above(features, *_some(weight, bias), threshold, chunk_size=chunk_size)
        counts = torch.stack(gather(own.labels.crow.diff() * min(1, len(weight)), self._group))
        widths = counts.sum(1).tolist()
        col = gather_columns(own.labels.col[None] + self.first_label, widths, self._group)[0]
        logits = gather_columns(own.logits[None], widths, self._group)[0]
        rows = torch.arange(len(features), device=col.device).repeat(len(widths)).repeat_interleave(counts.view(-1))
        return by_row(rows, col, logits, len(features), self.num_labels)


def _some(weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """A rank without labels goes the same way, so that it raises the same errors; what comes of it is dropped."""
    return (weight, bias) if len(weight) else (weight.new_zeros(1, weight.shape[1]), None)
