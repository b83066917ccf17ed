"""From spec and statistics to the constants of labels and rows that the implementations compute with."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..label_statistics import LabelStatistics, class_balanced_weight
from ..spec import LossSpec
from ..targets import SparseTargets


class LabelTerms(NamedTuple):
    """Per-label constants [C] in the compute dtype; None where the loss has no such term.

    bias: negative-tolerant bias v.
    inverse_frequency: 1/n, for the rebalanced weight.
    weight: the label's weight.
    counts: float64, the clamped n, from which the reference derives its own terms.
    """

    bias: Tensor | None
    inverse_frequency: Tensor | None
    weight: Tensor | None
    counts: Tensor | None


_NOTHING = torch.empty(0)


class Problem(NamedTuple):
    """One call's input, checked, on one device: what every implementation takes.

    logits: [N, C], last dimension contiguous.
    targets: dense [N, C] (bool, uint8 or floating, last dimension contiguous) or SparseTargets.
    row_weight: [N] in the compute dtype, or None.
    label_mask: bool [N, C] (rows may repeat by stride 0), or None; False leaves an element out.
    num_samples: N_train; 0 where the loss needs no statistics.
    saved: what an implementation keeps from the forward for the backward.
    row_sum: [N] in the compute dtype, each row's sum of 1/n over all its labels, where logits and targets are a chunk
        of the labels; None lets the implementation take it from the targets.
    """

    logits: Tensor
    targets: Tensor | SparseTargets
    spec: LossSpec
    terms: LabelTerms
    row_weight: Tensor | None
    label_mask: Tensor | None
    num_samples: int
    saved: dict[str, Any]
    row_sum: Tensor | None = None

    def without_logits(self) -> Problem:
        """What a backward needs to keep besides the logits, which autograd saves."""
        return self._replace(logits=_NOTHING)

    def given(self) -> list[Tensor]:
        """The caller's tensors besides the logits; where autograd saves them, a change in place raises."""
        if torch.compiler.is_compiling():
            return []
        targets = self.targets
        parts = (targets.crow, targets.col) if isinstance(targets, SparseTargets) else (targets,)
        # What inference_mode made has no versions.
        return [
            part for part in (*parts, self.row_weight, self.label_mask) if part is not None and not part.is_inference()
        ]


NO_TERMS = LabelTerms(None, None, None, None)


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64, float32 for all others."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def label_terms(
    statistics: LabelStatistics | None, spec: LossSpec, dtype: torch.dtype, device: torch.device
) -> LabelTerms:
    """Constants of the labels for one spec, made once for each compute dtype and device."""
    if statistics is None or not spec.needs_statistics:
        return NO_TERMS
    key = (spec, dtype, str(device))
    terms: LabelTerms | None = statistics.cache.get(key)
    if terms is None:
        terms = _make_label_terms(statistics, spec, dtype, device)
        # Tracing has no real tensors to keep.
        if not torch.compiler.is_compiling():
            statistics.cache[key] = terms
    return terms


def _make_label_terms(
    statistics: LabelStatistics, spec: LossSpec, dtype: torch.dtype, device: torch.device
) -> LabelTerms:
    rebalanced = spec.weighting == "rebalanced"
    weighted = spec.weighting not in ("none", "rebalanced") and spec.pooling == "label"
    return LabelTerms(
        bias=statistics.ntr_bias(spec.kappa).to(device, dtype) if spec.kappa else None,
        inverse_frequency=statistics.inverse_frequency.to(device, dtype) if rebalanced else None,
        weight=_weight_at(statistics.clamped_counts, statistics, spec).to(device, dtype) if weighted else None,
        counts=statistics.clamped_counts.to(device),
    )


def _weight_at(counts: Tensor, statistics: LabelStatistics, spec: LossSpec) -> Tensor:
    """Weight of a label with training count ``counts`` (float64, any shape and device)."""
    if spec.weighting == "class_balanced":
        return class_balanced_weight(counts, spec.beta_cb)
    power = -1.0 if spec.weighting == "inverse_frequency" else -0.5
    scale = statistics.clamped_counts.pow(power).mean()
    return counts.pow(power) / scale.to(counts.device)


def row_weight(
    targets: Tensor | SparseTargets,
    statistics: LabelStatistics | None,
    spec: LossSpec,
    sample_weight: Tensor | None,
    dtype: torch.dtype,
) -> Tensor | None:
    """Weight [N] of each row: the sample's, times that of its labels for the specs that pool; None for all 1."""
    weight = None if sample_weight is None else sample_weight.to(dtype)
    if spec.pooling == "label":
        return weight
    assert statistics is not None
    pooled = _pooled_row_weight(targets, statistics, spec, dtype)
    return pooled if weight is None else pooled * weight


def _pooled_row_weight(
    targets: Tensor | SparseTargets, statistics: LabelStatistics, spec: LossSpec, dtype: torch.dtype
) -> Tensor:
    counts = statistics.clamped_counts.to(targets.device)
    # What a row without labels counts as carrying.
    everywhere = float(statistics.num_samples)
    if spec.pooling == "rarest":
        rarest = _row_reduce(targets, counts, "min", everywhere)
        return _weight_at(rarest, statistics, spec).to(dtype)
    empty = _row_reduce(targets, torch.ones_like(counts), "sum", 0.0) == 0
    if spec.pooling == "mean_count":
        mean = _row_reduce(targets, counts, "mean", 0.0)
        return _weight_at(mean.masked_fill(empty, everywhere), statistics, spec).to(dtype)
    mean = _row_reduce(targets, _weight_at(counts, statistics, spec), "mean", 0.0)
    return torch.where(empty, _weight_at(torch.full_like(mean, everywhere), statistics, spec), mean).to(dtype)


def sparse_row_sum(targets: SparseTargets, value: Tensor) -> Tensor:
    """Sum of ``value`` [C] over the labels of each row: [N], in a fixed order."""
    return torch.segment_reduce(value[targets.col], "sum", offsets=targets.crow, initial=0)


def _row_reduce(targets: Tensor | SparseTargets, value: Tensor, how: str, start: float) -> Tensor:
    """Sum, mean or minimum of ``value`` [C] over the labels of each row, float64 [N]; no labels give ``start``."""
    if isinstance(targets, SparseTargets):
        if how == "min":
            return torch.segment_reduce(value[targets.col], "min", offsets=targets.crow, initial=start)
        total = sparse_row_sum(targets, value)
        number = targets.crow.diff()
    else:
        label = targets != 0
        if how == "min":
            return torch.where(label, value, start).amin(1)
        total = label.double() @ value
        number = label.sum(1)
    return total if how == "sum" else total / number.clamp(min=1)
