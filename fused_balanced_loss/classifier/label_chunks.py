"""A problem cut along the labels: each chunk is a problem of its own, whose rows' sums of 1/n are given."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..backends.problem import LabelTerms, Problem, sparse_row_sum
from ..targets import SparseTargets


class LabelChunks:
    """Chunks of at most ``size`` labels of the labels [first, first + num_labels) of a problem.

    The problem's logits are not looked at; its targets, terms and mask are those of all labels.
    """

    def __init__(self, problem: Problem, size: int, first: int, num_labels: int) -> None:
        self._problem = problem._replace(row_sum=_row_sum(problem), saved={})
        self._bounds = [
            (start, min(start + size, first + num_labels)) for start in range(first, first + num_labels, size)
        ]
        self._first, self._size = first, size
        targets = problem.targets
        self._sparse = _sparse_chunks(targets, self._bounds, first, size) if isinstance(targets, SparseTargets) else []

    def __iter__(self) -> Iterator[tuple[slice, Problem]]:
        """Which rows of the classifier's weight a chunk takes, and its problem, without logits."""
        for number, (start, stop) in enumerate(self._bounds):
            labels, problem = slice(start, stop), self._problem
            targets = problem.targets[:, labels] if isinstance(problem.targets, Tensor) else self._sparse[number]
            mask = problem.label_mask
            yield (
                slice(start - self._first, stop - self._first),
                problem._replace(
                    targets=targets,
                    terms=LabelTerms(*(None if term is None else term[labels] for term in problem.terms)),
                    label_mask=None if mask is None else mask[:, labels],
                    saved={},
                ),
            )


def _row_sum(problem: Problem) -> Tensor | None:
    """Each row's sum of 1/n over its labels, chunk or none; None where the loss needs none."""
    inverse, targets = problem.terms.inverse_frequency, problem.targets
    if inverse is None or problem.row_sum is not None:
        return problem.row_sum
    if isinstance(targets, SparseTargets):
        return sparse_row_sum(targets, inverse)
    # Some rows at a time: the product is as large as the logits.
    rows = max(1, (1 << 18) // len(inverse))
    return torch.cat([((part != 0) * inverse).sum(1) for part in targets.split(rows)])


def _sparse_chunks(targets: SparseTargets, bounds: list[tuple[int, int]], first: int, size: int) -> list[SparseTargets]:
    """The chunks' label ids, counted from each chunk's first label; no host synchronisation.

    All chunks share one ``col``, so that their ``crow`` need not begin at 0.
    """
    num_rows, device = len(targets), targets.device
    chunk = torch.div(targets.col - first, size, rounding_mode="floor")
    last = bounds[-1][1] if bounds else first
    # Ids of other shards go behind all chunks.
    chunk = torch.where((targets.col >= first) & (targets.col < last), chunk, len(bounds))
    # Stable: within a chunk the rows stay in order, and within a row the labels.
    order = torch.argsort(chunk, stable=True)
    col = targets.col[order] - first - chunk[order] * size
    counts = torch.zeros((len(bounds) + 1) * num_rows, dtype=torch.int64, device=device)
    counts.scatter_add_(0, chunk * num_rows + targets.rows, torch.ones_like(chunk))
    crow = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    return [
        SparseTargets(crow[k * num_rows : (k + 1) * num_rows + 1], col, stop - start, check=False)
        for k, (start, stop) in enumerate(bounds)
    ]
