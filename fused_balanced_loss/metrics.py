"""Micro- and macro-F1 at many thresholds at once, over all labels and by groups, from a stream of batches of logits.

Nothing is kept of a batch but integer counts, so memory does not grow with the number of batches. The figures are
those of scikit-learn's ``f1_score(targets, probabilities > threshold, average=..., zero_division=0)`` on the whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .input_values import as_integer, as_tensor
from .target_forms import as_sparse_targets
from .targets import SparseTargets

FloatArray = NDArray[np.float64]
Scores = dict[str, dict[str, float]]
Activation = Literal["sigmoid", "none"]

PAPER_THRESHOLDS: FloatArray = np.arange(40, 61) / 100
"""0.40 to 0.60 by 0.01 (Huang et al., 2021, section 4.2)."""
PAPER_THRESHOLDS.setflags(write=False)

TOTAL = "total"
# Rows are scored so many elements at a time, which bounds the memory of an update, whatever the batch.
_CHUNK = 2**20


class ThresholdedF1:
    """Counts of true and of predicted labels at every threshold, and the F1 scores that follow.

    A label is predicted where its probability is greater than the threshold: the float32
    ``torch.sigmoid(logits.float())`` against the float64 threshold, neither of them rounded. (Not the 16-bit sigmoid of
    16-bit logits. On a CPU, torch's sigmoid may differ by a bit with an element's place in the tensor.)

    Args:
        num_labels: C.
        thresholds: T numbers in [0, 1], in any order (any finite numbers without activation).
        label_groups: names and masks, bool [C], of the labels to be scored also by themselves; may overlap.
            ``LabelStatistics.frequency_groups(...)`` is taken as it is. ``"total"`` stands for all labels.
        instance_groups: names and ranges (low, high) of the number of labels of an instance, both included, high None
            for no limit: the instances to be scored also by themselves; may overlap.
        activation: ``"none"`` compares the logits themselves, such as an SVM's decisions, in float32.

    The counts are int64 [2, S, C, T + 1] on the device of the logits, where S is 1 without instance groups and at most
    one more than twice their number with them.

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
        if isinstance(num_labels, bool) or not isinstance(num_labels, (int, np.integer)) or num_labels < 1:
            raise ValueError(f"num_labels: expected an integer >= 1, got {num_labels!r}")
        if activation not in ("sigmoid", "none"):
            raise ValueError(f"activation: expected 'sigmoid' or 'none', got {activation!r}")
        self.num_labels = int(num_labels)
        self.activation = activation
        self.thresholds = _thresholds(thresholds, activation)
        self.num_samples = 0
        self._sorted, self._place = np.unique(self.thresholds, return_inverse=True)
        self._label_groups = _label_masks(label_groups, self.num_labels)
        self._ranges = _ranges(instance_groups)
        # An instance's stratum is the number of edges that its number of labels has reached.
        edges = {low for low, _ in self._ranges.values()} | {
            high + 1 for _, high in self._ranges.values() if high is not None
        }
        self._edges = torch.tensor(sorted(edges), dtype=torch.int64)
        # [0] counts the true labels and [1] the predicted ones, by the number of thresholds that their probability is
        # above. What is above none matters for the true labels alone.
        self._counts = torch.zeros(2, len(edges) + 1, self.num_labels, len(self._sorted) + 1, dtype=torch.int64)

    @property
    def label_groups(self) -> tuple[str, ...]:
        """Names of the label groups, ``"total"`` first."""
        return tuple(self._label_groups)

    @property
    def instance_groups(self) -> tuple[str, ...]:
        """Names of the instance groups."""
        return tuple(self._ranges)

    @torch.no_grad()
    def update(self, logits: Tensor, targets: Any) -> None:
        """Counts a batch; one that is refused is not counted at all.

        Args:
            logits: [n, C] of a floating dtype, on any device; n may be 0.
            targets: [n, C] as SparseTargets, or in any other form that ``LabelStatistics.from_targets`` takes.

        Raises:
            TypeError, ValueError: for other shapes or values, NaN logits among them.
        """
        _check_logits(logits, self.num_labels)
        sparse = as_sparse_targets(targets, self.num_labels)
        if len(sparse) != len(logits):
            raise ValueError(f"targets: expected {len(logits)} rows, those of logits, got {len(sparse)}")
        sparse = sparse.to(logits.device)
        self._counts = self._counts.to(logits.device)
        strata = torch.bucketize(sparse.crow.diff(), self._edges.to(logits.device), right=True)
        boundaries = torch.from_numpy(_float32_below(self._sorted)).to(logits.device)
        rows, offsets = sparse.rows, sparse.crow.cpu()
        for start, probabilities in _probabilities(logits, self.activation):
            here = slice(int(offsets[start]), int(offsets[start + len(probabilities)]))
            true = rows[here] - start, sparse.col[here]
            for counts, (row, col) in zip(
                self._counts, (true, torch.nonzero(probabilities > boundaries[0], as_tuple=True)), strict=True
            ):
                bucket = torch.bucketize(probabilities[row, col], boundaries)
                at = (strata[start + row] * self.num_labels + col) * counts.shape[-1] + bucket
                counts.view(-1).index_add_(0, at, torch.ones_like(at))
        self.num_samples += len(logits)

    def micro(self, group: str = TOTAL, instances: str | None = None) -> FloatArray:
        """float64 [T], micro-F1 at each threshold over a group of labels and, by choice, of instances; 0 for 0/0.

        Raises:
            ValueError: for an unknown group.
            RuntimeError: before any sample was counted.
        """
        true, predicted, hits = (part.sum(0) for part in self._select(group, instances))
        return _f1(true, predicted, hits)[self._place]

    def macro(self, group: str = TOTAL, instances: str | None = None) -> FloatArray:
        """float64 [T], the mean of the labels' F1 at each threshold; a label's 0/0, and a group without labels, are 0.

        Raises:
            ValueError, RuntimeError: as :meth:`micro`.
        """
        f1 = _f1(*self._select(group, instances))
        if not len(f1):
            return np.zeros(len(self.thresholds))
        # Summed along contiguous memory, as scikit-learn does: the same bits.
        return np.ascontiguousarray(f1.T).mean(1)[self._place]

    def best(self) -> tuple[float, float]:
        """The threshold of the best micro-F1 over all labels, the lowest of equals, and that micro-F1."""
        micro = self.micro()
        lowest = self.thresholds[micro == micro.max()].min()
        return float(lowest), float(micro.max())

    def scores(self, threshold: float) -> Scores:
        """Micro- and macro-F1 at one of the thresholds by label group: ``{"total": {"micro": ..., "macro": ...}}``."""
        at = self._index(threshold)
        return {
            name: {"micro": float(self.micro(name)[at]), "macro": float(self.macro(name)[at])}
            for name in self._label_groups
        }

    def instance_scores(self, threshold: float) -> Scores:
        """Micro- and macro-F1 over all labels at one of the thresholds, by instance group."""
        at = self._index(threshold)
        return {
            name: {
                "micro": float(self.micro(instances=name)[at]),
                "macro": float(self.macro(instances=name)[at]),
            }
            for name in self._ranges
        }

    def merge(self, other: ThresholdedF1) -> None:
        """Adds what ``other`` has counted, such as another process's share of the samples.

        Raises:
            ValueError: unless both have the same labels, thresholds and instance groups.
        """
        if not isinstance(other, ThresholdedF1):
            raise TypeError(f"other: expected a ThresholdedF1, got {type(other).__name__}")
        self._add("other", other.state_dict())

    def all_reduce(self, process_group: Any = None) -> None:
        """Sums the counts over all processes of torch.distributed; to be called once, by all, after the last update."""
        # A process without a single sample has its counts on the CPU still.
        nccl = torch.distributed.get_backend(process_group) == "nccl"
        self._counts = self._counts.to("cuda" if nccl else "cpu")
        number = torch.tensor([self.num_samples], device=self._counts.device)
        for counts in (self._counts, number):
            torch.distributed.all_reduce(counts, group=process_group)
        self.num_samples = int(number)

    def state_dict(self) -> dict[str, Any]:
        """What was counted so far, on the CPU, and what it was counted by."""
        return {
            "counts": self._counts.cpu().clone(),
            "num_samples": self.num_samples,
            "thresholds": self.thresholds.tolist(),
            "edges": self._edges.tolist(),
            "activation": self.activation,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from what :meth:`state_dict` gave; what was counted here is dropped.

        Raises:
            ValueError: unless it was counted with the same labels, thresholds and instance groups.
        """
        self._check_state("state", state)
        self.reset()
        self._add("state", state)

    def reset(self) -> None:
        """Forgets all samples."""
        self._counts.zero_()
        self.num_samples = 0

    def _add(self, name: str, state: Mapping[str, Any]) -> None:
        self._check_state(name, state)
        self._counts += state["counts"].to(self._counts.device)
        self.num_samples += state["num_samples"]

    def _check_state(self, name: str, state: Mapping[str, Any]) -> None:
        own = self.state_dict()
        if not isinstance(state, Mapping) or set(state) != set(own):
            raise ValueError(f"{name}: expected what ThresholdedF1.state_dict gives, with {sorted(own)}")
        for key in ("thresholds", "edges", "activation"):
            if state[key] != own[key]:
                what = "edges of instance groups" if key == "edges" else key
                raise ValueError(f"{name}: expected the {what} {own[key]}, got {state[key]}")
        if state["counts"].shape != own["counts"].shape:
            raise ValueError(f"{name}: expected {self.num_labels} labels, got {state['counts'].shape[2]}")

    def _select(self, group: str, instances: str | None) -> tuple[FloatArray, FloatArray, FloatArray]:
        """True labels [labels, 1], predicted labels and hits [labels, U] at each sorted threshold."""
        if not self.num_samples:
            raise RuntimeError("no sample was counted yet: call update first")
        if group not in self._label_groups:
            raise ValueError(f"group: expected one of {list(self._label_groups)}, got {group!r}")
        if instances is not None and instances not in self._ranges:
            raise ValueError(f"instances: expected one of {list(self._ranges)}, got {instances!r}")
        strata = torch.ones(self._counts.shape[1], dtype=torch.bool)
        if instances is not None:
            low, high = self._ranges[instances]
            reached = torch.cat((torch.tensor([-1]), self._edges))
            strata = (reached >= low) & (reached <= (reached.max() if high is None else high))
        counts = self._counts.cpu()[:, strata].sum(1)[:, self._label_groups[group]]
        true, predicted = counts.flip(-1).cumsum(-1).flip(-1).double().numpy()
        return true[:, :1], predicted[:, 1:], true[:, 1:]

    def _index(self, threshold: float) -> int:
        found = np.flatnonzero(self.thresholds == threshold)
        if not len(found):
            raise ValueError(f"threshold: expected one of {self.thresholds.tolist()}, got {threshold!r}")
        return int(found[0])


@torch.no_grad()
def predict_labels(
    logits: Tensor | Iterable[Tensor], threshold: float, *, activation: Activation = "sigmoid"
) -> SparseTargets:
    """The predicted labels, by the comparison that :class:`ThresholdedF1` makes.

    Args:
        logits: [N, C], or batches [n, C] of it, such as a generator gives.
        threshold: the probability above which a label is predicted.

    Returns:
        SparseTargets [N, C] on the CPU.

    Raises:
        TypeError, ValueError: for other logits, or no batch at all.
    """
    (threshold,) = _thresholds([threshold], activation)
    least = float(_float32_below(np.array([threshold]))[0])
    lengths, columns, num_labels = [], [], None
    for batch in [logits] if isinstance(logits, Tensor) else logits:
        num_labels = _check_logits(batch, num_labels)
        for _, probabilities in _probabilities(batch, activation):
            predicted = probabilities > least
            lengths.append(predicted.sum(1).cpu())
            columns.append(torch.nonzero(predicted)[:, 1].cpu())
    if num_labels is None:
        raise ValueError("logits: expected at least one batch, got none")
    crow = torch.cat((torch.zeros(1, dtype=torch.int64), *lengths)).cumsum(0)
    return SparseTargets(crow, torch.cat((torch.empty(0, dtype=torch.int64), *columns)), num_labels, check=False)


def _check_logits(logits: Tensor, num_labels: int | None) -> int:
    """The number of labels."""
    if not isinstance(logits, Tensor) or not logits.is_floating_point():
        got = logits.dtype if isinstance(logits, Tensor) else type(logits).__name__
        raise TypeError(f"logits: expected a floating-point tensor, got {got}")
    if logits.dim() != 2 or logits.shape[1] != (num_labels or max(logits.shape[1], 1)):
        raise ValueError(f"logits: expected [n, {num_labels or 'C >= 1'}], got shape {list(logits.shape)}")
    for start, chunk in _chunks(logits):
        # The maximum is NaN where any is, and takes no memory.
        if bool(chunk.amax().isnan()):
            row, label = torch.nonzero(chunk.isnan())[0].tolist()
            raise ValueError(f"logits: expected numbers, got NaN in row {start + row} for label {label}")
    return logits.shape[1]


def _chunks(logits: Tensor) -> Iterator[tuple[int, Tensor]]:
    rows = max(1, _CHUNK // logits.shape[1])
    for start in range(0, len(logits), rows):
        yield start, logits[start : start + rows]


def _probabilities(logits: Tensor, activation: Activation) -> Iterator[tuple[int, Tensor]]:
    """Chunks of rows in float32, each with its first row's number."""
    for start, chunk in _chunks(logits):
        yield start, torch.sigmoid(chunk.float()) if activation == "sigmoid" else chunk.float()


def _float32_below(thresholds: FloatArray) -> NDArray[np.float32]:
    """The largest float32 numbers not above the thresholds: a float32 is greater than both or neither."""
    rounded = thresholds.astype(np.float32)
    return np.where(rounded > thresholds, np.nextafter(rounded, np.float32(-np.inf)), rounded)


def _f1(true: FloatArray, predicted: FloatArray, hits: FloatArray) -> FloatArray:
    return np.divide(2 * hits, true + predicted, out=np.zeros_like(hits), where=true + predicted > 0)


def _thresholds(thresholds: Any, activation: Activation) -> FloatArray:
    try:
        values = np.array(thresholds, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise TypeError(f"thresholds: expected numbers, got {thresholds!r}") from error
    if values.ndim != 1 or not len(values):
        raise ValueError(f"thresholds: expected one dimension [T] with T >= 1, got shape {list(values.shape)}")
    low, high = (0.0, 1.0) if activation == "sigmoid" else (-np.finfo(np.float32).max, np.finfo(np.float32).max)
    wrong = ~((values >= low) & (values <= high))
    if wrong.any():
        raise ValueError(f"thresholds: expected numbers in [{low:g}, {high:g}], got {values[wrong][0]}")
    values.setflags(write=False)
    return values


def _label_masks(groups: Any, num_labels: int) -> dict[str, Tensor]:
    masks = {TOTAL: torch.ones(num_labels, dtype=torch.bool)}
    if groups is None:
        return masks
    groups = groups._asdict() if hasattr(groups, "_asdict") else groups
    if not isinstance(groups, Mapping):
        raise TypeError(f"label_groups: expected a mapping of names to masks, got {type(groups).__name__}")
    for name, given in groups.items():
        mask = as_tensor(f"label_groups[{name!r}]", given).cpu()
        if mask.dtype != torch.bool or mask.shape != (num_labels,):
            raise ValueError(
                f"label_groups[{name!r}]: expected bool [{num_labels}], got {mask.dtype} of shape {list(mask.shape)}"
            )
        if name == TOTAL and not bool(mask.all()):
            raise ValueError(f"label_groups[{name!r}]: expected all labels, got {int(mask.sum())} of {num_labels}")
        masks[name] = mask.clone()
    return masks


def _ranges(groups: Any) -> dict[str, tuple[int, int | None]]:
    if groups is None:
        return {}
    if not isinstance(groups, Mapping):
        raise TypeError(f"instance_groups: expected a mapping of names to (low, high), got {type(groups).__name__}")
    ranges = {}
    for name, given in groups.items():
        try:
            low, high = given
            low, high = int(low), None if high is None else int(high)
        except (TypeError, ValueError) as error:
            raise TypeError(f"instance_groups[{name!r}]: expected (low, high), got {given!r}") from error
        if low < 0 or (high is not None and high < low):
            raise ValueError(f"instance_groups[{name!r}]: expected 0 <= low <= high, got {given!r}")
        ranges[name] = (low, high)
    return ranges
