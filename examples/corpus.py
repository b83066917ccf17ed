"""A multi-label text corpus in three parts."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from sklearn.model_selection import train_test_split

VALIDATION_SEED = 123


@dataclass(frozen=True)
class Split:
    """Documents and each document's label ids."""

    texts: list[str]
    label_ids: list[list[int]]

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True)
class Corpus:
    """``notice`` says why the figures are none of Reuters, and is None on Reuters."""

    name: str
    label_names: list[str]
    train: Split
    validation: Split
    test: Split
    notice: str | None = None

    @property
    def fingerprint(self) -> str:
        """Hash of all documents and labels, in order."""
        digest = hashlib.sha256("\n".join(self.label_names).encode())
        for split in (self.train, self.validation, self.test):
            for text, ids in zip(split.texts, split.label_ids, strict=True):
                digest.update(f"{ids}{text}".encode())
        return digest.hexdigest()[:16]

    def describe(self) -> str:
        parts = (self.train, self.validation, self.test)
        documents = sum(map(len, parts))
        labels = sum(len(ids) for part in parts for ids in part.label_ids)
        return (
            f"{self.name}: {documents:,} documents ({len(self.train):,} train, {len(self.validation):,} validation, "
            f"{len(self.test):,} test), {len(self.label_names)} labels, {labels / documents:.2f} labels a document"
        )


def hold_out_validation(texts: Sequence[str], label_ids: Sequence[list[int]], size: int) -> tuple[Split, Split]:
    """Training and validation parts by the published split."""
    parts = train_test_split(texts, label_ids, test_size=size, random_state=VALIDATION_SEED)
    return Split(parts[0], parts[2]), Split(parts[1], parts[3])
