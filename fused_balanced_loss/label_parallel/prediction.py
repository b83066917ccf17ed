"""Predictions of a classifier whose labels lie on several ranks; every rank gets those of the whole."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from ..classifier import prediction
from ..classifier.prediction import LabelsAbove, TopLabels
from ..targets import SparseTargets
from .collectives import gather, gather_columns


@torch.no_grad()
def predict_topk(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    k: int,
    sizes: Sequence[int],
    group: dist.ProcessGroup,
    chunk_size: int | None,
) -> TopLabels:
    """As :func:`prediction.predict_topk`, of this rank's rows of weight and bias; ``sizes``: how many each rank has."""
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= sum(sizes):
        raise ValueError(f"k: expected an integer in [1, {sum(sizes)}], the number of labels, got {k!r}")
    rank = dist.get_rank(group)
    own = prediction.predict_topk(
        features,
        _at_least_one(weight),
        bias if sizes[rank] else None,
        max(1, min(k, sizes[rank])),
        chunk_size=chunk_size,
    )
    if not sizes[rank]:
        own = TopLabels(own.logits[:, :0], own.labels[:, :0])
    widths = [min(k, size) for size in sizes]
    logits = torch.cat(gather_columns(own.logits, widths, group), 1)
    labels = torch.cat(gather_columns(own.labels + sum(sizes[:rank]), widths, group), 1)
    best, order = logits.topk(k)
    return TopLabels(best, labels.gather(1, order))


@torch.no_grad()
def predict_above(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    threshold: float,
    sizes: Sequence[int],
    group: dist.ProcessGroup,
    chunk_size: int | None,
) -> LabelsAbove:
    """As :func:`prediction.predict_above`; ``weight``, ``bias`` and ``sizes`` as for :func:`predict_topk`."""
    rank = dist.get_rank(group)
    own = prediction.predict_above(
        features, _at_least_one(weight), bias if sizes[rank] else None, threshold, chunk_size=chunk_size
    )
    crow, col, logits = own.labels.crow, own.labels.col, own.logits
    if not sizes[rank]:
        crow, col, logits = torch.zeros_like(crow), col[:0], logits[:0]
    counts = torch.stack(gather(crow.diff(), group))
    widths = counts.sum(1).tolist()
    col = torch.cat(gather_columns(col[None] + sum(sizes[:rank]), widths, group), 1)[0]
    logits = torch.cat(gather_columns(logits[None], widths, group), 1)[0]
    rows = torch.arange(len(features), device=col.device).repeat(len(sizes))
    # Stable: a row's labels stay in the order of the ranks.
    order = torch.argsort(rows.repeat_interleave(counts.view(-1)), stable=True)
    crow = torch.nn.functional.pad(counts.sum(0).cumsum(0), (1, 0))
    return LabelsAbove(SparseTargets(crow, col[order], sum(sizes), check=False), logits[order])


def _at_least_one(weight: Tensor) -> Tensor:
    """A rank without labels goes the same way, so that it raises the same errors; what comes of it is dropped."""
    return weight if len(weight) else weight.new_zeros(1, weight.shape[1])
