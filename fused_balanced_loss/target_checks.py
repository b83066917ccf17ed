"""Checks of targets as a caller gives them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from .input_values import INT64_MAX, describe

_MULTI_HOT = "pass np.array(targets) if the rows are multi-hot"


def ids_of_row(row: Iterable[int], k: int, num_labels: int) -> np.ndarray:
    """The label ids of row ``k`` as int64 [n], in the order given; SparseTargets checks their range.

    Raises TypeError for ids that are no integers, and ValueError for ids outside int64.
    """
    try:
        if isinstance(row, Tensor):
            row = row.detach().cpu().numpy()
        ids = np.asarray(row if isinstance(row, np.ndarray) else list(row))
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"targets: expected integer label ids, got {describe(row)} in row {k}") from error
    if ids.size == 0:
        return np.empty(0, np.int64)
    whole = ids.dtype.kind in "iu" or all(isinstance(label, int) and not isinstance(label, bool) for label in ids.flat)
    if ids.ndim != 1 or not whole:
        hint = f"; {_MULTI_HOT}" if ids.dtype.kind in "bf" and ids.shape == (num_labels,) else ""
        raise TypeError(
            f"targets: expected integer label ids, got {ids.dtype} of shape {list(ids.shape)} in row {k}{hint}"
        )
    if ids.dtype.kind != "i" and (int(ids.max()) > INT64_MAX or int(ids.min()) < 0):
        wrong = ids.min() if int(ids.min()) < 0 else ids.max()
        raise ValueError(f"targets: expected label ids in [0, {num_labels}), got {wrong} in row {k}")
    return ids.astype(np.int64)


def refuse_multi_hot(rows: Sequence[np.ndarray], num_labels: int) -> None:
    """Raises ValueError where rows of label ids may be rows of 0 and 1, one for each label.

    That is so where every row has ``num_labels`` entries and all entries are 0 or 1. Rows that ascend are taken as ids:
    a batch of two labels may hold nothing but [0, 1].
    """
    if not len(rows) or any(len(row) != num_labels for row in rows):
        return
    entries = np.stack(rows)
    ascending = (entries[:, 1:] > entries[:, :-1]).all() and (entries < num_labels).all()
    if ((entries == 0) | (entries == 1)).all() and not ascending:
        raise ValueError(
            f"targets: expected label ids, got rows of {num_labels} entries that are all 0 or 1, for {num_labels} "
            f"labels; {_MULTI_HOT}, or sort the ids of each row if they are label ids"
        )


def check_binary(dense: Tensor, mask: Tensor | None = None) -> None:
    """Raises ValueError unless every entry of ``dense`` is 0 or 1, naming the first other; waits for the device.

    mask: bool, of a shape that expands to that of ``dense``; entries where it is False may have any value.
    """
    if dense.dtype == torch.bool or dense.numel() == 0:
        return
    _refuse((dense != 0) & (dense != 1), "0 or 1", dense, mask)


def check_shares(dense: Tensor, mask: Tensor | None = None) -> None:
    """As ``check_binary``, but for floating-point targets any number in [0, 1] will do."""
    if not dense.dtype.is_floating_point:
        check_binary(dense, mask)
        return
    _refuse(~((dense >= 0) & (dense <= 1)), "a number in [0, 1]", dense, mask)


def _refuse(wrong: Tensor, expected: str, dense: Tensor, mask: Tensor | None) -> None:
    if mask is not None:
        wrong = wrong & mask
    if bool(wrong.any()):
        where = tuple(torch.nonzero(wrong)[0].tolist())
        raise ValueError(f"targets: expected {expected}, got {dense[where].item()} at {list(where)}")


def check_indices(matrix: Tensor) -> Tensor:
    """The sparse tensor, if its indices lie in its shape; PyTorch converts others by reading outside their memory."""
    try:
        if matrix.layout == torch.sparse_coo:
            torch.sparse_coo_tensor(matrix._indices(), matrix._values(), matrix.shape, check_invariants=True)
            return matrix
        by_row = matrix.layout in (torch.sparse_csr, torch.sparse_bsr)
        compressed = matrix.crow_indices() if by_row else matrix.ccol_indices()
        plain = matrix.col_indices() if by_row else matrix.row_indices()
        return torch.sparse_compressed_tensor(
            compressed, plain, matrix.values(), matrix.shape, layout=matrix.layout, check_invariants=True
        )
    except RuntimeError as error:
        raise ValueError(f"targets: expected valid indices in {describe(matrix)}: {error}") from error
