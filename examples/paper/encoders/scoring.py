"""Threshold by validation, the scores of a run from a stream of logits, and which labels it confuses."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from corpora.corpus import Corpus, Split
from files import Json
from numpy.typing import NDArray
from scipy.sparse import csr_array
from torch import Tensor

from fused_balanced_loss import SparseTargets
from fused_balanced_loss.metrics import PAPER_THRESHOLDS, Activation, ThresholdedF1, predict_labels

# Grids of thresholds by name.
GRIDS = {
    "paper": tuple(PAPER_THRESHOLDS.tolist()),
    "full": tuple(number / 1000 for number in (*range(1, 10), *range(10, 1000, 10))),
}
FULL = np.array(GRIDS["full"])
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
        ``by_group`` and ``by_label``, the thresholds [C] that are best for each group of labels and for each label.
    """
    full = FULL if activation == "sigmoid" else np.array([])
    grid = np.asarray(grid, np.float64)
    f1 = ThresholdedF1(corpus.num_labels, np.union1d(grid, full), corpus.label_groups, activation=activation)
    for batch, targets in _with_targets(corpus.validation, logits):
        f1.update(batch, targets)
    found = {"protocol": _choice(f1, grid)}
    if len(full):
        found["own"] = {**_choice(f1, full), **refined_thresholds(f1, corpus.label_groups)}
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
    """Test at the thresholds that validation has chosen from the full grid: ``own``, ``by_group`` and ``by_label``.

    own: what :func:`score_validation` gives under this name.
    """
    shifts = {name: torch.logit(own[name]).float() for name in REFINED}
    counters = {"own": _counter(corpus, [own["threshold"]])}
    counters |= {name: _counter(corpus, [0.0], "none") for name in shifts}
    for batch, targets in _with_targets(corpus.test, logits):
        counters["own"].update(batch, targets)
        for name, shift in shifts.items():
            # A probability is above its label's threshold where the logit is above the threshold's.
            counters[name].update(batch.float() - shift.to(batch.device), targets)
    chosen = {name: own[name] for name in ("threshold", "validation", "at_edge")}
    scored = {name: _scores(f1, 0.0) for name, f1 in counters.items() if name != "own"}
    return {"own": {**chosen, **_scores(counters["own"], own["threshold"])}, **scored}


def _counter(corpus: Corpus, thresholds: Any, activation: Activation = "sigmoid") -> ThresholdedF1:
    groups = corpus.label_groups, corpus.instance_groups
    return ThresholdedF1(corpus.num_labels, thresholds, *groups, activation=activation)


def _scores(f1: ThresholdedF1, threshold: float) -> Json:
    return {"test": f1.scores(threshold), "test_by_instance": f1.instance_scores(threshold)}


def refined_thresholds(f1: ThresholdedF1, groups: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """float64 [C] by ``by_group`` and ``by_label``: the thresholds of the best micro-F1 of each group of labels, and of
    each label; a label that validation does not have takes its group's."""
    by_group = torch.full((f1.num_labels,), f1.best()[0], dtype=torch.float64)
    for name, mask in groups.items():
        if mask.any():
            micro = f1.micro(name)
            by_group[mask] = float(f1.thresholds[micro == micro.max()].min())
    return {"by_group": by_group, "by_label": by_group.clone()}


def epochs_since_best(epochs: Sequence[Json]) -> int:
    """Epochs since validation was last better, at the threshold of the protocol or at the method's own."""
    kinds = ("micro_f1", "own_micro_f1")
    scores = [found for kind in kinds if len(found := [one[kind] for one in epochs if kind in one]) == len(epochs)]
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
