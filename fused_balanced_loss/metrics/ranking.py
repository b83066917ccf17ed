"""Metrics of the k best labels of each sample, as extreme classification reports them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..input_values import as_integer, as_number, as_tensor, describe
from ..label_statistics import LabelStatistics
from ..targets import SparseTargets, as_sparse_targets
from .streaming import StreamingMetric, checked_targets


def label_propensities(statistics: LabelStatistics, a: float = 0.55, b: float = 1.5) -> Tensor:
    """float64 [C], the propensity 1 / (1 + c * (n + b)**-a) with c = (log(N_train) - 1) * (b + 1)**a.

    It models the probability that a label that applies was in fact given (Jain, Prabhu and Varma, KDD 2016, section
    4.2), for labels with n of N_train training samples. The paper has a = 0.55, b = 1.5 for most data, 0.5 and 0.4 for
    Wikipedia, 0.6 and 2.6 for Amazon.

    Raises:
        TypeError, ValueError: for anything but numbers > 0, and for fewer than 3 training samples.
    """
    a, b = as_number("a", a), as_number("b", b)
    for name, value in (("a", a), ("b", b)):
        if value <= 0:
            raise ValueError(f"{name}: expected a number > 0, got {value}")
    if not isinstance(statistics, LabelStatistics):
        raise TypeError(f"statistics: expected LabelStatistics, got {type(statistics).__name__}")
    if statistics.num_samples < 3:
        raise ValueError(f"statistics: expected at least 3 samples, got {statistics.num_samples}")
    c = (np.log(statistics.num_samples) - 1) * (b + 1) ** a
    return 1 / (1 + c * (statistics.counts.double() + b) ** -a)


_DEFAULT_KS = (1, 3, 5)


class RankingMetrics(StreamingMetric):
    """Precision@k, nDCG@k and propensity-scored precision@k.

    - P@k: how many of a sample's k best labels it carries, over k; the mean over the samples.
    - nDCG@k: the sum of 1 / log2(1 + rank) over those it carries, over the largest such sum that its number of labels
      allows; the mean over the samples. A sample without labels has 0, as in scikit-learn's ``ndcg_score``.
    - PSP@k (Jain, Prabhu and Varma, KDD 2016): P@k with each label that is carried counted 1 / propensity times. As the
      Extreme Classification Repository does, the sum over the samples is divided by the largest possible one, that of
      the k rarest of each sample's own labels; so 1 is reached.

    Among equal logits at the k-th place it is left open which come first.

    Args:
        num_labels: C.
        ks: the numbers k, each once, in [1, C]; None for those of 1, 3 and 5 that are not above C.
        propensities: [C], for PSP@k; see :func:`label_propensities`.

    Attributes:
        ks: the numbers k.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
    """

    def __init__(self, num_labels: int, ks: Iterable[int] | None = None, *, propensities: Any = None) -> None:
        self.num_labels = as_integer("num_labels", num_labels, at_least=1)
        if ks is None:
            ks = [k for k in _DEFAULT_KS if k <= self.num_labels]
        if not isinstance(ks, Iterable):
            raise TypeError(f"ks: expected integers, such as (1, 3, 5), got {ks!r}")
        self.ks = tuple(as_integer("ks", k, at_least=1) for k in ks)
        if not self.ks or len(set(self.ks)) < len(self.ks) or max(self.ks) > self.num_labels:
            raise ValueError(f"ks: expected different integers in [1, {self.num_labels}], got {list(self.ks)}")
        self.num_samples = 0
        self._at = torch.tensor(self.ks) - 1
        self._propensities = None if propensities is None else _checked_propensities(propensities, self.num_labels)
        number = len(self.ks)
        self._sums = {
            "hits": torch.zeros(number, dtype=torch.int64),
            "gain": torch.zeros(number, dtype=torch.float64),
        }
        if self._propensities is not None:
            self._sums |= {name: torch.zeros(number, dtype=torch.float64) for name in ("scored", "most_scored")}

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
        self._count(logits.topk(max(self.ks), dim=1).indices.cpu(), sparse)

    @torch.no_grad()
    def update_labels(self, labels: Any, targets: Any) -> None:
        """As :meth:`update`, from each sample's best labels.

        Args:
            labels: an integer tensor [n, K] with K >= max(ks), the best label first, each once in a row; or what
                ``predict_topk`` gives.
            targets: as for :meth:`update`.
        """
        labels = getattr(labels, "labels", labels)
        most = max(self.ks)
        if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.dtype == torch.bool:
            raise TypeError(f"labels: expected an integer tensor of label ids, got {describe(labels)}")
        if labels.dim() != 2 or labels.shape[1] < most:
            raise ValueError(f"labels: expected [n, at least {most}], got shape {list(labels.shape)}")
        sparse = as_sparse_targets(targets, self.num_labels)
        if len(sparse) != len(labels):
            raise ValueError(f"targets: expected {len(labels)} rows, those of labels, got {len(sparse)}")
        top = labels[:, :most].cpu().long()
        wrong = ((top < 0) | (top >= self.num_labels)).nonzero()
        if len(wrong):
            row, at = wrong[0].tolist()
            raise ValueError(f"labels: expected ids in [0, {self.num_labels}), got {int(top[row, at])} in row {row}")
        ascending = top.sort(1).values
        twice = (ascending[:, 1:] == ascending[:, :-1]).any(1).nonzero()
        if len(twice):
            raise ValueError(f"labels: expected each label once in a row, got one twice in row {int(twice[0])}")
        self._count(top, sparse)

    def _count(self, top: Tensor, targets: SparseTargets) -> None:
        """top: int64 [n, max(ks)] on the CPU."""
        # The sums are so small that the CPU adds them as fast as another device, and float64 is at hand.
        self._move("cpu")
        targets = targets.to("cpu")
        hit = carried(top, targets)
        sizes = targets.crow.diff()
        discount = 1 / torch.log2(torch.arange(top.shape[1], dtype=torch.float64) + 2)
        ideal = discount.cumsum(0)
        gain = (hit * discount).cumsum(1)[:, self._at]
        most = ideal[torch.minimum(sizes[:, None] - 1, self._at).clamp(min=0)]
        self._sums["hits"] += hit.cumsum(1)[:, self._at].sum(0)
        self._sums["gain"] += (gain / most).sum(0)
        if self._propensities is not None:
            inverse, places = 1 / self._propensities, self._at + 1
            self._sums["scored"] += (hit * inverse[top]).cumsum(1)[:, self._at].sum(0) / places
            best, rank = ranked_in_rows(inverse[targets.col], targets)
            self._sums["most_scored"] += torch.stack([best[rank < k].sum() for k in self.ks]) / places
        self.num_samples += len(top)

    def precision(self) -> dict[int, float]:
        """P@k by k.

        Raises:
            RuntimeError: before any sample was counted.
        """
        return self._by_k(self._sums["hits"].double().cpu() / (self._at + 1) / max(self.num_samples, 1))

    def ndcg(self) -> dict[int, float]:
        """nDCG@k by k; errors as for :meth:`precision`."""
        return self._by_k(self._sums["gain"].cpu() / max(self.num_samples, 1))

    def propensity_precision(self) -> dict[int, float]:
        """PSP@k by k; 0 where no sample has a label.

        Raises:
            RuntimeError: without propensities, and before any sample was counted.
        """
        if self._propensities is None:
            raise RuntimeError("propensities: expected [C] numbers in the constructor for PSP@k, got none")
        scored, most = self._sums["scored"].cpu(), self._sums["most_scored"].cpu()
        return self._by_k(torch.where(most > 0, scored / most, 0.0))

    def scores(self) -> dict[str, float]:
        """All of them, as ``{"P@1": ..., "nDCG@1": ..., "PSP@1": ...}``; errors as for :meth:`precision`."""
        found = {"P": self.precision(), "nDCG": self.ndcg()}
        if self._propensities is not None:
            found["PSP"] = self.propensity_precision()
        return {f"{name}@{k}": value for name, values in found.items() for k, value in values.items()}

    def _by_k(self, values: Tensor) -> dict[int, float]:
        self._check_counted()
        return dict(zip(self.ks, values.tolist(), strict=True))

    def _settings(self) -> dict[str, Any]:
        return {"num_labels": self.num_labels, "ks": list(self.ks), "propensities": self._propensities}


def carried(labels: Tensor, targets: SparseTargets) -> Tensor:
    """bool [n, K], whether each of the label ids [n, K] is among those of its row."""
    if not len(targets.col):
        return torch.zeros_like(labels, dtype=torch.bool)
    # A row's ids ascend, so the numbers of all entries do.
    entries = targets.rows * targets.num_labels + targets.col
    wanted = torch.arange(len(labels), device=labels.device)[:, None] * targets.num_labels + labels
    return entries[torch.searchsorted(entries, wanted).clamp(max=len(entries) - 1)] == wanted


def ranked_in_rows(values: Tensor, targets: SparseTargets) -> tuple[Tensor, Tensor]:
    """The values [nnz] of the entries, descending within each row, and each one's rank in its row, from 0 on."""
    order = torch.argsort(values, descending=True, stable=True)
    order = order[torch.argsort(targets.rows[order], stable=True)]
    return values[order], torch.arange(len(values), device=values.device) - targets.crow[targets.rows]


def _checked_propensities(propensities: Any, num_labels: int) -> Tensor:
    given = as_tensor("propensities", propensities).detach().cpu()
    if given.shape != (num_labels,) or given.is_complex() or given.dtype == torch.bool:
        raise ValueError(f"propensities: expected [{num_labels}] numbers, got {describe(given)}")
    given = given.double()
    wrong = (~(torch.isfinite(given) & (given > 0))).nonzero()
    if len(wrong):
        raise ValueError(f"propensities: expected numbers > 0, got {float(given[wrong[0]])} for label {int(wrong[0])}")
    return given.clone()
