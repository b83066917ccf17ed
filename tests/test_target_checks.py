"""Tables and lists as targets; what could be read in two ways is refused."""

import numpy as np
import pandas as pd
import pytest
import torch

from fused_balanced_loss import SparseTargets
from fused_balanced_loss.target_checks import check_binary
from fused_balanced_loss.targets import as_sparse_targets

IDS = [[0, 2], [], [2, 3, 5], [5], [0, 1, 2, 3, 4, 5], []]
DENSE = torch.tensor([[int(label in row) for label in range(6)] for row in IDS], dtype=torch.uint8)


@pytest.mark.parametrize("num_labels", [1, 2, 3])
def test_rows_that_may_be_multi_hot_are_refused(num_labels):
    dense = torch.eye(num_labels, dtype=torch.int64).repeat(2, 1)[1:] * (num_labels > 1) + (num_labels == 1)
    for rows in (dense.tolist(), list(dense), list(dense.numpy())):
        with pytest.raises(ValueError, match=rf"rows of {num_labels} entries that are all 0 or 1.*np.array\(targets\)"):
            SparseTargets.from_lists(rows, num_labels)
    assert torch.equal(SparseTargets.from_dense(dense).to_dense(torch.int64), dense)


@pytest.mark.parametrize(
    ("ids", "num_labels"), [([[0, 1], [0, 1]], 2), ([[1, 0], [0]], 2), ([[1, 0], []], 2), ([[0]], 1), ([[1, 0]], 3)]
)
def test_rows_that_are_label_ids_are_taken(ids, num_labels):
    assert SparseTargets.from_lists(ids, num_labels).to_lists() == [sorted(row) for row in ids]


def test_a_series_of_label_ids_is_no_table():
    assert as_sparse_targets(pd.Series(IDS), 6) == SparseTargets.from_lists(IDS, 6)


def test_a_table_needs_no_number_of_labels():
    table = pd.DataFrame(DENSE.numpy(), columns=list("abcdef"))
    assert as_sparse_targets(table) == SparseTargets.from_lists(IDS, 6)
    with pytest.raises(TypeError, match=r"targets: expected an array of numbers, got DataFrame"):
        as_sparse_targets(table.astype({"b": str}))
    with pytest.raises(ValueError, match=r"targets: expected 0 or 1, got nan at \[1, 2\]"):
        as_sparse_targets(table.astype({"c": float}).replace({"c": {0.0: np.nan}}))


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32, torch.uint8])
def test_check_binary_looks_only_where_the_mask_is_true(dtype):
    dense, mask = (
        torch.tensor([[0, 1, 2], [1, 7, 0]]).to(dtype),
        torch.tensor([[True, True, False], [True, False, True]]),
    )
    check_binary(dense, mask)
    check_binary(dense, torch.tensor([True, False, False]).expand(2, -1))
    with pytest.raises(ValueError, match=r"^targets: expected 0 or 1, got 7.* at \[1, 1\]"):
        check_binary(dense, torch.tensor([True, True, False]))
    with pytest.raises(ValueError, match=r"^targets: expected 0 or 1, got 2.* at \[0, 2\]"):
        check_binary(dense)
    check_binary(torch.full((2, 2), float("nan")), torch.zeros(2, 2, dtype=torch.bool))
