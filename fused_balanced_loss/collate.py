"""Collation of samples with label ids into batches with SparseTargets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .input_values import as_integer
from .targets import SparseTargets


class SparseTargetsCollator:
    """Collates samples for a DataLoader; the samples' lists of label ids become SparseTargets.

    A sample is a mapping with the label ids under ``label_key``, or a tuple whose last entry is the label ids. All
    samples are of one kind. The rest of the sample goes through ``collate``, which gets the samples without their label
    ids.

    Args:
        num_labels: C.
        label_key: key of the label ids in samples that are mappings, and of the targets in the batch.
        pad_to: None gives SparseTargets. A number K gives the label ids in a tensor, int64 [n, K], ascending and then
            -1. Accelerate can send and gather it as any other (``dispatch_batches``, ``gather_for_metrics``), and
            :meth:`SparseTargets.from_padded` makes targets of it.
        collate: collates the rest; default :func:`torch.utils.data.default_collate`. A data collator of transformers
            can be given. For samples that are mappings it returns a mapping that can be changed.

    Raises:
        TypeError, ValueError: for another ``num_labels`` or ``pad_to``; when called, for other samples and other label
            ids, and more than ``pad_to`` of them, naming the sample.
    """

    def __init__(
        self,
        num_labels: int,
        *,
        label_key: str = "labels",
        pad_to: int | None = None,
        collate: Callable[[list[Any]], Any] = torch.utils.data.default_collate,
    ) -> None:
        self.num_labels = as_integer("num_labels", num_labels, at_least=1)
        self.label_key = label_key
        self.pad_to = None if pad_to is None else as_integer("pad_to", pad_to, at_least=1)
        self.collate = collate

    def __call__(self, samples: Sequence[Any]) -> Any:
        if not len(samples):
            raise ValueError("samples: expected at least one, got none")
        tuples = isinstance(samples[0], tuple)
        for number, sample in enumerate(samples):
            self._check(sample, number, tuples)
        ids = [sample[-1] if tuples else sample[self.label_key] for sample in samples]
        targets = SparseTargets.from_lists(ids, self.num_labels)
        labels = targets if self.pad_to is None else _padded(targets, self.pad_to)
        if tuples:
            return (*self.collate([sample[:-1] for sample in samples]), labels)
        batch = self.collate([{key: sample[key] for key in sample if key != self.label_key} for sample in samples])
        if not hasattr(batch, "__setitem__") or not hasattr(batch, "keys"):
            raise TypeError(f"collate: expected to return a mapping for samples that are, got {type(batch).__name__}")
        batch[self.label_key] = labels
        return batch

    def _check(self, sample: Any, number: int, tuples: bool) -> None:
        """Raises TypeError unless the sample has label ids, and is of the kind of the first."""
        is_tuple, is_mapping = isinstance(sample, tuple), hasattr(sample, "keys")
        if is_tuple == tuples and (len(sample) if tuples else is_mapping and self.label_key in sample):
            return
        expected = f"tuples ending in label ids, or mappings with key {self.label_key!r}"
        if number and is_tuple != tuples:
            expected = f"samples of one kind, a {'tuple' if tuples else 'mapping'} like the first"
        got = type(sample).__name__ + (f" with keys {list(sample.keys())}" if is_mapping else "")
        raise TypeError(f"samples: expected {expected}, got {got} as no. {number}")


def _padded(targets: SparseTargets, width: int) -> Tensor:
    """The label ids as int64 [n, width], ascending and then -1."""
    counts = targets.crow.diff()
    most = int(counts.max())
    if most > width:
        row = int(counts.argmax())
        raise ValueError(f"pad_to: expected at least {most}, the label ids of sample no. {row}, got {width}")
    ids = targets.col.new_full((len(targets), width), -1)
    ids[torch.arange(width) < counts[:, None]] = targets.col
    return ids
