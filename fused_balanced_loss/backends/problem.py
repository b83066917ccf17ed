"""One call's input, checked, as every implementation takes it, and the same as the flat arguments of an operator."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..label_statistics import LabelStatistics
from ..label_weights import LabelWeights
from ..spec import LossSpec
from ..targets import SparseTargets


class LabelConstants(NamedTuple):
    """Constants of the labels, each [C] in the compute dtype; None where the loss has no such factor.

    bias: the negative-tolerant bias v.
    inverse_frequency: 1/n, for the rebalanced weight.
    weight: the label's own weight, times the caller's.
    positive_weight: the same for the part of target 1, where it is another: times the caller's pos_weight.
    """

    bias: Tensor | None
    inverse_frequency: Tensor | None
    weight: Tensor | None
    positive_weight: Tensor | None = None


class RowTerms(NamedTuple):
    """What the Triton kernel needs of each row of targets; made once, for the forward and the backward.

    weight_slope: [N] in the compute dtype, ``slope_factor`` / row_sum; None where the kernel makes it, or needs none.
    tile_offsets: int32 [N * (tiles + 1)], where in ``col`` each tile's labels begin; None likewise.
    """

    weight_slope: Tensor | None
    tile_offsets: Tensor | None


class Problem(NamedTuple):
    """One call's input, checked, on one device.

    logits: [N, C], unit stride in the last dimension. In the classifier, which makes logits chunk by chunk, an empty
        tensor of their dtype and device.
    targets: dense [N, C] (bool, integer, or floating point in [0, 1]; unit stride in the last dimension) or
        SparseTargets.
    row_weight: [N], contiguous, in the compute dtype; None for 1.
    spec: with a number for ``mu`` where the weight is rebalanced.
    label_mask: bool [N, C] (rows may repeat by stride 0), or None; False leaves an element out.
    row_sum: [N] in the compute dtype, each row's sum of target times 1/n, where logits and targets are a chunk of the
        labels; None lets the implementation take it from the targets.
    row_terms: what ``prepare`` of the Triton implementation has made of the targets.
    statistics, label_weights: what the constants of the labels were made from, for the reference, which derives them
        itself, and for what is kept beside them.
    plan: what the implementation's ``plan`` has decided for problems of this kind; None lets it decide now.
    in_operator: whether an operator of torch.compile computes it. It may keep no memory beyond the call: under
        ``mode="reduce-overhead"`` it is given memory of a CUDA graph's pool, and what stays in use there is an error.
    """

    logits: Tensor
    targets: Tensor | SparseTargets
    spec: LossSpec
    labels: LabelConstants
    row_weight: Tensor | None = None
    label_mask: Tensor | None = None
    row_sum: Tensor | None = None
    row_terms: RowTerms | None = None
    statistics: LabelStatistics | None = None
    label_weights: LabelWeights | None = None
    plan: Any = None
    in_operator: bool = False

    @property
    def dtype(self) -> torch.dtype:
        """The compute dtype."""
        return compute_dtype(self.logits.dtype)

    @property
    def mixed(self) -> bool:
        """Whether an element may have both parts of the loss: a target between 0 and 1, given or smoothed."""
        targets = self.targets
        soft = isinstance(targets, Tensor) and targets.dtype.is_floating_point
        return soft or self.spec.label_smoothing > 0

    def given(self) -> list[Tensor]:
        """The caller's tensors besides the logits. Where autograd saves them, a change in place raises."""
        if torch.compiler.is_compiling():
            return []
        targets, row_weight, mask = self.targets, self.row_weight, self.label_mask
        parts = [targets] if isinstance(targets, Tensor) else [targets.crow, targets.col]
        parts += [part for part in (row_weight, mask) if part is not None]
        # Inference tensors have no version counter, so autograd cannot save them.
        return [part for part in parts if not part.is_inference()]

    def target_tensors(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Dense targets, ``crow`` and ``col``; None for what there is not."""
        if isinstance(self.targets, SparseTargets):
            return None, self.targets.crow, self.targets.col
        return self.targets, None, None


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64, float32 for all others."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def gradient_like(logits: Tensor) -> Tensor:
    """Memory for the gradient of logits [N, C]; its rows are as far from a 16-byte boundary as those of the logits."""
    if logits.is_contiguous():
        return torch.empty_like(logits)
    num_rows, num_labels = logits.shape
    per_access = 16 // logits.element_size()
    stride = num_labels + (logits.stride(0) - num_labels) % per_access
    if stride == num_labels:
        return torch.empty_like(logits, memory_format=torch.contiguous_format)
    return logits.new_empty(num_rows, stride)[:, :num_labels]


_NUMBERS = tuple(field.name for field in dataclasses.fields(LossSpec) if field.name not in ("weighting", "pooling"))

# What `to_arguments` gives, in the words of an operator's schema.
SCHEMA = (
    "Tensor logits, Tensor? dense, Tensor? crow, Tensor? col, Tensor? bias, Tensor? inverse_frequency, "
    "Tensor? label_weight, Tensor? positive_weight, Tensor? row_weight, Tensor? label_mask, float[] numbers"
)
NUM_TENSORS = SCHEMA.count("Tensor")
NUM_ARGUMENTS = SCHEMA.count(",") + 1


def to_arguments(problem: Problem) -> tuple[Any, ...]:
    """Arguments by SCHEMA. Of the spec they hold the numbers; its weighting and pooling are in the tensors."""
    spec = problem.spec
    defaults = {"gamma_negative": spec.gammas[1], "mu": spec.mu or 0.0}
    numbers = {name: getattr(spec, name) for name in _NUMBERS} | defaults
    tensors = (problem.logits, *problem.target_tensors(), *problem.labels, problem.row_weight, problem.label_mask)
    return (*tensors, list(numbers.values()))


def from_arguments(arguments: tuple[Any, ...], num_labels: int) -> Problem:
    """The problem; every implementation but the reference computes from it as from the original."""
    logits, dense, crow, col, *constants, row_weight, label_mask, numbers = arguments
    targets = SparseTargets(crow, col, num_labels, check=False) if dense is None else dense
    labels = LabelConstants(*constants)
    return Problem(
        logits,
        targets,
        _spec_of(tuple(numbers)),
        labels,
        row_weight=row_weight,
        label_mask=label_mask,
        in_operator=True,
    )


@functools.lru_cache(maxsize=64)
def _spec_of(numbers: tuple[float, ...]) -> LossSpec:
    """The spec of these numbers: the same object for the same numbers, by which a backend finds what it has kept."""
    settings: dict[str, Any] = dict(zip(_NUMBERS, numbers, strict=True))
    return LossSpec(**settings)
