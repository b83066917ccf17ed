"""Threshold by validation, the scores of a run from a stream of logits, and which labels it confuses."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from corpora.corpus import Corpus, Split
from files import Json
from scipy.sparse import csr_array
from torch import Tensor

from fused_balanced_loss import SparseTargets
from fused_balanced_loss.metrics import PAPER_THRESHOLDS, Activation, ThresholdedF1, predict_labels

# Missed labels whose pairs are counted at once, which bounds the memory of a model that predicts nearly everything.
BLOCK = 256


class Validation(NamedTuple):
    """The threshold of the best micro-F1 (the lowest of equals), that micro-F1, and the scores by label group."""

    threshold: float
    micro_f1: float
    scores: Json


def score_validation(
    corpus: Corpus, logits: Iterable[Tensor], thresholds: Any = PAPER_THRESHOLDS, activation: Activation = "sigmoid"
) -> Validation:
    """From batches of logits [n, C] over all of ``corpus.validation``, in order."""
    f1 = ThresholdedF1(corpus.num_labels, thresholds, corpus.label_groups, activation=activation)
    for batch, targets in _with_targets(corpus.validation, logits):
        f1.update(batch, targets)
    threshold, micro, _ = f1.best()
    return Validation(threshold, micro, f1.scores(threshold))


def score_test(corpus: Corpus, logits: Iterable[Tensor], threshold: float, activation: Activation = "sigmoid") -> Json:
    """From batches of logits [n, C] over all of ``corpus.test``, in order.

    Returns:
        ``test`` and ``test_by_instance``: micro- and macro-F1 by group; ``confused``: the most frequent pairs of a
        missed and a wrongly predicted label; ``predictions``: SparseTargets, which the experiment puts into a file.
    """
    groups = corpus.label_groups, corpus.instance_groups
    f1 = ThresholdedF1(corpus.num_labels, [threshold], *groups, activation=activation)

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


def confused_pairs(
    predictions: SparseTargets, targets: SparseTargets, label_names: Sequence[str], top: int = 50
) -> list[Json]:
    """The most frequent pairs of a true label that was missed and a label that was wrongly predicted, by instance.

    Args:
        predictions, targets: [N, C], predicted and true labels of the same instances.
        label_names: C names.
        top: most pairs given.

    Returns:
        ``[{"missed": name, "predicted": name, "count": instances}, ...]``, most frequent first, equals in label order.

    Raises:
        ValueError: for shapes that disagree.
    """
    shape = (targets.shape[0], targets.num_labels)
    if predictions.shape != targets.shape or len(label_names) != shape[1]:
        raise ValueError(
            f"predictions, label_names: expected shape {list(shape)} and {shape[1]} names, those of targets, "
            f"got {list(predictions.shape)} and {len(label_names)}"
        )
    true, predicted = (csr_array(part.to_scipy(), dtype=np.int32) for part in (targets, predictions))
    hit = true.multiply(predicted)
    missed, wrong = csr_array((true - hit).T), csr_array(predicted - hit)
    found: list[tuple[int, int, int]] = []
    for start in range(0, shape[1], BLOCK):
        count = (missed[start : start + BLOCK] @ wrong).tocoo()
        # Those with the top counts, with all that are equal to the last of them.
        least = max(1, int(np.partition(count.data, -top)[-top])) if len(count.data) > top else 1
        kept = count.data >= least
        rows = (-count.data[kept]).tolist(), (count.row[kept] + start).tolist(), count.col[kept].tolist()
        found = sorted([*found, *zip(*rows, strict=True)])[:top]
    return [{"missed": label_names[row], "predicted": label_names[col], "count": -count} for count, row, col in found]
