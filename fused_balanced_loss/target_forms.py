"""Conversion of every form that targets come in."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .input_values import describe
from .targets import SparseTargets


def as_sparse_targets(targets: Any, num_labels: int | None = None) -> SparseTargets:
    """SparseTargets from any form that targets come in.

    Args:
        targets: SparseTargets; a dense [N, C] tensor, array or table such as a pandas DataFrame; a scipy or torch
            sparse matrix [N, C]; or an iterable of each sample's label ids.
        num_labels: C; needed for label ids, compared with the others' number of labels.

    Raises:
        TypeError, ValueError: naming what was expected and what came. SparseTargets are checked, too: they may have
            been made without.
    """
    if isinstance(targets, SparseTargets):
        targets.check()
        sparse = targets
    elif isinstance(targets, Tensor) and targets.layout != torch.strided and not targets.is_nested:
        sparse = SparseTargets.from_torch(targets)
    elif hasattr(targets, "tocsr"):
        sparse = SparseTargets.from_scipy(targets)
    elif isinstance(targets, (Tensor, np.ndarray)) or _is_table(targets):
        sparse = SparseTargets.from_dense(targets)
    elif isinstance(targets, Iterable):
        if num_labels is None:
            raise TypeError("num_labels: expected the number of labels, which lists of label ids do not tell")
        sparse = SparseTargets.from_lists(targets, num_labels)
    else:
        raise TypeError(f"targets: expected an [N, C] array or lists of label ids, got {describe(targets)}")
    if num_labels is not None and sparse.num_labels != num_labels:
        raise ValueError(f"targets: expected {num_labels} labels, got {sparse.num_labels}")
    return sparse


def _is_table(targets: Any) -> bool:
    """Whether it is two-dimensional and becomes an array, as a DataFrame does. A Series of lists is not."""
    return hasattr(targets, "__array__") and len(getattr(targets, "shape", ())) == 2
