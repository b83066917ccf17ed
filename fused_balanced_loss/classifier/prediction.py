"""Predictions of a linear classifier, a chunk of labels at a time: the logits never exist whole."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ..targets import SparseTargets, row_offsets
from .label_chunks import default_chunk_size
from .products import without_gaps


class TopLabels(NamedTuple):
    """The labels with the largest logits of each sample.

    logits: [N, k], descending. labels: int64 [N, k].
    """

    logits: Tensor
    labels: Tensor


class LabelsAbove(NamedTuple):
    """The labels that pass a threshold.

    labels: :class:`SparseTargets` [N, C]. logits: [nnz], in the order of ``labels.col``.
    """

    labels: SparseTargets
    logits: Tensor


@torch.no_grad()
def predict_topk(
    features: Tensor, weight: Tensor, bias: Tensor | None, k: int, *, chunk_size: int | None = None
) -> TopLabels:
    """The ``k`` labels with the largest logits of each sample.

    Args:
        features: [N, D]. weight: [C, D]. bias: [C], or None.
        k: at least 1 and at most C.
        chunk_size: labels of a chunk; None: as for :func:`linear_balanced_loss`. Memory is O(N (k + chunk_size)).

    Raises:
        ValueError: naming the argument, what was expected and what came.
    """
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= len(weight):
        raise ValueError(f"k: expected an integer in [1, {len(weight)}], the number of labels, got {k!r}")
    best: TopLabels | None = None
    for start, logits in logit_chunks(features, weight, bias, chunk_size):
        new, index = logits.topk(min(k, logits.shape[1]), dim=1)
        best = merge_top(best, TopLabels(new, index + start), k)
    assert best is not None
    return best


def merge_top(one: TopLabels | None, other: TopLabels, k: int) -> TopLabels:
    """The ``k`` largest of both; fewer where there are not as many."""
    if one is None:
        return other
    logits, labels = torch.cat([one.logits, other.logits], 1), torch.cat([one.labels, other.labels], 1)
    logits, order = logits.topk(min(k, logits.shape[1]), dim=1)
    return TopLabels(logits, labels.gather(1, order))


@torch.no_grad()
def predict_above(
    features: Tensor, weight: Tensor, bias: Tensor | None, threshold: float, *, chunk_size: int | None = None
) -> LabelsAbove:
    """The labels whose probability, the sigmoid of the raw logit in float32, is above ``threshold``.

    One threshold for all labels is the paper's rule (Huang et al., EMNLP 2021, section 4). Arguments and errors as for
    :func:`predict_topk`; memory is that of the result and of a chunk.
    """
    if isinstance(threshold, bool) or not isinstance(threshold, (int, float)) or not 0 <= threshold <= 1:
        raise ValueError(f"threshold: expected a probability in [0, 1], got {threshold!r}")
    rows, labels, logits = [], [], []
    for start, chunk in logit_chunks(features, weight, bias, chunk_size):
        row, column = torch.nonzero(torch.sigmoid(chunk.float()) > threshold, as_tuple=True)
        rows.append(row)
        labels.append(column + start)
        logits.append(chunk[row, column])
    return by_row(torch.cat(rows), torch.cat(labels), torch.cat(logits), len(features), len(weight))


def by_row(rows: Tensor, labels: Tensor, logits: Tensor, num_rows: int, num_labels: int) -> LabelsAbove:
    """Entries [nnz] in the order of their rows; within a row they stay in the order that they have."""
    order = torch.argsort(rows, stable=True)
    crow = row_offsets(torch.bincount(rows, minlength=num_rows))
    return LabelsAbove(SparseTargets(crow, labels[order], num_labels, check=False), logits[order])


def logit_chunks(
    features: Tensor, weight: Tensor, bias: Tensor | None, chunk_size: int | None
) -> Iterator[tuple[int, Tensor]]:
    """First label and logits [N, chunk] of each chunk; the next overwrites them."""
    if not isinstance(features, Tensor) or features.dim() != 2 or features.shape[1] != weight.shape[1]:
        got = list(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise ValueError(f"features: expected [N, {weight.shape[1]}], got {got}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias: expected [{len(weight)}], as the weight's rows, got shape {list(bias.shape)}")
    if chunk_size is not None and (not isinstance(chunk_size, int) or chunk_size < 1):
        raise ValueError(f"chunk_size: expected an integer of at least 1 or None, got {chunk_size!r}")
    device = features.device
    dtype = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else weight.dtype
    features = without_gaps(features.to(dtype))
    size = min(
        len(weight), chunk_size or default_chunk_size(len(features), features.shape[1], dtype, device, update=False)
    )
    buffer = features.new_empty(len(features), size)
    for start in range(0, len(weight), size):
        w = without_gaps(weight[start : start + size].to(dtype))
        logits = buffer[:, : len(w)]
        if bias is None:
            torch.mm(features, w.t(), out=logits)
        else:
            torch.addmm(bias[start : start + size].to(dtype), features, w.t(), out=logits)
        yield start, logits
