"""Mean average precision: of each sample's ranking of the labels, and of each label's ranking of the samples."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..input_values import as_integer, as_number
from ..targets import SparseTargets
from ..thresholding import CHUNK, FloatArray, chunks
from .streaming import StreamingMetric, checked_targets


class SampleAveragePrecision(StreamingMetric):
    """The mean over the samples of the average precision of their labels, exact.

    For each label that a sample carries: the share of carried ones among the labels whose logit is not lower. It is the
    ``label_ranking_average_precision_score`` of scikit-learn but for samples without labels, which are left out here.

    Args:
        num_labels: C.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
    """

    def __init__(self, num_labels: int) -> None:
        self.num_labels = as_integer("num_labels", num_labels, at_least=1)
        self.num_samples = 0
        self._sums = {
            "precision": torch.zeros((), dtype=torch.float64),
            "num_with_labels": torch.zeros((), dtype=torch.int64),
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
        self._move("cpu")
        for start, chunk in chunks(logits):
            found = _average_precision(chunk, sparse[start : start + len(chunk)])
            self._sums["precision"] += found.double().sum().cpu()
            self._sums["num_with_labels"] += len(found)
        self.num_samples += len(logits)

    def value(self) -> float:
        """The mean over the samples with labels; 0 where there are none.

        Raises:
            RuntimeError: before any sample was counted.
        """
        self._check_counted()
        return float(self._sums["precision"] / self._sums["num_with_labels"].clamp(min=1))

    def _settings(self) -> dict[str, Any]:
        return {"num_labels": self.num_labels}


def _average_precision(logits: Tensor, targets: SparseTargets) -> Tensor:
    """[rows with labels], the average precision of each row of logits [rows, C]."""
    sizes = targets.crow.diff()
    with_labels = sizes > 0
    logits = logits if logits.dtype == torch.float64 else logits.float()
    most = int(sizes.max()) if len(sizes) else 0
    if not most:
        return logits.new_empty(0)
    # The logits of a row's own labels, ascending, and infinities behind them.
    own = logits.new_full((len(logits), most), torch.inf)
    rows = targets.rows
    own[rows, torch.arange(len(rows), device=rows.device) - targets.crow[rows]] = logits[rows, targets.col]
    own = own.sort(1).values
    # How many of its own labels each label of a row reaches; from that, how many labels reach each of its own.
    reached = torch.searchsorted(own, logits.contiguous(), right=True)
    torch.minimum(reached, sizes[:, None], out=reached)
    counts = torch.zeros(len(logits), most + 1, dtype=torch.int64, device=logits.device)
    counts.scatter_add_(1, reached, torch.ones_like(reached))
    reach_own = counts.flip(1).cumsum(1).flip(1)[:, 1:]
    own_reach_own = sizes[:, None] - torch.searchsorted(own, own)
    counted = torch.arange(most, device=logits.device) < sizes[:, None]
    precision = torch.where(counted, own_reach_own / reach_own.clamp(min=1), 0.0)
    return precision.sum(1)[with_labels] / sizes[with_labels]


class LabelAveragePrecision(StreamingMetric):
    """Average precision of each label over all samples, from counts in bins of the logit.

    It is the ``average_precision_score`` of scikit-learn with the logits of a bin taken as equal. What that may be off
    by follows from the counts: :meth:`bounds`.

    Args:
        num_labels: C.
        num_bins: B, at least 3: one below ``low``, one from ``high`` on, the others of one width between them. The
            counts take 16 * C * B bytes.
        low, high: logits.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
    """

    def __init__(self, num_labels: int, num_bins: int = 256, *, low: float = -12.0, high: float = 12.0) -> None:
        self.num_labels = as_integer("num_labels", num_labels, at_least=1)
        self.num_bins = as_integer("num_bins", num_bins, at_least=3)
        self.low, self.high = as_number("low", low), as_number("high", high)
        if not self.low < self.high:
            raise ValueError(f"high: expected more than low = {self.low}, got {self.high}")
        self.num_samples = 0
        # [0] counts the samples of each bin, [1] those that carry the label.
        self._sums = {"counts": torch.zeros(2, self.num_labels, self.num_bins, dtype=torch.int64)}

    @torch.no_grad()
    def update(self, logits: Tensor, targets: Any) -> None:
        """Counts a batch, or raises and counts none of it; arguments and errors are those of
        :meth:`SampleAveragePrecision.update`."""
        sparse = checked_targets(logits, targets, self.num_labels)
        self._move(logits.device)
        every, carrying = self._sums["counts"].view(2, -1)
        first = torch.arange(0, self.num_labels * self.num_bins, self.num_bins, device=logits.device)
        scale = (self.num_bins - 2) / (self.high - self.low)
        for start, chunk in chunks(logits):
            # Label by label [C, rows], because the counts of a label lie side by side.
            bins = chunk.t().to(torch.float32, copy=True, memory_format=torch.contiguous_format)
            bins.sub_(self.low).mul_(scale).floor_().clamp_(-1, self.num_bins - 2).add_(1)
            places = bins.long().add_(first[:, None])
            part = sparse[start : start + len(chunk)]
            for counts, at in ((every, places.view(-1)), (carrying, places[part.col, part.rows])):
                counts.index_add_(0, at, torch.ones_like(at))
        self.num_samples += len(logits)

    def by_label(self) -> FloatArray:
        """float64 [C]; NaN for labels that no sample carries.

        Raises:
            RuntimeError: before any sample was counted.
        """
        return torch.cat([_binned_precision(counts) for counts in self._parts()]).numpy()

    def macro(self) -> float:
        """The mean over the labels that some sample carries; 0 where there are none. Errors as for :meth:`by_label`."""
        return _mean(torch.from_numpy(self.by_label()))

    def micro(self) -> float:
        """Over all pairs of a sample and a label; 0 where no sample carries a label. Errors as for :meth:`by_label`."""
        self._check_counted()
        return _mean(_binned_precision(self._sums["counts"].cpu().sum(1, keepdim=True)))

    def bounds(self) -> tuple[float, float]:
        """Between which numbers the exact :meth:`macro` lies, whatever the order within the bins.

        Errors as for :meth:`by_label`.
        """
        low, high = (torch.cat(parts) for parts in zip(*map(_bounds, self._parts()), strict=True))
        return _mean(low), _mean(high)

    def _parts(self) -> list[Tensor]:
        """Counts [2, labels, B] of some labels each, so that what is computed from them takes little memory."""
        self._check_counted()
        parts = self._sums["counts"].split(max(1, CHUNK // (8 * self.num_bins)), dim=1)
        return [part.cpu() for part in parts]

    def _settings(self) -> dict[str, Any]:
        return {"num_labels": self.num_labels, "num_bins": self.num_bins, "low": self.low, "high": self.high}


def _from_the_top(counts: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """float64 [C, B] from the highest bin on: all samples and those with the label, in a bin and in those before it."""
    every, true = counts.flip(-1).double()
    return every, true, every.cumsum(-1) - every, true.cumsum(-1) - true


def _binned_precision(counts: Tensor) -> Tensor:
    """float64 [C] from counts [2, C, B]."""
    every, true, every_before, true_before = _from_the_top(counts)
    precision = (true_before + true) / (every_before + every).clamp(min=1)
    return (true * precision).sum(-1) / true.sum(-1)


def _bounds(counts: Tensor) -> tuple[Tensor, Tensor]:
    """The lowest and the highest average precision, float64 [C] each, from counts [2, C, B]."""
    every, true, every_before, true_before = _from_the_top(counts)
    other = every_before - true_before + every - true
    # Those with the label come first in their bin and have equal logits.
    high = true * (true_before + true) / (every_before + true).clamp(min=1)
    # They come last, one by one: the sum of (t + i) / (t + o + i), with the sum of 1 / (t + o + i) by digamma.
    start = true_before + other + 1
    low = true - other * (torch.digamma(start + true) - torch.digamma(start))
    support = true.sum(-1)
    return low.sum(-1) / support, high.sum(-1) / support


def _mean(values: Tensor) -> float:
    """Of those that are numbers; 0 where there are none."""
    values = values[~values.isnan()]
    return float(values.mean()) if len(values) else 0.0
