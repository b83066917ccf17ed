"""From spec and statistics to the constants of labels and rows that the implementations compute with."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..label_statistics import LabelStatistics, class_balanced_weight
from ..label_weights import LabelWeights
from ..spec import LossSpec
from ..targets import SparseTargets
from . import device
from .kept import keep
from .problem import LabelConstants

# What a loss without statistics and weights computes with.
NO_CONSTANTS = LabelConstants(None, None, None)
# What one LabelStatistics keeps for specs, dtypes and devices: a training loop uses one to three entries.
MOST_KEPT = 12
# Elements of the product from which dense row sums are taken: it is made for some rows at a time, on the CPU so that it
# stays in cache, on a GPU so that few operators are started.
_ELEMENTS_AT_ONCE = {"cpu": 1 << 18, "cuda": 1 << 25}


def constants_key(spec: LossSpec, dtype: torch.dtype, device: torch.device) -> tuple[object, ...]:
    """Under which the constants of the labels are kept: a mu that changes from step to step makes no new ones."""
    return spec.weighting, spec.pooling, spec.beta_cb, spec.kappa, dtype, device


def constants_cache(statistics: LabelStatistics | None, label_weights: LabelWeights | None) -> dict[Any, Any] | None:
    """Where the constants are kept, and what is made of them; None where there is nothing to keep them with."""
    if label_weights is not None:
        return label_weights.cache
    return None if statistics is None else statistics.cache


def resolved(spec: LossSpec, statistics: LabelStatistics | None) -> LossSpec:
    """The spec with a number for ``mu`` where its loss has one.

    The same object from call to call, because the backends find by it what they have kept.
    """
    if not spec.needs_mu:
        return spec
    assert statistics is not None and statistics.mu is not None
    kept: LossSpec | None = statistics.cache.get(spec)
    if kept is None:
        kept = spec.replace(mu=statistics.mu)
        if not torch.compiler.is_compiling():
            keep(statistics.cache, spec, kept, MOST_KEPT)
    return kept


def label_constants(
    statistics: LabelStatistics | None,
    spec: LossSpec,
    dtype: torch.dtype,
    device: torch.device,
    label_weights: LabelWeights | None = None,
) -> LabelConstants:
    """Constants of the labels; kept with the statistics, or the caller's weights, for the next call."""
    if label_weights is None and (statistics is None or not spec.needs_statistics):
        return NO_CONSTANTS
    cache = constants_cache(statistics, label_weights)
    if cache is None:
        # Only what the weights change is made anew, and on the device.
        assert label_weights is not None
        return _cast(_weighed(label_constants(statistics, spec, dtype, device), label_weights, device), dtype, device)
    key = constants_key(spec, dtype, device)
    constants: LabelConstants | None = cache.get(key)
    if constants is None:
        # An inference tensor could not be saved for a later backward.
        with torch.inference_mode(False), torch.no_grad():
            constants = _of_statistics(statistics, spec)
            if label_weights is not None:
                constants = _weighed(constants, label_weights, torch.device("cpu"))
            constants = _cast(constants, dtype, device)
        # Tracing and fake modes make tensors without memory, which later calls must not find.
        if not torch.compiler.is_compiling() and all(part is None or type(part) is Tensor for part in constants):
            keep(cache, key, constants, MOST_KEPT)
    return constants


def _of_statistics(statistics: LabelStatistics | None, spec: LossSpec) -> LabelConstants:
    """The constants without the caller's weights, float64 on the CPU."""
    bias = inverse_frequency = weight = None
    if statistics is not None:
        if spec.kappa:
            bias = statistics.ntr_bias(spec.kappa)
        if spec.weighting == "rebalanced":
            inverse_frequency = statistics.inverse_frequency
        elif spec.weighting != "none" and spec.pooling == "label":
            weight = _weight_at(statistics.clamped_counts, spec, _weight_scale(statistics, spec))
    return LabelConstants(bias, inverse_frequency, weight)


def _weighed(constants: LabelConstants, label_weights: LabelWeights, device: torch.device) -> LabelConstants:
    factor, pos_weight = label_weights.factors(device)
    weight = _product(constants.weight, factor)
    positive_weight = None if pos_weight is None else _product(weight, pos_weight)
    return constants._replace(weight=weight, positive_weight=positive_weight)


