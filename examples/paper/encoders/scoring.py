"""Threshold by validation, and the scores of a run, from a stream of logits."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from corpora.corpus import Corpus, Split
from report.errors import confused_pairs
from torch import Tensor

from encoders.encoder import Json
from fused_balanced_loss import SparseTargets
from fused_balanced_loss.metrics import PAPER_THRESHOLDS, Activation, ThresholdedF1, predict_labels


class Validation(NamedTuple):
    """The threshold of the best micro-F1 (the lowest of equals), that micro-F1, and the scores by label group."""

    threshold: float
    micro_f1: float
    scores: Json


def score_validation(
    corpus: Corpus,
    logits: Iterable[Tensor],
    thresholds: Any = PAPER_THRESHOLDS,
    activation: Activation = "sigmoid",
) -> Validation:
    """From batches of logits [n, C] over all of ``corpus.validation``, in order."""
    f1 = ThresholdedF1(corpus.num_labels, thresholds, corpus.label_groups, activation=activation)
    for batch, targets in _with_targets(corpus.validation, logits):
        f1.update(batch, targets)
    threshold, micro = f1.best()
    return Validation(threshold, micro, f1.scores(threshold))


def score_test(corpus: Corpus, logits: Iterable[Tensor], threshold: float, activation: Activation = "sigmoid") -> Json:
    """From batches of logits [n, C] over all of ``corpus.test``, in order.

    Returns:
        ``test`` and ``test_by_instance``: micro- and macro-F1 by group; ``confused``: the most frequent pairs of a
        missed and a wrongly predicted label; ``predictions``: SparseTargets, which the experiment puts into a file.
    """
    f1 = ThresholdedF1(
        corpus.num_labels, [threshold], corpus.label_groups, corpus.instance_groups, activation=activation
    )

    def counted() -> Iterator[Tensor]:
        for batch, targets in _with_targets(corpus.test, logits):
            f1.update(batch, targets)
            yield batch

    predictions = predict_labels(counted(), threshold, activation=activation)
    return {
        "test": f1.scores(threshold),
        "test_by_instance": f1.instance_scores(threshold),
        "confused": confused_pairs(predictions, corpus.test.targets, corpus.label_names),
        "predictions": predictions,
    }


def _with_targets(split: Split, logits: Iterable[Tensor]) -> Iterator[tuple[Tensor, SparseTargets]]:
    start = 0
    for batch in logits:
        yield batch, split.targets[start : start + len(batch)]
        start += len(batch)
    if start != len(split):
        raise ValueError(f"logits: expected {len(split)} rows, those of the split, got {start}")
