"""Weights of labels from their counts, by name: what ``weight`` and ``pos_weight`` of the losses take."""

from __future__ import annotations

import math
import numbers
from typing import Literal, get_args

from torch import Tensor

from .label_statistics import LabelStatistics, class_balanced_weight
from .spec import check_choice

ClassWeights = Literal["neg_pos", "inv_freq", "effective_num"]
CLASS_WEIGHTS: tuple[str, ...] = get_args(ClassWeights)


def class_weights(
    statistics: LabelStatistics,
    name: ClassWeights,
    *,
    power: float = 1.0,
    beta: float = 0.999,
    cap: float | None = None,
) -> Tensor:
    """A weight for each label, from how many training samples carry it; timm's ``compute_class_weights``.

    ========================= ============================================ ================
    name                      weight of a label seen n times               is meant for
    ========================= ============================================ ================
    ``"neg_pos"``             ``((N_train - n) / n)**power``               ``pos_weight``
    ``"inv_freq"``            ``(N_train / n)**power``, scaled to mean 1   ``weight``
    ``"effective_num"``       ``(1 - beta) / (1 - beta**n)`` (Cui et al.,  ``weight``
                              CVPR 2019), scaled to mean 1
    ========================= ============================================ ================

    ``BalancedLoss(LossSpec(), pos_weight=class_weights(statistics, "neg_pos", power=0.5, cap=10))`` is then binary
    cross entropy that weighs the positives of rare labels more.

    Args:
        statistics: label counts of the training set. A label that no sample carries counts as one that one sample
            carries; a label that all carry, as one that all but one do (timm gives it the weight 0 for ``"neg_pos"``).
        name: which formula.
        power: the exponent of ``"neg_pos"`` and ``"inv_freq"``, >= 0; 0.5 weighs less steeply.
        beta: of ``"effective_num"``, in [0, 1).
        cap: the largest weight, > 0, applied last; None for none.

    Returns:
        float64 [C], on the CPU.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
    """
    if not isinstance(statistics, LabelStatistics):
        raise TypeError(f"statistics: expected LabelStatistics, got {type(statistics).__name__}")
    check_choice("name", name, CLASS_WEIGHTS)
    for setting, value in (("power", power), ("beta", beta), ("cap", cap)):
        number = isinstance(value, numbers.Real) and not isinstance(value, bool)
        if not number and not (setting == "cap" and value is None):
            raise TypeError(f"{setting}: expected a number, got {type(value).__name__} {value!r}")
    if not (math.isfinite(power) and power >= 0):
        raise ValueError(f"power: expected a finite number >= 0, got {power}")
    if not 0 <= beta < 1:
        raise ValueError(f"beta: expected a number in [0, 1), got {beta}")
    # NaN is refused too.
    if cap is not None and not cap > 0:
        raise ValueError(f"cap: expected a number > 0, got {cap}")
    counts = statistics.clamped_counts
    if name == "neg_pos":
        weights = ((statistics.num_samples - counts) / counts) ** power
    else:
        weights = (
            (statistics.num_samples / counts) ** power if name == "inv_freq" else class_balanced_weight(counts, beta)
        )
        weights = weights / weights.mean()
    if cap is not None:
        weights = weights.clamp(max=cap)
    if not bool(weights.isfinite().all()):
        raise ValueError(f"power: expected one with finite weights for these counts, got {power}")
    return weights
