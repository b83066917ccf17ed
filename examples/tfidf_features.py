"""TF-IDF features, targets and label groups of a corpus, all fitted on its training part."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from corpus import Corpus, Split
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from sklearn.feature_extraction.text import TfidfVectorizer

from fused_balanced_loss import LabelStatistics, SparseTargets

HEAD, TAIL = 35, 8


@dataclass(frozen=True)
class TfidfSettings:
    """As scikit-learn's TfidfVectorizer names them; English stop words are left out."""

    sublinear_tf: bool = True
    min_df: int = 3


# The one that reproduces the published SVM.
SVM_TFIDF = TfidfSettings(sublinear_tf=False, min_df=1)


@dataclass(frozen=True)
class Part:
    """features: float32 [N, V]; targets: [N, C]; dense: the same targets as uint8."""

    features: csr_matrix
    targets: SparseTargets
    dense: NDArray[np.uint8]


@dataclass(frozen=True)
class Dataset:
    train: Part
    validation: Part
    test: Part
    statistics: LabelStatistics
    groups: dict[str, NDArray[np.bool_]]


def make_dataset(corpus: Corpus, settings: TfidfSettings) -> Dataset:
    """Features and targets of the three parts; label groups by training count."""
    vectorizer = TfidfVectorizer(
        stop_words="english", sublinear_tf=settings.sublinear_tf, min_df=settings.min_df, dtype=np.float32
    )
    vectorizer.fit(corpus.train.texts)
    num_labels = len(corpus.label_names)

    def part(split: Split) -> Part:
        targets = SparseTargets.from_lists(split.label_ids, num_labels)
        return Part(vectorizer.transform(split.texts), targets, targets.to_dense(torch.uint8).numpy())

    train = part(corpus.train)
    # Reuters' training part lacks one of the 90 labels, whose bias and weight are then those of a single document.
    statistics = LabelStatistics.from_targets(train.targets, degenerate="ignore")
    masks = statistics.frequency_groups(head=HEAD, tail=TAIL)
    groups = {"total": np.ones(num_labels, dtype=np.bool_)}
    groups |= {name: mask.numpy() for name, mask in masks._asdict().items()}
    return Dataset(train, part(corpus.validation), part(corpus.test), statistics, groups)
