"""Micro- and macro-F1 at many thresholds at once, over all labels and by groups, from a stream of batches of logits.

Integer counts are all that is kept of a batch, so memory does not grow with the number of batches. The scores are those
of scikit-learn's ``f1_score(targets, probabilities > threshold, average=..., zero_division=0)`` on all samples.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..input_values import as_integer
from ..score_groups import TOTAL, label_count_ranges, label_masks
from ..thresholding import Activation, FloatArray, float32_below, probabilities
from .streaming import StreamingMetric, checked_targets
from .thresholds import PAPER_THRESHOLDS, as_grid

Scores = dict[str, dict[str, float]]
IntArray = NDArray[np.int64]

# Share of a chunk from which on it takes less time to look at all of it than to gather what is predicted.
_MANY = 1 / 3


class BestThreshold(NamedTuple):
    """The best threshold of a grid, by micro-F1.

    at_edge: whether it is the lowest or the highest of the grid, so that a better one may lie outside.
    """

    threshold: float
    micro: float
    at_edge: bool


class ThresholdedF1(StreamingMetric):
    """Counts of true and of predicted labels at every threshold, and the F1 scores that follow.

    A label is predicted where its probability is greater than the threshold. The probability is the float32
    ``torch.sigmoid(logits.float())``, also for logits of 16 bits; it is compared with the float64 threshold, and
    neither is rounded. On a CPU, the last bit of torch's sigmoid may depend on an element's place in the tensor.

    Args:
        num_labels: C.
        thresholds: ``"paper"`` or ``"full"``, as for :func:`~fused_balanced_loss.metrics.threshold_grid`, or T numbers
            in [0, 1], in any order (any finite numbers without activation).
        label_groups: names and masks, bool [C], of labels that are scored by themselves, too; they may overlap. What
            ``LabelStatistics.frequency_groups(...)`` returns can be given. ``"total"`` stands for all labels.
        instance_groups: names and ranges (low, high) of the number of labels of an instance, both included; high None
            stands for no limit. These instances are scored by themselves, too; groups may overlap.
        activation: ``"none"`` compares the logits themselves, such as an SVM's decisions, in float32.

    Attributes:
        thresholds: float64 [T].
        label_groups: names of the label groups, ``"total"`` first.
        instance_groups: names of the G instance groups.

    The counts are int64 [2, 1 + G, C, T + 1] on the device of the logits.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
    """

    def __init__(
        self,
        num_labels: int,
        thresholds: Any = PAPER_THRESHOLDS,
        label_groups: Mapping[str, Any] | Any = None,
        instance_groups: Mapping[str, tuple[int, int | None]] | None = None,
        *,
        activation: Activation = "sigmoid",
    ) -> None:
        self.num_labels = as_integer("num_labels", num_labels, at_least=1)
        self.activation = activation
        self.thresholds = as_grid(thresholds, activation)
        self.num_samples = 0
        self._sorted, self._place = np.unique(self.thresholds, return_inverse=True)
        self._masks = label_masks(label_groups, self.num_labels)
        self._ranges = label_count_ranges(instance_groups)
        self.label_groups, self.instance_groups = tuple(self._masks), tuple(self._ranges)
        # [0] counts true labels and [1] predicted ones: of all instances and of each group of them, by label and by the
        # number of thresholds that the probability is above. Only true labels are counted where it is above none.
        shape = 2, 1 + len(self._ranges), self.num_labels, len(self._sorted) + 1
        self._sums = {"counts": torch.zeros(shape, dtype=torch.int64)}

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
        sizes = sparse.crow.diff()
        members = [(low <= sizes) & (sizes <= high) for low, high in self._ranges.values()]
        boundaries = torch.from_numpy(float32_below(self._sorted)).to(logits.device)
        rows, offsets, width = sparse.rows, sparse.crow.cpu(), self._counts.shape[-1]
        for start, chunk in probabilities(logits, self.activation):
            here = slice(int(offsets[start]), int(offsets[start + len(chunk)]))
            row, col = rows[here] - start, sparse.col[here]
            true = row, col * width + torch.bucketize(chunk[row, col], boundaries)
            for counts, (row, at) in zip(self._counts, (true, _predicted(chunk, boundaries)), strict=True):
                for part, places in zip(counts, [at, *(at[member[start + row]] for member in members)], strict=True):
                    part.view(-1).index_add_(0, places.view(-1), torch.ones_like(places).view(-1))
        # A chunk of which much is predicted counts these, too.
        self._counts[1, ..., 0] = 0
        self.num_samples += len(logits)

    def micro(self, group: str = TOTAL, instances: str | None = None) -> FloatArray:
        """float64 [T], micro-F1 at each threshold over a group of labels; 0/0 counts as 0.

        Args:
            group: one of ``label_groups``.
            instances: one of ``instance_groups``; None takes all instances.

        Raises:
            ValueError, RuntimeError: for an unknown group, and before any sample was counted.
        """
        true, predicted, hits = (part.sum(0) for part in self._select(group, instances))
        return _f1(true, predicted, hits)[self._place]

    def macro(self, group: str = TOTAL, instances: str | None = None) -> FloatArray:
        """float64 [T], the mean of the labels' F1 at each threshold.

        The F1 of a label is 0 where it is 0/0, and the mean over a group without labels is 0. Arguments and errors are
        those of :meth:`micro`.
        """
        f1 = _f1(*self._select(group, instances))
        if not len(f1):
            return np.zeros(len(self.thresholds))
        # scikit-learn sums along contiguous memory, too; any other order would give other last bits.
        return np.ascontiguousarray(f1.T).mean(1)[self._place]

    def best(self, group: str = TOTAL, instances: str | None = None) -> BestThreshold:
        """The threshold of the best micro-F1 over a group of labels; of equals the lowest.

        Arguments and errors are those of :meth:`micro`.
        """
        micro = self.micro(group, instances)
        threshold = self.thresholds[micro == micro.max()].min()
        at_edge = len(self._sorted) > 1 and threshold in (self._sorted[0], self._sorted[-1])
        return BestThreshold(float(threshold), float(micro.max()), bool(at_edge))

    def best_by_label(self, *, min_support: int = 1) -> FloatArray:
        """float64 [C], the threshold of each label's own best F1; choose them on validation data.

        Args:
            min_support: labels with fewer true samples, and labels whose F1 is 0 at every threshold, take the threshold
                of the best micro-F1 over all labels. A label of few samples has its best threshold by chance.

        Of equal ones it is the nearest to that threshold.
        """
        min_support = as_integer("min_support", min_support, at_least=0)
        true, predicted, hits = self._select(TOTAL, None)
        f1 = _f1(true, predicted, hits)
        common = self.best().threshold
        best = f1.max(1, keepdims=True)
        distance = np.where(f1 == best, np.abs(self._sorted - common), np.inf)
        chosen: FloatArray = self._sorted[distance.argmin(1)]
        return np.where((true[:, 0] >= min_support) & (best[:, 0] > 0), chosen, common)

    def best_by_group(self) -> FloatArray:
        """float64 [C], for each label the threshold of the best micro-F1 of its group; choose them on validation data.

        A label in several groups takes the first of them. Labels in none, and those of a group whose micro-F1 is 0 at
        every threshold, take the best threshold of all labels.
        """
        chosen = np.full(self.num_labels, self.best().threshold)
        for name in reversed(self.label_groups[1:]):
            best = self.best(name)
            if best.micro > 0:
                chosen[self._masks[name].numpy()] = best.threshold
        return chosen

    def scores(self, threshold: Any) -> Scores:
        """Micro- and macro-F1 by label group: ``{"total": {"micro": ..., "macro": ...}}``.

        Args:
            threshold: one of the thresholds, or [C], one of them for each label.
        """
        return self._scores_of(threshold, {name: (name, None) for name in self.label_groups})

    def instance_scores(self, threshold: Any) -> Scores:
        """Micro- and macro-F1 over all labels by instance group; ``threshold`` as for :meth:`scores`."""
        return self._scores_of(threshold, {name: (TOTAL, name) for name in self.instance_groups})

    def label_counts(self, threshold: Any) -> tuple[IntArray, IntArray, IntArray]:
        """Number of samples, int64 [C] each, that carry a label, that it is predicted for, and that do both.

        ``threshold`` as for :meth:`scores`.
        """
        self._check_counted()
        true, predicted = self._counts[:, 0].cpu().flip(-1).cumsum(-1).flip(-1).numpy()
        at = 1 + self._column(threshold)[:, None]
        parts = true[:, :1], np.take_along_axis(predicted, at, 1), np.take_along_axis(true, at, 1)
        return parts[0][:, 0], parts[1][:, 0], parts[2][:, 0]

    def _scores_of(self, threshold: Any, wanted: dict[str, tuple[str, str | None]]) -> Scores:
        column, scores = self._column(threshold), {}
        for name, (group, instances) in wanted.items():
            true, predicted, hits = self._select(group, instances)
            at = column[self._masks[group].numpy()][:, None]
            parts = (true, np.take_along_axis(predicted, at, 1), np.take_along_axis(hits, at, 1))
            micro, macro = _f1(*(part.sum(0) for part in parts))[0], _f1(*parts)[:, 0]
            scores[name] = {"micro": float(micro), "macro": float(macro.mean()) if len(macro) else 0.0}
        return scores

    def _column(self, threshold: Any) -> NDArray[np.int64]:
        """int64 [C], where each label's threshold stands among the sorted ones."""
        given = np.asarray(threshold)
        if given.shape not in ((), (self.num_labels,)):
            raise ValueError(
                f"threshold: expected one number, or {self.num_labels}, one for each label, got shape "
                f"{list(given.shape)}"
            )
        known = np.isin(given, self._sorted)
        if not known.all():
            wrong = threshold if given.ndim == 0 else given[~known][0]
            raise ValueError(f"threshold: expected one of {self.thresholds.tolist()}, got {wrong!r}")
        return np.broadcast_to(np.searchsorted(self._sorted, given), (self.num_labels,))

    def _settings(self) -> dict[str, Any]:
        return {
            "thresholds": self.thresholds.tolist(),
            "instance_groups": dict(self._ranges),
            "activation": self.activation,
        }

    def _refuse(self, name: str, key: str, given: Any) -> None:
        if isinstance(given, Tensor) and given.dim() == 4 and given.shape[2] != self.num_labels:
            raise ValueError(f"{name}: expected {self.num_labels} labels, got {given.shape[2]}")
        super()._refuse(name, key, given)

    @property
    def _counts(self) -> Tensor:
        return self._sums["counts"]

    def _select(self, group: str, instances: str | None) -> tuple[FloatArray, FloatArray, FloatArray]:
        """True labels [labels, 1], predicted labels and hits [labels, U] at each sorted threshold."""
        self._check_counted()
        if group not in self._masks:
            raise ValueError(f"group: expected one of {list(self._masks)}, got {group!r}")
        if instances is not None and instances not in self._ranges:
            raise ValueError(f"instances: expected one of {list(self._ranges)}, got {instances!r}")
        part = 0 if instances is None else 1 + self.instance_groups.index(instances)
        counts = self._counts[:, part].cpu()[:, self._masks[group]]
        true, predicted = counts.flip(-1).cumsum(-1).flip(-1).double().numpy()
        return true[:, :1], predicted[:, 1:], true[:, 1:]


def _predicted(probability: Tensor, boundaries: Tensor) -> tuple[Tensor, Tensor]:
    """Row and place among the counts of each predicted label of a chunk [rows, C]; of all labels where it is many."""
    num_labels, width = probability.shape[1], len(boundaries) + 1
    above = probability > boundaries[0]
    if int(above.sum()) < _MANY * above.numel():
        row, col = torch.nonzero(above, as_tuple=True)
        return row, col * width + torch.bucketize(probability[row, col], boundaries)
    # Label by label, because the counts of a label lie side by side.
    reached = torch.bucketize(probability.t().contiguous(), boundaries)
    first = torch.arange(0, num_labels * width, width, device=probability.device)
    row = torch.arange(len(probability), device=probability.device).expand(num_labels, -1)
    return row, reached.add_(first[:, None])


def _f1(true: FloatArray, predicted: FloatArray, hits: FloatArray) -> FloatArray:
    """2 * hits / (true + predicted), with 0 for 0/0."""
    return np.divide(2 * hits, true + predicted, out=np.zeros_like(hits), where=true + predicted > 0)
