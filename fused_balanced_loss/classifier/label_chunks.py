"""A problem cut along the labels: each chunk is a problem of its own, whose rows' sums of 1/n are given."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..backends import device as devices
from ..backends.constants import row_sums
from ..backends.problem import LabelConstants, Problem
from ..targets import SparseTargets

# On the CPU: bytes of a chunk's weights and logits together. Smaller chunks stay in cache between the three products,
# larger ones cost fewer passes over the features' gradient: on an Intel Xeon, 32 x 18,211 x 768 took 8 % less time than
# with 12 MiB, and 128 x 131,072 x 768 as much.
# On a GPU: bytes of a chunk's weights, and at most as many of its logits. A chunk that fits the level-2 cache of an
# H200 (20 MiB) would spare it one of three passes over the weights, but a chunk costs seven launches of about 2.5 us,
# and three small kernels that wait for memory. By the model in benchmarks/classifier_model.py, in bfloat16 at
# 128 x 670,091 x 768, chunks of 20 MiB take 1.9 ms, 64 MiB 1.2, 128 MiB 1.03 and 256 MiB 0.97; F.linear and our loss
# take 0.98. Not yet measured.
CHUNK_BYTES = {"cpu": 32 << 20, "cuda": 256 << 20}
# With an update in the backward a chunk's weights have a float32 gradient beside them.
UPDATE_CHUNK_BYTES = {**CHUNK_BYTES, "cuda": 128 << 20}
_MULTIPLE = 128


def default_chunk_size(
    num_rows: int, num_features: int, dtype: torch.dtype, device: torch.device, *, update: bool
) -> int:
    """Labels of a chunk, at most; a multiple of 128. update: whether the backward updates the weights."""
    numbers = num_rows + num_features if devices.kind(device) == "cpu" else max(num_rows, num_features, 1)
    size = _chunk_bytes(device, update) // (dtype.itemsize * numbers)
    return max(_MULTIPLE, size // _MULTIPLE * _MULTIPLE)


def _chunk_bytes(device: torch.device, update: bool) -> int:
    most = UPDATE_CHUNK_BYTES if update else CHUNK_BYTES
    return most.get(devices.kind(device), most["cuda"])


def even_chunk_size(most: int, num_labels: int) -> int:
    """Labels of a chunk, a multiple of 128 or all: chunks of about one size, as few as chunks of ``most`` would be."""
    number = -(-num_labels // most) or 1
    # At least 1, for a shard without labels.
    return max(1, min(_padded(-(-num_labels // number)), num_labels))


def keeps_gradient(num_rows: int, num_columns: int, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether an update in the backward keeps the gradient of all logits [N, num_columns] from the forward, instead of
    making the logits again: where it takes no more memory than a chunk may.

    It saves a pass over the weights and one of the loss, 14 to 16 % of a step by the model.
    """
    return dtype.itemsize * num_rows * num_columns <= _chunk_bytes(device, update=True)


def row_stride(num_labels: int) -> int:
    """From a row of a chunk's logits to the next: whole 256 bytes, so that products and loss move 16 bytes at once at
    any number of labels. Chunks of fewer than 128 labels are not worth the memory."""
    return num_labels if num_labels < _MULTIPLE else _padded(num_labels)


def _padded(num_labels: int) -> int:
    return -(-num_labels // _MULTIPLE) * _MULTIPLE


class LabelChunks:
    """Chunks of at most ``size`` labels of the labels [first, first + num_labels) of a problem.

    The problem's logits are not looked at; its targets, constants and mask are those of all labels. What is made here
    takes as many operators for any number of chunks.

    Raises:
        ValueError: on the CPU, for label ids that are out of range, out of order or repeated.
    """

    def __init__(self, problem: Problem, size: int, first: int, num_labels: int) -> None:
        targets = problem.targets
        self.problem = problem
        self.size = size
        # Which rows of the classifier's weight each chunk takes.
        self.rows = [slice(start, min(start + size, num_labels)) for start in range(0, num_labels, size)]
        if isinstance(targets, SparseTargets) and devices.kind(targets.device) == "cpu":
            targets.check()
        all_labels = targets.shape[1]
        if size >= all_labels:
            # The loss takes one chunk of all labels as any other problem.
            self._problems = [problem][: len(self.rows)]
        else:
            self._problems = _cut(problem, size, first, num_labels) if self.rows else []

    def __iter__(self) -> Iterator[Problem]:
        """The problem of each chunk, without logits."""
        return iter(self._problems)


def _cut(problem: Problem, size: int, first: int, num_labels: int) -> list[Problem]:
    targets, inverse_frequency = problem.targets, problem.labels.inverse_frequency
    if inverse_frequency is not None:
        problem = problem._replace(row_sum=row_sums(targets, inverse_frequency))
    number = -(-num_labels // size)

    def parts(whole: Tensor | None) -> Sequence[Tensor | None]:
        """The chunks of what has the labels as its last dimension, as views."""
        if whole is None:
            return (None,) * number
        return whole.narrow(-1, first, num_labels).split(size, -1)

    chunks: Sequence[Any] = (
        _sparse_chunks(targets, size, first, num_labels) if isinstance(targets, SparseTargets) else parts(targets)
    )
    constants = zip(*(parts(part) for part in problem.labels), strict=True)
    return [
        problem._replace(targets=chunk, labels=LabelConstants(*of_chunk), label_mask=mask)
        for chunk, of_chunk, mask in zip(chunks, constants, parts(problem.label_mask), strict=True)
    ]


def _sparse_chunks(targets: SparseTargets, size: int, first: int, num_labels: int) -> list[SparseTargets]:
    """The chunks' label ids, counted from each chunk's first label; no host synchronisation.

    All chunks share one ``col``, so that their ``crow`` need not begin at 0. Each ``crow`` begins at a multiple of 16
    bytes: Triton compiles a kernel anew for another alignment, which an odd batch would bring.
    """
    num_rows, number, device = len(targets), -(-num_labels // size), targets.device
    col = targets.col - first if first else targets.col
    # Ids come by chunk and then by row. Those of other shards are negative, or go behind all chunks.
    place = torch.div(col, size, rounding_mode="floor").mul_(num_rows).add_(targets.rows)
    place.masked_fill_(col >= num_labels, number * num_rows)
    # Stable: within a row of a chunk the labels stay in order.
    place, order = place.sort(stable=True)
    col = torch.remainder(col, size)[order]
    row = torch.arange(num_rows + 1 + (num_rows + 1) % 2, device=device).clamp_(max=num_rows)
    chunk = torch.arange(0, number * num_rows, num_rows, device=device) if num_rows else row.new_zeros(number)
    crow = torch.searchsorted(place, chunk[:, None] + row)[:, : num_rows + 1]
    widths = [min(size, num_labels - start) for start in range(0, num_labels, size)]
    return [
        SparseTargets(offsets, col, width, check=False) for offsets, width in zip(crow.unbind(), widths, strict=True)
    ]
