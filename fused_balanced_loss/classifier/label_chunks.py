"""A problem cut along the labels: each chunk is a problem of its own, whose rows' sums of 1/n are given."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..backends import device
from ..backends.constants import row_sums
from ..backends.problem import LabelConstants, Problem
from ..targets import SparseTargets


class LabelChunks:
    """Chunks of at most ``size`` labels of the labels [first, first + num_labels) of a problem.

    The problem's logits are not looked at; its targets, constants and mask are those of all labels.

    Raises:
        ValueError: on the CPU, for label ids that are out of range, out of order or repeated.
    """

    def __init__(self, problem: Problem, size: int, first: int, num_labels: int) -> None:
        targets, inverse_frequency = problem.targets, problem.labels.inverse_frequency
        if isinstance(targets, SparseTargets) and device.kind(targets.device) == "cpu":
            targets.check()
        if inverse_frequency is not None:
            problem = problem._replace(row_sum=row_sums(targets, inverse_frequency))
        self.problem = problem
        self.size = size
        self._bounds = [
            (start, min(start + size, first + num_labels)) for start in range(first, first + num_labels, size)
        ]
        self._first = first
        self._sparse = _sparse_chunks(targets, self._bounds, first, size) if isinstance(targets, SparseTargets) else []

    def __iter__(self) -> Iterator[tuple[slice, Problem]]:
        """Which rows of the classifier's weight a chunk takes, and its problem, without logits."""
        for number, (start, stop) in enumerate(self._bounds):
            labels, problem = slice(start, stop), self.problem
            targets = problem.targets[:, labels] if isinstance(problem.targets, Tensor) else self._sparse[number]
            mask = problem.label_mask
            yield (
                slice(start - self._first, stop - self._first),
                problem._replace(
                    targets=targets,
                    labels=LabelConstants(*(None if part is None else part[labels] for part in problem.labels)),
                    label_mask=None if mask is None else mask[:, labels],
                ),
            )


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
