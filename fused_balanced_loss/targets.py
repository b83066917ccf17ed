"""Sparse targets: the labels of each sample as sorted ids in compressed sparse rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .input_values import as_integer, as_tensor, describe
from .label_ids import ids_of_row, refuse_multi_hot

_COMPRESSED_ROWS = (torch.sparse_csr, torch.sparse_bsr)
_COMPRESSED = (*_COMPRESSED_ROWS, torch.sparse_csc, torch.sparse_bsc)


class SparseTargets:
    """Targets [N, C] as label ids: row ``k`` carries the labels ``col[crow[k]:crow[k + 1]]``, ascending.

    :meth:`from_lists`, :meth:`from_dense`, :meth:`from_scipy` and :meth:`from_torch` make one from other forms, and
    check what they are given. The constructor checks too, and therefore waits for the device that holds its tensors.

    Args:
        crow: int64 [N + 1], offsets into ``col``.
        col: int64 [nnz], label ids in [0, num_labels), strictly ascending within a row.
        num_labels: C.
        check: False leaves out the checks, for tensors that have passed them; :meth:`check` makes them later.

    Raises:
        TypeError, ValueError: naming what was wrong and in which row.
    """

    __slots__ = ("col", "crow", "num_labels")

    def __init__(self, crow: Tensor, col: Tensor, num_labels: int, *, check: bool = True) -> None:
        self.crow = crow
        self.col = col
        self.num_labels = int(num_labels) if isinstance(num_labels, np.integer) else num_labels
        if check:
            self.check()

    def check(self) -> None:
        """Raises unless these are valid targets; waits for the device that holds the tensors.

        Raises:
            TypeError: for tensors of another dtype or number of dimensions.
            ValueError: for offsets that do not rise from 0 to nnz, and for label ids that are out of range, repeated or
                out of order, naming the first such row.
        """
        for name in ("crow", "col"):
            value = getattr(self, name)
            if not isinstance(value, Tensor) or value.dtype != torch.int64 or value.dim() != 1:
                raise TypeError(f"{name}: expected a one-dimensional int64 tensor, got {describe(value)}")
        self.num_labels = as_integer("num_labels", self.num_labels, at_least=1)
        if self.crow.device != self.col.device:
            raise ValueError(f"col: expected the device of crow, {self.crow.device}, got {self.col.device}")
        self.crow, self.col = (part.resolve_neg().contiguous() for part in (self.crow, self.col))
        crow, col = self.crow.cpu().numpy(), self.col.cpu().numpy()
        # Neighbours are compared, not subtracted: a difference of int64 can overflow and look like a rise.
        if len(crow) < 1 or crow[0] != 0 or crow[-1] != len(col) or (crow[1:] < crow[:-1]).any():
            raise ValueError(f"crow: expected offsets that rise from 0 to {len(col)}, the length of col")
        rows = np.repeat(np.arange(len(crow) - 1), np.diff(crow))
        wrong = np.flatnonzero((col < 0) | (col >= self.num_labels))
        if wrong.size:
            at = wrong[0]
            raise ValueError(
                f"targets: expected label ids in [0, {self.num_labels}), got {col[at]} in row {rows[at]} "
                f"({wrong.size} out of range in all)"
            )
        same_row = rows[1:] == rows[:-1]
        wrong = np.flatnonzero(same_row & (col[1:] <= col[:-1]))
        if wrong.size:
            at = wrong[0] + 1
            how = "twice" if col[at] == col[at - 1] else "out of order"
            raise ValueError(
                f"targets: expected each label id once in a row, ascending; got {col[at]} {how} in row {rows[at]}"
            )

    @classmethod
    def from_lists(cls, ids: Iterable[Iterable[int]], num_labels: int) -> SparseTargets:
        """From each sample's label ids, in any order.

        Raises:
            TypeError: for ids that are not integers.
            ValueError: for ids that are out of range or twice in a sample, naming the row; and for rows that may as
                well be multi-hot: all have C entries, all entries are 0 or 1, and not all rows ascend.
        """
        if not isinstance(ids, Iterable):
            raise TypeError(f"targets: expected each sample's label ids, got {describe(ids)}")
        num_labels = as_integer("num_labels", num_labels, at_least=1)
        rows = [ids_of_row(row, k, num_labels) for k, row in enumerate(ids)]
        refuse_multi_hot(rows, num_labels)
        crow = torch.zeros(len(rows) + 1, dtype=torch.int64)
        torch.cumsum(torch.tensor([len(row) for row in rows], dtype=torch.int64), 0, out=crow[1:])
        col = np.concatenate([np.sort(row) for row in rows]) if rows else np.empty(0, np.int64)
        return cls(crow, torch.from_numpy(col), num_labels)

    @classmethod
    def from_dense(cls, targets: Tensor | np.ndarray) -> SparseTargets:
        """From a dense [N, C] tensor, array or table of 0 and 1 in any real dtype; a tensor's device is kept.

        Raises:
            TypeError: for anything that is no array of numbers.
            ValueError: for another number of dimensions, or for other values.
        """
        dense = as_tensor("targets", targets)
        if dense.dim() != 2 or dense.shape[1] == 0:
            raise ValueError(f"targets: expected [N, C] with C >= 1, got shape {list(dense.shape)}")
        if dense.is_complex():
            raise TypeError(f"targets: expected bool, integers or floating-point numbers, got {dense.dtype}")
        check_binary(dense)
        # The numbers are compared first, because nonzero does not take all dtypes.
        row, col = torch.nonzero(dense != 0, as_tuple=True)
        return cls(_crow_from_rows(row, len(dense)), col, dense.shape[1], check=False)

    @classmethod
    def from_scipy(cls, matrix: Any) -> SparseTargets:
        """From a scipy sparse matrix or array [N, C] of 0 and 1; explicit zeros are dropped.

        Raises:
            TypeError: for another kind of object.
            ValueError: for another number of dimensions, or for other values.
        """
        if not hasattr(matrix, "tocsr"):
            raise TypeError(f"targets: expected a scipy sparse matrix, got {describe(matrix)}")
        if len(matrix.shape) != 2:
            raise ValueError(f"targets: expected a scipy sparse matrix [N, C], got shape {list(matrix.shape)}")
        csr = matrix.tocsr(copy=True)
        csr.sum_duplicates()
        check_binary(as_tensor("targets", csr.data))
        csr.eliminate_zeros()
        crow = torch.from_numpy(csr.indptr.astype(np.int64))
        return cls(crow, torch.from_numpy(csr.indices.astype(np.int64)), csr.shape[1])

    @classmethod
    def from_torch(cls, matrix: Tensor) -> SparseTargets:
        """From a torch sparse tensor [N, C] of 0 and 1, on its device; explicit zeros are dropped.

        The layout is COO, CSR, CSC, BSR or BSC, without dense dimensions.

        Raises:
            TypeError: for a dense tensor.
            ValueError: for other dimensions, for indices outside the tensor's shape, or for other values.
        """
        if not isinstance(matrix, Tensor) or matrix.layout not in (torch.sparse_coo, *_COMPRESSED):
            raise TypeError(f"targets: expected a sparse [N, C] tensor, got {describe(matrix)}")
        if matrix.dim() != 2 or matrix.dense_dim() != 0:
            raise ValueError(
                f"targets: expected a sparse [N, C] tensor without dense dimensions, got {describe(matrix)} "
                f"and {matrix.dense_dim()} dense dimensions"
            )
        coo = _checked(matrix.detach()).to_sparse_coo().coalesce()
        values = coo.values()
        check_binary(values)
        row, col = coo.indices()[:, values != 0]
        return cls(_crow_from_rows(row, matrix.shape[0]), col.contiguous(), matrix.shape[1])

    @property
    def shape(self) -> tuple[int, int]:
        return len(self), self.num_labels

    @property
    def device(self) -> torch.device:
        return self.col.device

    @property
    def rows(self) -> Tensor:
        """int64 [nnz], the row of each entry of ``col``."""
        count = self.crow.diff()
        return torch.repeat_interleave(torch.arange(len(self), device=self.device), count, output_size=len(self.col))

    def __len__(self) -> int:
        return self.crow.shape[0] - 1

    def __getitem__(self, index: slice | Sequence[int] | Tensor) -> SparseTargets:
        """Some of the rows, in the order asked for: a slice, or a sequence or tensor of row numbers."""
        if isinstance(index, slice):
            index = range(len(self))[index]
        rows = as_tensor("index", list(index) if isinstance(index, range) else index).to(self.device)
        if rows.dim() != 1:
            raise TypeError(
                f"index: expected a slice or a sequence of row numbers, got {describe(index)}; "
                "targets[k:k + 1] is row k"
            )
        if rows.dtype == torch.bool and len(rows) == len(self):
            rows = rows.nonzero()[:, 0]
        elif len(rows) and (rows.dtype == torch.bool or rows.is_floating_point() or rows.is_complex()):
            raise TypeError(
                f"index: expected integers, or bool of length {len(self)}, got {rows.dtype} of length {len(rows)}"
            )
        rows = rows.long()
        if rows.numel() and not (-len(self) <= int(rows.min()) and int(rows.max()) < len(self)):
            raise IndexError(f"index: expected row numbers in [{-len(self)}, {len(self)}), got {rows.tolist()[:8]}")
        rows = rows % max(len(self), 1)
        count = self.crow.diff()[rows]
        crow = torch.zeros(len(rows) + 1, dtype=torch.int64, device=self.device)
        torch.cumsum(count, 0, out=crow[1:])
        entry = torch.arange(int(crow[-1]), device=self.device)
        shift = torch.repeat_interleave(self.crow[rows] - crow[:-1], count)
        return SparseTargets(crow, self.col[entry + shift], self.num_labels, check=False)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> SparseTargets:
        """The same targets on ``device``."""
        crow, col = (part.to(device, non_blocking=non_blocking) for part in (self.crow, self.col))
        return SparseTargets(crow, col, self.num_labels, check=False)

    def contiguous(self) -> SparseTargets:
        """The same targets, whose tensors a kernel can read by pointer; itself where they are such."""
        parts = (self.crow, self.col)
        # Tracing knows no negative bit, and compiled code never sets one.
        negative = not torch.compiler.is_compiling() and any(part.is_neg() for part in parts)
        if not negative and all(part.is_contiguous() for part in parts):
            return self
        crow, col = (part.resolve_neg().contiguous() for part in parts)
        return SparseTargets(crow, col, self.num_labels, check=False)

    def pin_memory(self) -> SparseTargets:
        """The same targets in page-locked memory; DataLoader calls this with ``pin_memory=True``."""
        return SparseTargets(self.crow.pin_memory(), self.col.pin_memory(), self.num_labels, check=False)

    def to_dense(self, dtype: torch.dtype = torch.uint8) -> Tensor:
        """Dense [N, C] tensor of 0 and 1."""
        if self.device.type == "cpu" and not torch.compiler.is_compiling():
            # NumPy takes a quarter of the time of PyTorch's operators, which dominates for a small batch.
            crow = self.crow.numpy()
            rows = np.repeat(np.arange(len(self)), crow[1:] - crow[:-1])
            array = np.zeros(self.shape, bool)
            array[rows, self.col.numpy()[crow[0] : crow[-1]]] = True
            return torch.from_numpy(array).to(dtype)
        dense = torch.zeros(self.shape, dtype=dtype, device=self.device)
        dense[self.rows, self.col] = 1
        return dense

    def to_scipy(self) -> Any:
        """scipy.sparse.csr_array [N, C] of float32 ones."""
        from scipy.sparse import csr_array

        ones = np.ones(len(self.col), np.float32)
        return csr_array((ones, self.col.cpu().numpy(), self.crow.cpu().numpy()), shape=self.shape)

    def to_lists(self) -> list[list[int]]:
        """Each sample's label ids, ascending."""
        return [row.tolist() for row in torch.split(self.col.cpu(), self.crow.diff().tolist())]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SparseTargets):
            return NotImplemented
        return (
            self.num_labels == other.num_labels
            and torch.equal(self.crow, other.crow)
            and torch.equal(self.col, other.col)
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"SparseTargets(shape={list(self.shape)}, nnz={len(self.col)}, device={str(self.device)!r})"


def check_binary(dense: Tensor, mask: Tensor | None = None) -> None:
    """Raises ValueError unless every entry is 0 or 1, naming the first other; waits for the device.

    Args:
        dense: targets of any shape and dtype.
        mask: bool, of a shape that expands to that of ``dense``; entries where it is False may have any value.
    """
    if dense.dtype == torch.bool or dense.numel() == 0:
        return
    wrong = (dense != 0) & (dense != 1)
    if mask is not None:
        wrong &= mask
    if bool(wrong.any()):
        where = tuple(torch.nonzero(wrong)[0].tolist())
        raise ValueError(f"targets: expected 0 or 1, got {dense[where].item()} at {list(where)}")


def _checked(matrix: Tensor) -> Tensor:
    """The sparse tensor, if its indices lie in its shape; PyTorch converts others by reading outside their memory."""
    try:
        if matrix.layout == torch.sparse_coo:
            torch.sparse_coo_tensor(matrix._indices(), matrix._values(), matrix.shape, check_invariants=True)
            return matrix
        by_row = matrix.layout in _COMPRESSED_ROWS
        compressed = matrix.crow_indices() if by_row else matrix.ccol_indices()
        plain = matrix.col_indices() if by_row else matrix.row_indices()
        return torch.sparse_compressed_tensor(
            compressed, plain, matrix.values(), matrix.shape, layout=matrix.layout, check_invariants=True
        )
    except RuntimeError as error:
        raise ValueError(f"targets: expected valid indices in {describe(matrix)}: {error}") from error


def _crow_from_rows(row: Tensor, num_rows: int) -> Tensor:
    """Offsets int64 [num_rows + 1] of entries whose rows ascend."""
    crow = torch.zeros(num_rows + 1, dtype=torch.int64, device=row.device)
    torch.cumsum(torch.bincount(row, minlength=num_rows), 0, out=crow[1:])
    return crow
