"""Which label is missed, and which is predicted in its place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.sparse import csr_array

from fused_balanced_loss import SparseTargets

# Missed labels whose pairs are counted at once, which bounds the memory of a model that predicts nearly everything.
BLOCK = 256


def confused_pairs(
    predictions: SparseTargets, targets: SparseTargets, label_names: Sequence[str], top: int = 50
) -> list[dict[str, Any]]:
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
        found += zip(
            (-count.data[kept]).tolist(), (count.row[kept] + start).tolist(), count.col[kept].tolist(), strict=True
        )
        found = sorted(found)[:top]
    return [
        {"missed": label_names[missed_label], "predicted": label_names[label], "count": -count}
        for count, missed_label, label in found
    ]
