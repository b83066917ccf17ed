"""A multi-label text corpus in three parts."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from torch import Tensor

from fused_balanced_loss import LabelStatistics, SparseTargets

PaperCorpus = Literal["reuters", "pubmed"]
InstanceGroups = Mapping[str, tuple[int, "int | None"]]


@dataclass(frozen=True, eq=False)
class Split:
    """Documents and their labels; ``texts`` may lie on disk, so that indexing it reads."""

    texts: Sequence[str]
    targets: SparseTargets

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True, eq=False)
class Corpus:
    """A corpus and what the experiments need to know about it.

    Attributes:
        fingerprint: hash of all documents and labels, in order.
        head, tail: labels with ``n >= head`` training documents are head, with ``n <= tail`` tail, the others medium.
        instance_groups: name -> (fewest, most) labels of a document, both inclusive; None is no limit.
        paper: the corpus of the paper whose loss settings and published figures apply; None for a corpus of one's own.
        notice: says why the figures are none of the real corpus, and is None where they are.
        remarks: what loading left out or changed, a sentence each.
    """

    name: str
    label_names: Sequence[str]
    train: Split
    validation: Split
    test: Split
    fingerprint: str
    head: int
    tail: int
    instance_groups: InstanceGroups
    paper: PaperCorpus | None = None
    notice: str | None = None
    remarks: Sequence[str] = ()

    @property
    def num_labels(self) -> int:
        return len(self.label_names)

    @property
    def splits(self) -> dict[str, Split]:
        return {"train": self.train, "validation": self.validation, "test": self.test}

    @cached_property
    def statistics(self) -> LabelStatistics:
        """Label counts of the training part, without validation."""
        # Reuters' training part lacks one of the 90 labels, whose bias and weight are then those of a single document.
        return LabelStatistics.from_targets(self.train.targets, degenerate="ignore")

    @cached_property
    def label_groups(self) -> dict[str, Tensor]:
        """bool [C] masks ``head``, ``medium`` and ``tail``."""
        return self.statistics.frequency_groups(head=self.head, tail=self.tail)._asdict()

    def describe(self) -> str:
        documents = sum(map(len, self.splits.values()))
        labels = sum(len(split.targets.col) for split in self.splits.values())
        return (
            f"{self.name}: {documents:,} documents ({len(self.train):,} train, {len(self.validation):,} validation, "
            f"{len(self.test):,} test), {self.num_labels:,} labels, {labels / documents:.2f} labels a document"
        )


def hash_documents(label_names: Sequence[str], documents: Iterable[tuple[str, Sequence[int]]]) -> str:
    """16 hex digits that name texts and label ids, in order."""
    digest = hashlib.sha256("\n".join(label_names).encode())
    for text, ids in documents:
        digest.update(f"{list(ids)}{text}".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()[:16]


class CorpusError(Exception):
    """A corpus cannot be loaded; the message says which file, what was expected and what came."""
