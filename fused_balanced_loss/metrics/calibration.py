"""How far probabilities are from the frequencies that they announce."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..input_values import as_integer
from ..thresholding import float32_below, probabilities
from .streaming import StreamingMetric, checked_targets


class ReliabilityBins(NamedTuple):
    """Bins of the probability.

    pairs: int64 [B], the number of pairs. probability, frequency: float64 [B], their mean probability, and the share of
    them whose sample carries the label; 0 for an empty bin.
    """

    pairs: Tensor
    probability: Tensor
    frequency: Tensor


class CalibrationError(StreamingMetric):
    """Expected calibration error of all pairs of a sample and a label (Naeini et al., AAAI 2015).

    The pairs are put into bins of equal width by their probability, the float32 sigmoid of the logit. The error is the
    mean over the pairs of the distance between their bin's mean probability and share of carried labels. With a large
    label set nearly all pairs are negatives near 0, and so is the error: look at :meth:`bins` too.

    Args:
        num_labels: C.
        num_bins: B, at least 1; bin b takes probabilities in (b / B, (b + 1) / B], the first one 0 too.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
    """

    def __init__(self, num_labels: int, num_bins: int = 15) -> None:
        self.num_labels = as_integer("num_labels", num_labels, at_least=1)
        self.num_bins = as_integer("num_bins", num_bins, at_least=1)
        self.num_samples = 0
        self._sums = {
            "pairs": torch.zeros(self.num_bins, dtype=torch.int64),
            "carried": torch.zeros(self.num_bins, dtype=torch.int64),
            "probability": torch.zeros(self.num_bins, dtype=torch.float64),
        }

    @torch.no_grad()
    def update(self, logits: Tensor, targets: Any) -> None:
        """Counts a batch, or raises and counts none of it.

        Args:
            logits: [n, C] of a floating dtype, on any device; n may be 0.
            targets: [n, C], in any form that ``LabelStatistics.from_targets`` takes.

        Raises:
            TypeError, ValueError: for other shapes, dtypes or values, such as a NaN logit or a label id out of range.
        """
        sparse = checked_targets(logits, targets, self.num_labels)
        self._move(logits.device)
        inner = np.arange(1, self.num_bins) / self.num_bins
        boundaries = torch.from_numpy(float32_below(inner)).to(logits.device)
        for start, chunk in probabilities(logits, "sigmoid"):
            part = sparse[start : start + len(chunk)]
            bins = torch.bucketize(chunk.contiguous(), boundaries).view(-1)
            self._sums["pairs"] += torch.bincount(bins, minlength=self.num_bins)
            self._sums["probability"].index_add_(0, bins, chunk.reshape(-1).double())
            at = part.rows * self.num_labels + part.col
            self._sums["carried"] += torch.bincount(bins[at], minlength=self.num_bins)
        self.num_samples += len(logits)

    def bins(self) -> ReliabilityBins:
        """What a reliability diagram shows.

        Raises:
            RuntimeError: before any sample was counted.
        """
        self._check_counted()
        pairs, carried, total = (self._sums[name].cpu() for name in ("pairs", "carried", "probability"))
        some = pairs.clamp(min=1)
        return ReliabilityBins(pairs, total / some, carried.double() / some)

    def value(self) -> float:
        """The expected calibration error; errors as for :meth:`bins`."""
        found = self.bins()
        distance = (found.probability - found.frequency).abs()
        return float((found.pairs * distance).sum() / found.pairs.sum())

    def _settings(self) -> dict[str, Any]:
        return {"num_labels": self.num_labels, "num_bins": self.num_bins}
