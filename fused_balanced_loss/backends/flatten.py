"""A problem as the flat argument list of an operator, and back."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import Tensor

from ..spec import LossSpec
from ..targets import SparseTargets
from .problem import LabelTerms, Problem

_NUMBERS = tuple(field.name for field in dataclasses.fields(LossSpec) if field.name not in ("weighting", "pooling"))

# What :func:`flatten` gives, as an operator's schema says it.
SCHEMA = (
    "Tensor logits, Tensor? dense, Tensor? crow, Tensor? col, Tensor? bias, Tensor? inverse_frequency, "
    "Tensor? label_weight, Tensor? row_weight, Tensor? label_mask, Tensor? row_sum, float[] numbers"
)
NUM_TENSORS = SCHEMA.count("Tensor")
NUM_ARGUMENTS = SCHEMA.count(",") + 1


def target_tensors(targets: Tensor | SparseTargets) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Dense targets, crow and col; None for what there is not."""
    if isinstance(targets, SparseTargets):
        return None, targets.crow, targets.col
    return targets, None, None


def flatten(problem: Problem) -> tuple[Any, ...]:
    """Arguments by SCHEMA. Of the spec they hold the numbers: its weighting and pooling are in the tensors."""
    terms, spec = problem.terms, problem.spec
    numbers = dict(zip(_NUMBERS, (getattr(spec, name) for name in _NUMBERS), strict=True))
    numbers["gamma_negative"] = spec.gammas[1]
    arguments = (problem.logits, *target_tensors(problem.targets), terms.bias, terms.inverse_frequency, terms.weight)
    return (*arguments, problem.row_weight, problem.label_mask, problem.row_sum, list(numbers.values()))


def unflatten(arguments: tuple[Any, ...], num_labels: int) -> Problem:
    """The problem that the implementations, the reference apart, compute from as from the original."""
    logits, dense, crow, col, bias, inverse_frequency, label_weight, row_weight, label_mask, row_sum, numbers = (
        arguments
    )
    settings: dict[str, Any] = dict(zip(_NUMBERS, numbers, strict=True))
    targets = SparseTargets(crow, col, num_labels, check=False) if dense is None else dense
    terms = LabelTerms(bias, inverse_frequency, label_weight, None)
    return Problem(logits, targets, LossSpec(**settings), terms, row_weight, label_mask, 0, {}, row_sum)