def _product(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    if one is None or other is None:
        return other if one is None else one
    return one.double() * other


def _cast(constants: LabelConstants, dtype: torch.dtype, device: torch.device) -> LabelConstants:
    return LabelConstants(*(None if part is None else part.to(device, dtype).contiguous() for part in constants))


def _weight_at(counts: Tensor, spec: LossSpec, scale: Tensor) -> Tensor:
    """Weight of a label with training count ``counts`` (float64, any shape and device)."""
    if spec.weighting == "class_balanced":
        return class_balanced_weight(counts, spec.beta_cb)
    return counts.pow(_power(spec)) / scale


def _weight_scale(statistics: LabelStatistics, spec: LossSpec) -> Tensor:
    """float64 [], what the weights are divided by so that their mean over the labels is 1; 1 for class-balanced ones.

    It is no number, because torch.compile would not know a number of a tensor.
    """
    counts = statistics.clamped_counts
    return counts.new_ones(()) if spec.weighting == "class_balanced" else counts.pow(_power(spec)).mean()


def _power(spec: LossSpec) -> float:
    return -1.0 if spec.weighting == "inverse_frequency" else -0.5


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
    pooled = _pooled_row_weight(targets, pooling_constants(statistics, spec, targets.device), spec).to(dtype)
    return pooled if weight is None else pooled * weight


class PoolingConstants(NamedTuple):
    """What one weight for each row is made of, float64 on one device.

    value: [C], what is pooled over a row's labels: their counts, or their weights.
    scale: [], as ``_weight_scale``.
    of_empty: [], the weight of a row without labels: as if it had a label that all samples carry.
    """

    value: Tensor
    scale: Tensor
    of_empty: Tensor


def pooling_constants(statistics: LabelStatistics, spec: LossSpec, device: torch.device) -> PoolingConstants:
    """The constants of a spec that pools; kept with the statistics for the next call."""
    key = "pooling", spec.weighting, spec.pooling, spec.beta_cb, device
    found: PoolingConstants | None = statistics.cache.get(key)
    if found is None:
        with torch.inference_mode(False), torch.no_grad():
            counts, scale = statistics.clamped_counts, _weight_scale(statistics, spec)
            value = counts if spec.pooling == "mean_count" else _weight_at(counts, spec, scale)
            of_empty = _weight_at(torch.full_like(scale, statistics.num_samples), spec, scale)
            found = PoolingConstants(*(part.to(device) for part in (value, scale, of_empty)))
        if not torch.compiler.is_compiling() and all(type(part) is Tensor for part in found):
            keep(statistics.cache, key, found, MOST_KEPT)
    return found


def _pooled_row_weight(targets: Tensor | SparseTargets, pooling: PoolingConstants, spec: LossSpec) -> Tensor:
    """float64 [N]. A target between 0 and 1 is that share of a label; for the rarest label it is a label."""
    value, scale, of_empty = pooling
    if isinstance(targets, SparseTargets):
        # PyTorch's operator reads by these offsets, whatever they are.
        if device.kind(targets.device) == "cpu" and not torch.compiler.is_compiling():
            targets.check()
        crow = targets.crow.clamp(0, targets.col.shape[0])
        number, how = crow.diff(), "max" if spec.pooling == "rarest" else "sum"
        pooled = torch.segment_reduce(value[targets.col], how, offsets=crow, initial=0)
    else:
        share = _shares(targets).to(value.dtype)
        number = share.sum(1)
        pooled = torch.where(share > 0, value, 0.0).amax(1) if spec.pooling == "rarest" else share @ value
    # The largest weight is that of the rarest label.
    if spec.pooling != "rarest":
        pooled = pooled / number
    if spec.pooling == "mean_count":
        pooled = _weight_at(pooled, spec, scale)
    return torch.where(number > 0, pooled, of_empty)


def row_sums(targets: Tensor | SparseTargets, value: Tensor) -> Tensor:
    """Sum [N] of target times ``value`` [C] in each row, added up in a fixed order, in the dtype of ``value``."""
    if isinstance(targets, SparseTargets):
        return torch.segment_reduce(value[targets.col], "sum", offsets=targets.crow, initial=0)
    elements = _ELEMENTS_AT_ONCE.get(device.kind(targets.device), _ELEMENTS_AT_ONCE["cuda"])
    rows = max(1, elements // len(value))
    return torch.cat([(_shares(part) * value).sum(1, dtype=value.dtype) for part in targets.split(rows)])


def _shares(targets: Tensor) -> Tensor:
    """Dense targets as far as they are labels: what a mask leaves out, or the loss reports, counts nowhere."""
    if not targets.dtype.is_floating_point:
        return targets == 1
    return torch.where((targets >= 0) & (targets <= 1), targets, 0)
