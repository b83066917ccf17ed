"""From spec and statistics to the constants of labels and rows that the implementations compute with."""

from __future__ import annotations

import torch
from torch import Tensor

from ..label_statistics import LabelStatistics, class_balanced_weight
from ..spec import LossSpec
from ..targets import SparseTargets
from . import device
from .kept import keep
from .problem import LabelConstants

# Specs, dtypes and devices for which one LabelStatistics keeps something: a training loop uses one or two.
MOST_KEPT = 12
# Elements of the product from which dense row sums are taken: it is made for some rows at a time, on the CPU so that it
# stays in cache, on a GPU so that few operators are started.
_ELEMENTS_AT_ONCE = {"cpu": 1 << 18, "cuda": 1 << 25}


def constants_key(spec: LossSpec, dtype: torch.dtype, device: torch.device) -> tuple[object, ...]:
    """Under which the constants of the labels are kept: a mu that changes from step to step makes no new ones."""
    return spec.weighting, spec.pooling, spec.beta_cb, spec.kappa, dtype, device


def resolved(spec: LossSpec, statistics: LabelStatistics | None) -> LossSpec:
    """The spec with a number for ``mu`` where its loss has one.

    The same object from call to call, because the backends find by it what they have kept.
    """
    if not spec.needs_mu:
        return spec
    assert statistics is not None and statistics.mu is not None
    kept: LossSpec | None = statistics.cache.get(spec)
    if kept is None or kept.mu != statistics.mu:
        kept = spec.replace(mu=statistics.mu)
        if not torch.compiler.is_compiling():
            keep(statistics.cache, spec, kept, MOST_KEPT)
    return kept


def label_constants(
    statistics: LabelStatistics | None, spec: LossSpec, dtype: torch.dtype, device: torch.device
) -> LabelConstants:
    """Constants of the labels; kept with the statistics for the next call."""
    if statistics is None or not spec.needs_statistics:
        return LabelConstants(None, None, None)
    key = constants_key(spec, dtype, device)
    constants: LabelConstants | None = statistics.cache.get(key)
    if constants is None:
        # An inference tensor could not be saved for a later backward.
        with torch.inference_mode(False), torch.no_grad():
            constants = _make_label_constants(statistics, spec, dtype, device)
        # Tracing and fake modes make tensors without memory, which later calls must not find.
        if not torch.compiler.is_compiling() and all(part is None or type(part) is Tensor for part in constants):
            keep(statistics.cache, key, constants, MOST_KEPT)
    return constants


def _make_label_constants(
    statistics: LabelStatistics, spec: LossSpec, dtype: torch.dtype, device: torch.device
) -> LabelConstants:
    rebalanced = spec.weighting == "rebalanced"
    weighted = spec.weighting not in ("none", "rebalanced") and spec.pooling == "label"
    return LabelConstants(
        bias=statistics.ntr_bias(spec.kappa).to(device, dtype) if spec.kappa else None,
        inverse_frequency=statistics.inverse_frequency.to(device, dtype) if rebalanced else None,
        weight=_weight_at(statistics.clamped_counts, statistics, spec).to(device, dtype) if weighted else None,
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
    weight = None if sample_weight is None else sample_weight.to(dtype).contiguous()
    if spec.pooling == "label":
        return weight
    assert statistics is not None
    pooled = _pooled_row_weight(targets, statistics, spec, dtype)
    return pooled if weight is None else pooled * weight


def _pooled_row_weight(
    targets: Tensor | SparseTargets, statistics: LabelStatistics, spec: LossSpec, dtype: torch.dtype
) -> Tensor:
    counts = statistics.clamped_counts.to(targets.device)
    # A row without labels is weighed as if it had a label that all samples carry.
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


def row_sums(targets: Tensor | SparseTargets, inverse_frequency: Tensor) -> Tensor:
    """Sum of 1/n [N] over the labels of each row, added up in a fixed order, in the dtype of ``inverse_frequency``."""
    if isinstance(targets, SparseTargets):
        return _sparse_row_sum(targets, inverse_frequency)
    elements = _ELEMENTS_AT_ONCE.get(device.kind(targets.device), _ELEMENTS_AT_ONCE["cuda"])
    rows = max(1, elements // len(inverse_frequency))
    # Only a 1 is a label: what a mask leaves out, or the loss reports, counts nowhere.
    return torch.cat([((part == 1) * inverse_frequency).sum(1) for part in targets.split(rows)])


def _sparse_row_sum(targets: SparseTargets, value: Tensor) -> Tensor:
    return torch.segment_reduce(value[targets.col], "sum", offsets=targets.crow, initial=0)


def _row_reduce(targets: Tensor | SparseTargets, value: Tensor, how: str, start: float) -> Tensor:
    """Sum, mean or minimum of ``value`` [C] over the labels of each row, float64 [N]; no labels give ``start``."""
    if isinstance(targets, SparseTargets):
        if how == "min":
            return torch.segment_reduce(value[targets.col], "min", offsets=targets.crow, initial=start)
        total = _sparse_row_sum(targets, value)
        number = targets.crow.diff()
    else:
        label = targets == 1
        if how == "min":
            return torch.where(label, value, start).amin(1)
        total = label.double() @ value
        number = label.sum(1)
    return total if how == "sum" else total / number.clamp(min=1)
