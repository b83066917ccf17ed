"""Threshold by validation, the scores of a run from a stream of logits, and which labels it confuses."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from corpora.corpus import Corpus, Split
from files import Json
from numpy.typing import NDArray
from scipy.sparse import csr_array
from torch import Tensor

from fused_balanced_loss import SparseTargets
from fused_balanced_loss.metrics import (
    Activation,
    CalibrationError,
    LabelAveragePrecision,
    RankingMetrics,
    SampleAveragePrecision,
    ThresholdedF1,
    label_propensities,
    label_report,
    predict_labels,
    threshold_grid,
)

# Grids of thresholds by name.
GRIDS = {name: tuple(threshold_grid(name).tolist()) for name in ("paper", "full")}
KS = (1, 3, 5)
# Validation documents with a label from which it gets a threshold of its own; below, chance chooses it.
LEAST_SUPPORT = 10
# Thresholds that differ from label to label.
REFINED = ("by_group", "by_label")

# Missed labels whose pairs are counted at once, which bounds the memory of a model that predicts nearly everything.
BLOCK = 256


def score_validation(
    corpus: Corpus, logits: Iterable[Tensor], grid: Any = GRIDS["paper"], activation: Activation = "sigmoid"
) -> Json:
    """From batches of logits [n, C] over all of ``corpus.validation``, in order.

    Returns:
        ``protocol``: :func:`_choice` by the grid; for probabilities ``own``, too, by the full grid, with
        ``by_group`` and ``by_label``, the thresholds [C] that are best for each group of labels and for each label
        of ``LEAST_SUPPORT`` documents and more; other labels take their group's.
    """
    grids = {"protocol": np.asarray(grid, np.float64)}
    if activation == "sigmoid":
        grids["own"] = np.array(GRIDS["full"])
    every = np.unique(np.concatenate(list(grids.values())))
    f1 = ThresholdedF1(corpus.num_labels, every, corpus.label_groups, activation=activation)
    for batch, targets in _with_targets(corpus.validation, logits):
        f1.update(batch, targets)
    found = {name: _choice(f1, one) for name, one in grids.items()}
    if "own" in found:
        by_group, (support, _, _) = f1.best_by_group(), f1.label_counts(every[0])
        by_label = np.where(support >= LEAST_SUPPORT, f1.best_by_label(min_support=LEAST_SUPPORT), by_group)
        found["own"] |= {"by_group": torch.from_numpy(by_group), "by_label": torch.from_numpy(by_label)}
    return found


def _choice(f1: ThresholdedF1, grid: NDArray[np.float64]) -> Json:
    """``threshold`` of the best micro-F1 (the lowest of equals), that ``micro_f1``, the ``validation`` scores by label
    group, and whether the threshold is ``at_edge``: beyond the grid there may be a better one."""
    micro = np.where(np.isin(f1.thresholds, grid), f1.micro(), -1.0)
    threshold = float(f1.thresholds[micro == micro.max()].min())
    at_edge = len(grid) > 1 and threshold in (grid.min(), grid.max())
    return {
        "threshold": threshold,
        "micro_f1": float(micro.max()),
        "validation": f1.scores(threshold),
        "at_edge": bool(at_edge),
    }


def score_test(corpus: Corpus, logits: Iterable[Tensor], threshold: float, activation: Activation = "sigmoid") -> Json:
    """From batches of logits [n, C] over all of ``corpus.test``, in order.

    Returns:
        ``test`` and ``test_by_instance``: micro- and macro-F1 by group; ``confused``: the most frequent pairs of a
        missed and a wrongly predicted label; ``predictions``: SparseTargets, which the experiment puts into a file.
    """
    f1 = _counter(corpus, [threshold], activation)

    def counted() -> Iterator[Tensor]:
        for batch, targets in _with_targets(corpus.test, logits):
            f1.update(batch, targets)
            yield batch

    predictions = predict_labels(counted(), threshold, activation=activation)
    return {
        **_scores(f1, threshold),
        "confused": confused_pairs(predictions, corpus.test.targets, corpus.label_names),
        "predictions": predictions,
    }


def score_own(corpus: Corpus, logits: Iterable[Tensor], own: Json) -> Json:
    """Test at the thresholds that validation has chosen from the full grid: ``own``, ``by_group`` and ``by_label``;
    ``ranking``, the figures without a threshold; and ``labels``, a LabelRow for each label at the own threshold.

    own: what :func:`score_validation` gives under this name.
    """
    chosen = {"own": own["threshold"], **{name: own[name].numpy() for name in REFINED}}
    f1 = _counter(corpus, np.unique(np.concatenate([np.atleast_1d(one) for one in chosen.values()])))
    ranking = _Ranking(corpus)
    for batch, targets in _with_targets(corpus.test, logits):
        for metric in (f1, *ranking.metrics):
            metric.update(batch, targets)
    scored = {name: _scores(f1, thresholds) for name, thresholds in chosen.items()}
    scored["own"] |= {name: own[name] for name in ("threshold", "validation", "at_edge")}
    labels = label_report(f1, own["threshold"], corpus.label_names)
    return {**scored, "ranking": ranking.scores(), "labels": labels}


class _Ranking:
    """Figures that no threshold enters, in [0, 1]."""

    def __init__(self, corpus: Corpus) -> None:
        number, statistics = corpus.num_labels, corpus.statistics
        # The propensities' formula needs 3 training documents.
        propensities = label_propensities(statistics) if statistics.num_samples >= 3 else None
        self.top = RankingMetrics(number, [k for k in KS if k <= number], propensities=propensities)
        self.by_sample, self.by_label = SampleAveragePrecision(number), LabelAveragePrecision(number)
        self.calibration = CalibrationError(number)
        self.metrics = (self.top, self.by_sample, self.by_label, self.calibration)

    def scores(self) -> dict[str, float]:
        precision = {"mAP": self.by_sample.value(), "label mAP": self.by_label.macro()}
        return {**self.top.scores(), **precision, "ECE": self.calibration.value()}


def _counter(corpus: Corpus, thresholds: Any, activation: Activation = "sigmoid") -> ThresholdedF1:
    groups = corpus.label_groups, corpus.instance_groups
    return ThresholdedF1(corpus.num_labels, thresholds, *groups, activation=activation)


def _scores(f1: ThresholdedF1, threshold: Any) -> Json:
    return {"test": f1.scores(threshold), "test_by_instance": f1.instance_scores(threshold)}


def epochs_since_best(epochs: Sequence[Json]) -> int:
    """Epochs since validation was last better, at the threshold of the protocol or at the method's own."""
    kinds = [kind for kind in ("micro_f1", "own_micro_f1") if epochs and all(kind in one for one in epochs)]
    scores = [[one[kind] for one in epochs] for kind in kinds]
    return min((len(found) - 1 - found.index(max(found)) for found in scores), default=0)


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
