"""The targets of scikit-learn's estimators, in all their forms, as SparseTargets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import issparse
from sklearn.utils import column_or_1d
from sklearn.utils.multiclass import check_classification_targets, type_of_target
from sklearn.utils.validation import check_array

from ...targets import SparseTargets


class Labels(NamedTuple):
    """What the targets of an estimator say besides the labels of each sample.

    classes: int64 [C], the numbers 0 to C - 1, for multi-label targets; else the sorted values of y.
    multilabel: whether a sample may carry any number of labels.
    sparse: whether predictions are sparse too.
    by_ids: whether they were lists of label ids.
    """

    classes: NDArray[Any]
    multilabel: bool
    sparse: bool
    by_ids: bool = False

    @property
    def num_columns(self) -> int:
        """The number of logits of a sample; two classes share one."""
        return 1 if not self.multilabel and len(self.classes) == 2 else len(self.classes)


def read_targets(y: Any, labels: Labels | None = None, classes: Any = None) -> tuple[Labels, SparseTargets]:
    """Targets [n, C], and what else they say.

    Args:
        y: see :meth:`fused_balanced_loss.integrations.sklearn.BalancedClassifier.fit`.
        labels: what earlier targets of the same estimator have said; the labels of these must be among theirs.
        classes: of targets whose labels are not known by themselves; None takes those that occur.

    Raises:
        ValueError: naming what was expected and what came.
    """
    if y is None:
        raise ValueError("BalancedClassifier requires y to be passed, but the target y is None")
    given = None if labels is None else labels.classes
    if classes is not None:
        asked = np.unique(np.asarray(classes))
        if given is not None and not np.array_equal(given, asked):
            raise ValueError(f"classes: expected those of the first call of partial_fit, got {asked}")
        given = asked
    if _is_id_lists(y, labels is not None and labels.by_ids):
        found = _from_id_lists(y, given)
    elif issparse(y):
        found = _from_indicator(y, sparse=True)
    else:
        array = check_array(y, ensure_2d=False, dtype=None, input_name="y", ensure_min_samples=1)
        check_classification_targets(array)
        kind = type_of_target(array)
        if kind.startswith("multilabel") or (array.ndim == 2 and array.shape[1] > 1 and _is_binary(array)):
            found = _from_indicator(array, sparse=False)
        elif kind.endswith("multioutput"):
            raise ValueError(f"y: Unknown label type: {kind}; expected 0 and 1 in the columns of [n_samples, n_labels]")
        else:
            found = _from_classes(column_or_1d(array, warn=True), given)
    _check_same(found[0], labels, given)
    return found


def tells_labels(y: Any) -> bool:
    """Whether targets tell the number of labels by themselves, as multi-hot ones do."""
    if issparse(y):
        return True
    return not _is_id_lists(y) and np.ndim(y) == 2 and np.shape(y)[1] > 1


def _is_id_lists(y: Any, before: bool = False) -> bool:
    """Whether it is each sample's label ids, and not a table of 0 and 1 nor one class a sample.

    ``before``: whether earlier targets were label ids, so that lists are no table.
    """
    if issparse(y) or (hasattr(y, "__array__") and getattr(y, "dtype", None) is not np.dtype(object)):
        return False
    if not isinstance(y, Sequence) and not (hasattr(y, "__array__") and len(getattr(y, "shape", ())) == 1):
        return False
    rows = list(y)
    if not rows or not all(isinstance(row, (Sequence, set, np.ndarray)) and not isinstance(row, str) for row in rows):
        return False
    if before or len({len(row) for row in rows}) > 1:
        return True
    # scikit-learn takes such lists for indicators. As label ids they would be two labels that all samples carry.
    return len(rows[0]) < 2 or not _is_binary(np.array([list(row) for row in rows]))


def _is_binary(array: NDArray[Any]) -> bool:
    return array.dtype.kind in "biuf" and bool(((array == 0) | (array == 1)).all())


def _from_id_lists(y: Any, classes: NDArray[Any] | None) -> tuple[Labels, SparseTargets]:
    rows = [sorted(row) if isinstance(row, set) else row for row in y]
    try:
        largest = max((int(max(row)) for row in rows if len(row)), default=0)
        targets = SparseTargets.from_lists(rows, largest + 1 if classes is None else len(classes))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"y: expected label ids, such as [[0, 2], [1]]; see MultiLabelBinarizer for others: {error}"
        ) from error
    return Labels(np.arange(targets.num_labels), True, True, True), targets


def _from_indicator(y: Any, sparse: bool) -> tuple[Labels, SparseTargets]:
    try:
        targets = SparseTargets.from_scipy(y) if sparse else SparseTargets.from_dense(y)
    except (TypeError, ValueError) as error:
        raise ValueError(f"y: expected 0 and 1 for each label: {error}") from error
    return Labels(np.arange(targets.num_labels), True, sparse), targets


def _from_classes(y: NDArray[Any], classes: NDArray[Any] | None) -> tuple[Labels, SparseTargets]:
    try:
        found = np.unique(y)
    except TypeError as error:
        raise ValueError(f"y: expected classes of one type: {error}") from error
    classes = found if classes is None else classes
    unknown = np.setdiff1d(found, classes)
    if len(unknown):
        raise ValueError(f"y: expected the classes {classes}, got {unknown[0]!r}")
    if len(classes) < 2:
        raise ValueError(f"y: expected samples of at least 2 classes, got 1 class: {classes}")
    labels = Labels(classes, False, False)
    number = np.searchsorted(classes, y)
    rows = [[0] if one else [] for one in number] if labels.num_columns == 1 else number[:, None]
    return labels, SparseTargets.from_lists(rows, labels.num_columns)


def _check_same(found: Labels, labels: Labels | None, classes: NDArray[Any] | None) -> None:
    if labels is not None and found.multilabel != labels.multilabel:
        kinds = {True: "labels of [n_samples, n_labels]", False: "one class of each sample"}
        raise ValueError(f"y: expected {kinds[labels.multilabel]}, as before, got {kinds[found.multilabel]}")
    if classes is None or not found.multilabel:
        return
    if len(classes) != len(found.classes):
        raise ValueError(f"y: expected {len(classes)} labels, as in classes, got {len(found.classes)}")
    if not np.array_equal(classes, found.classes):
        raise ValueError(f"classes: expected the label ids 0 to {len(classes) - 1}, got {classes}")
