"""Micro- and macro-F1 at many thresholds at once, over all labels and by groups, from a stream of batches of logits.

Integer counts are all that is kept of a batch, so memory does not grow with the number of batches. The scores are those
of scikit-learn's ``f1_score(targets, probabilities > threshold, average=..., zero_division=0)`` on all samples.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .input_values import as_integer
from .score_groups import TOTAL, label_count_ranges, label_masks
from .targets import SparseTargets, as_sparse_targets
from .thresholding import Activation, FloatArray, as_thresholds, check_logits, float32_below, probabilities

__all__ = ["PAPER_THRESHOLDS", "TOTAL", "Activation", "Scores", "ThresholdedF1", "predict_labels"]

Scores = dict[str, dict[str, float]]

PAPER_THRESHOLDS: FloatArray = np.arange(40, 61) / 100
"""0.40 to 0.60 by 0.01 (Huang et al., 2021, section 4.2)."""
PAPER_THRESHOLDS.setflags(write=False)


class ThresholdedF1:
    """Counts of true and of predicted labels at every threshold, and the F1 scores that follow.

    A label is predicted where its probability is greater than the threshold. The probability is the float32
    ``torch.sigmoid(logits.float())``, also for logits of 16 bits; it is compared with the float64 threshold, and
    neither is rounded. On a CPU, the last bit of torch's sigmoid may depend on an element's place in the tensor.

    Args:
        num_labels: C.
        thresholds: T numbers in [0, 1], in any order (any finite numbers without activation).
        label_groups: names and masks, bool [C], of labels that are scored by themselves, too; they may overlap. What
            ``LabelStatistics.frequency_groups(...)`` returns can be given. ``"total"`` stands for all labels.
        instance_groups: names and ranges (low, high) of the number of labels of an instance, both included; high None
            stands for no limit. These instances are scored by themselves, too; groups may overlap.
        activation: ``"none"`` compares the logits themselves, such as an SVM's decisions, in float32.

    Attributes:
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
        self.thresholds = as_thresholds(thresholds, activation)
        self.num_samples = 0
        self._sorted, self._place = np.unique(self.thresholds, return_inverse=True)
        self._masks = label_masks(label_groups, self.num_labels)
        self._ranges = label_count_ranges(instance_groups)
        self.label_groups, self.instance_groups = tuple(self._masks), tuple(self._ranges)
        # [0] counts true labels and [1] predicted ones: of all instances and of each group of them, by label and by the
        # number of thresholds that the probability is above. Only true labels are counted where it is above none.
        self._counts = torch.zeros(2, 1 + len(self._ranges), self.num_labels, len(self._sorted) + 1, dtype=torch.int64)

    @torch.no_grad()
    def update(self, logits: Tensor, targets: Any) -> None:
        """Counts a batch, or raises and counts none of it.

        Args:
            logits: [n, C] of a floating dtype, on any device; n may be 0.
            targets: [n, C], in any form that ``LabelStatistics.from_targets`` takes.

        Raises:
            TypeError, ValueError: for other shapes, dtypes or values, such as a NaN logit or a label id out of range.
        """
        check_logits(logits, self.num_labels)
        sparse = as_sparse_targets(targets, self.num_labels)
        if len(sparse) != len(logits):
            raise ValueError(f"targets: expected {len(logits)} rows, those of logits, got {len(sparse)}")
        sparse = sparse.to(logits.device)
        self._counts = self._counts.to(logits.device)
        sizes = sparse.crow.diff()
        members = [(low <= sizes) & (sizes <= high) for low, high in self._ranges.values()]
        boundaries = torch.from_numpy(float32_below(self._sorted)).to(logits.device)
        rows, offsets = sparse.rows, sparse.crow.cpu()
        for start, chunk in probabilities(logits, self.activation):
            here = slice(int(offsets[start]), int(offsets[start + len(chunk)]))
            true = rows[here] - start, sparse.col[here]
            predicted = torch.nonzero(chunk > boundaries[0], as_tuple=True)
            for counts, (row, col) in zip(self._counts, (true, predicted), strict=True):
                at = col * counts.shape[-1] + torch.bucketize(chunk[row, col], boundaries)
                for part, places in zip(counts, [at, *(at[member[start + row]] for member in members)], strict=True):
                    part.view(-1).index_add_(0, places, torch.ones_like(places))
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

    def best(self) -> tuple[float, float]:
        """The threshold of the best micro-F1 over all labels, and that micro-F1; of equals the lowest threshold."""
        micro = self.micro()
        lowest = self.thresholds[micro == micro.max()].min()
        return float(lowest), float(micro.max())

    def scores(self, threshold: float) -> Scores:
        """Micro- and macro-F1 at one of the thresholds, by label group: ``{"total": {"micro": ..., "macro": ...}}``."""
        return {name: self._scores(threshold, name) for name in self.label_groups}

    def instance_scores(self, threshold: float) -> Scores:
        """Micro- and macro-F1 over all labels at one of the thresholds, by instance group."""
        return {name: self._scores(threshold, TOTAL, name) for name in self.instance_groups}

    def _scores(self, threshold: float, *which: str) -> dict[str, float]:
        found = np.flatnonzero(self.thresholds == threshold)
        if not len(found):
            raise ValueError(f"threshold: expected one of {self.thresholds.tolist()}, got {threshold!r}")
        return {"micro": float(self.micro(*which)[found[0]]), "macro": float(self.macro(*which)[found[0]])}

    def merge(self, other: ThresholdedF1) -> None:
        """Adds what ``other`` has counted, such as another process's share of the samples.

        Raises:
            TypeError, ValueError: unless both have the same labels, thresholds and instance groups.
        """
        if not isinstance(other, ThresholdedF1):
            raise TypeError(f"other: expected a ThresholdedF1, got {type(other).__name__}")
        self._add("other", other.state_dict())

    def all_reduce(self, process_group: Any = None) -> None:
        """Sums the counts over all processes of torch.distributed. All of them call it once, after the last update."""
        # The counts of a process that has seen no sample are still on the CPU.
        nccl = torch.distributed.get_backend(process_group) == "nccl"
        self._counts = self._counts.to("cuda" if nccl else "cpu")
        number = torch.tensor([self.num_samples], device=self._counts.device)
        for counts in (self._counts, number):
            torch.distributed.all_reduce(counts, group=process_group)
        self.num_samples = int(number)

    def state_dict(self) -> dict[str, Any]:
        """The counts so far, on the CPU, and the settings that they were made with."""
        return {
            "counts": self._counts.cpu().clone(),
            "num_samples": self.num_samples,
            "thresholds": self.thresholds.tolist(),
            "instance_groups": dict(self._ranges),
            "activation": self.activation,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Replaces the counts by those that :meth:`state_dict` gave.

        Raises:
            ValueError: unless they were made with the same labels, thresholds and instance groups.
        """
        self._add("state", state, onto_zero=True)

    def reset(self) -> None:
        """Sets all counts to zero."""
        self._counts.zero_()
        self.num_samples = 0

    def _add(self, name: str, state: Mapping[str, Any], *, onto_zero: bool = False) -> None:
        own = self.state_dict()
        if not isinstance(state, Mapping) or set(state) != set(own):
            raise ValueError(f"{name}: expected what ThresholdedF1.state_dict gives, with {sorted(own)}")
        for key in ("thresholds", "instance_groups", "activation"):
            if state[key] != own[key]:
                raise ValueError(f"{name}: expected the {key} {own[key]}, got {state[key]}")
        if state["counts"].shape != own["counts"].shape:
            raise ValueError(f"{name}: expected {self.num_labels} labels, got {state['counts'].shape[2]}")
        if onto_zero:
            self.reset()
        self._counts += state["counts"].to(self._counts.device)
        self.num_samples += state["num_samples"]

    def _select(self, group: str, instances: str | None) -> tuple[FloatArray, FloatArray, FloatArray]:
        """True labels [labels, 1], predicted labels and hits [labels, U] at each sorted threshold."""
        if not self.num_samples:
            raise RuntimeError("no sample was counted yet: call update first")
        if group not in self._masks:
            raise ValueError(f"group: expected one of {list(self._masks)}, got {group!r}")
        if instances is not None and instances not in self._ranges:
            raise ValueError(f"instances: expected one of {list(self._ranges)}, got {instances!r}")
        part = 0 if instances is None else 1 + self.instance_groups.index(instances)
        counts = self._counts[:, part].cpu()[:, self._masks[group]]
        true, predicted = counts.flip(-1).cumsum(-1).flip(-1).double().numpy()
        return true[:, :1], predicted[:, 1:], true[:, 1:]


@torch.no_grad()
def predict_labels(
    logits: Tensor | Iterable[Tensor], threshold: float, *, activation: Activation = "sigmoid"
) -> SparseTargets:
    """The predicted labels, by the comparison that :class:`ThresholdedF1` makes.

    Args:
        logits: [N, C], or an iterable of batches [n, C] of it.
        threshold: the probability above which a label is predicted.
        activation: ``"none"`` compares the logits themselves with the threshold.

    Returns:
        SparseTargets [N, C] on the CPU.

    Raises:
        TypeError, ValueError: for other logits, or no batch at all.
    """
    (threshold,) = as_thresholds([threshold], activation)
    least = float(float32_below(np.array([threshold]))[0])
    lengths, columns, num_labels = [], [], None
    for batch in [logits] if isinstance(logits, Tensor) else logits:
        num_labels = check_logits(batch, num_labels)
        for _, chunk in probabilities(batch, activation):
            predicted = chunk > least
            lengths.append(predicted.sum(1).cpu())
            columns.append(torch.nonzero(predicted)[:, 1].cpu())
    if num_labels is None:
        raise ValueError("logits: expected at least one batch, got none")
    crow = torch.cat((torch.zeros(1, dtype=torch.int64), *lengths)).cumsum(0)
    return SparseTargets(crow, torch.cat((torch.empty(0, dtype=torch.int64), *columns)), num_labels, check=False)


def _f1(true: FloatArray, predicted: FloatArray, hits: FloatArray) -> FloatArray:
    """2 * hits / (true + predicted), with 0 for 0/0."""
    return np.divide(2 * hits, true + predicted, out=np.zeros_like(hits), where=true + predicted > 0)
