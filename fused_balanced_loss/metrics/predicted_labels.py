"""The labels whose probability is above a threshold."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ..targets import SparseTargets
from ..thresholding import Activation, as_thresholds, check_logits, float32_below, probabilities


@torch.no_grad()
def predict_labels(
    logits: Tensor | Iterable[Tensor], threshold: Any, *, activation: Activation = "sigmoid"
) -> SparseTargets:
    """The predicted labels, by the comparison that :class:`~fused_balanced_loss.metrics.ThresholdedF1` makes.

    Args:
        logits: [N, C], or an iterable of batches [n, C] of it.
        threshold: the probability above which a label is predicted; one for all labels, or [C], one for each.
        activation: ``"none"`` compares the logits themselves with the threshold.

    Returns:
        SparseTargets [N, C] on the CPU.

    Raises:
        TypeError, ValueError: for other logits, no batch at all, or thresholds of another number of labels.
    """
    one_for_all = not getattr(threshold, "shape", None) and not isinstance(threshold, (list, tuple))
    least = torch.from_numpy(float32_below(as_thresholds([threshold] if one_for_all else threshold, activation)))
    lengths, columns, num_labels = [], [], None
    for batch in [logits] if isinstance(logits, Tensor) else logits:
        num_labels = check_logits(batch, num_labels)
        if not one_for_all and len(least) != num_labels:
            raise ValueError(f"threshold: expected one number, or {num_labels}, one for each label, got {len(least)}")
        least = least.to(batch.device)
        for _, chunk in probabilities(batch, activation):
            predicted = chunk > least
            lengths.append(predicted.sum(1).cpu())
            columns.append(torch.nonzero(predicted)[:, 1].cpu())
    if num_labels is None:
        raise ValueError("logits: expected at least one batch, got none")
    crow = torch.cat((torch.zeros(1, dtype=torch.int64), *lengths)).cumsum(0)
    return SparseTargets(crow, torch.cat((torch.empty(0, dtype=torch.int64), *columns)), num_labels, check=False)
