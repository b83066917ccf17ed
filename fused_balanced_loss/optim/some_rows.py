"""An in-place step of some rows of a weight by their numbers, as sparse features need."""

from __future__ import annotations

from torch import Tensor

from .rule import Rows, Step
from .select import select_update


def step_some_rows(step: Step, rows: Tensor, gradient: Tensor, first_label: int = 0) -> None:
    """Steps the weight's ``rows``, int64 [n], each once, with their ``gradient`` [n, D], which is overwritten.

    All other rows stay as they are, and so do their moments: they do not decay, as those of torch.optim.SparseAdam do
    not. For SGD without momentum and weight decay that is the same as a step of the whole weight. The random bits of a
    stochastic rounding belong to the place in ``rows``, counted from ``first_label``.
    """
    value, *moments = step.weight
    some = Rows(value[rows], *(None if moment is None else moment[rows] for moment in moments))
    part = step._replace(weight=some, bias=None, first_label=first_label)
    select_update(part)(part)(slice(0, len(rows)), gradient, gradient.new_zeros(len(rows)))
    for whole, changed in zip(step.weight, some, strict=True):
        if whole is not None and changed is not None:
            whole[rows] = changed
