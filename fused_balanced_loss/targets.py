"""Sparse targets: the labels of each sample as sorted ids in compressed sparse rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .input_values import as_integer, as_tensor, describe
from .target_checks import check_binary, check_indices, ids_of_row, refuse_multi_hot

_SPARSE = (torch.sparse_coo, torch.sparse_csr, torch.sparse_bsr, torch.sparse_csc, torch.sparse_bsc)


class SparseTargets:
    """Targets [N, C] as label ids: row ``k`` carries the labels ``col[crow[k]:crow[k + 1]]``, ascending.

    The constructor checks, and therefore waits for the device that holds its tensors; so do the methods that make one
    from other forms.

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
        """Raises TypeError or ValueError unless these are valid targets, naming the first row with a wrong label id.

        Waits for the device that holds the tensors.
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
            TypeError, ValueError: for ids that are no integers, out of range or twice in a sample, naming the row; and
                for rows that may as well be multi-hot: all have C entries, all are 0 or 1, and not all rows ascend.
        """
        if not isinstance(ids, Iterable):
            raise TypeError(f"targets: expected each sample's label ids, got {describe(ids)}")
        num_labels = as_integer("num_labels", num_labels, at_least=1)
        rows = [ids_of_row(row, k, num_labels) for k, row in enumerate(ids)]
        refuse_multi_hot(rows, num_labels)
        crow = row_offsets(torch.tensor([len(row) for row in rows], dtype=torch.int64))
        col = np.concatenate([np.empty(0, np.int64), *(np.sort(row) for row in rows)])
        return cls(crow, torch.from_numpy(col), num_labels)

    @classmethod
    def from_padded(cls, ids: Tensor, num_labels: int, *, padding: int = -1) -> SparseTargets:
        """From each sample's label ids in a tensor [N, K], ascending, on its device; ``padding`` is no label.

        Waits for the device. ``SparseTargetsCollator(num_labels, pad_to=K)`` makes such tensors.

        Raises:
            TypeError, ValueError: for anything else, and for ids out of range, repeated or out of order.
        """
        if not isinstance(ids, Tensor) or ids.dim() != 2 or ids.is_floating_point() or ids.dtype == torch.bool:
            raise TypeError(f"ids: expected an integer tensor [N, K], got {describe(ids)}")
        if isinstance(padding, bool) or not isinstance(padding, int) or 0 <= padding < num_labels:
            raise ValueError(f"padding: expected an integer outside [0, {num_labels}), got {padding!r}")
        present = ids != padding
        return cls(row_offsets(present.sum(1)), ids[present].to(torch.int64), num_labels)

    @classmethod
    def from_dense(cls, targets: Tensor | np.ndarray) -> SparseTargets:
        """From a dense [N, C] tensor, array or table of 0 and 1 in any real dtype; a tensor's device is kept.

        Raises:
            TypeError, ValueError: for anything else, another number of dimensions, and other values.
        """
        dense = as_tensor("targets", targets)
        if dense.dim() != 2 or dense.shape[1] == 0:
            raise ValueError(f"targets: expected [N, C] with C >= 1, got shape {list(dense.shape)}")
        if dense.is_complex():
            raise TypeError(f"targets: expected bool, integers or floating-point numbers, got {dense.dtype}")
        check_binary(dense)
        # The numbers are compared first, because nonzero does not take all dtypes.
        carried = dense != 0
        return cls(row_offsets(carried.sum(1)), carried.nonzero(as_tuple=True)[1], dense.shape[1], check=False)

    @classmethod
    def from_scipy(cls, matrix: Any) -> SparseTargets:
        """From a scipy sparse matrix or array [N, C] of 0 and 1; explicit zeros are dropped.

        Raises:
            TypeError, ValueError: for anything else, another number of dimensions, and other values.
        """
        if not hasattr(matrix, "tocsr"):
            raise TypeError(f"targets: expected a scipy sparse matrix, got {describe(matrix)}")
        if len(matrix.shape) != 2:
            raise ValueError(f"targets: expected a scipy sparse matrix [N, C], got shape {list(matrix.shape)}")
        coo = matrix.tocoo()
        values = as_tensor("targets", coo.data)
        if not (values.is_complex() or values.dtype == torch.bool):
            # PyTorch adds the duplicates of some dtypes only.
            values = values.double()
        indices = torch.from_numpy(np.stack([coo.row, coo.col]).astype(np.int64))
        return cls.from_torch(torch.sparse_coo_tensor(indices, values, matrix.shape, check_invariants=False))

    @classmethod
    def from_torch(cls, matrix: Tensor) -> SparseTargets:
        """From a torch sparse tensor [N, C] of 0 and 1, on its device; explicit zeros are dropped.

        The layout is COO, CSR, CSC, BSR or BSC, without dense dimensions.

        Raises:
            TypeError, ValueError: for anything else, indices outside the tensor's shape, and other values.
        """
        if not isinstance(matrix, Tensor) or matrix.layout not in _SPARSE:
            raise TypeError(f"targets: expected a sparse [N, C] tensor, got {describe(matrix)}")
        if matrix.dim() != 2 or matrix.dense_dim() != 0:
            raise ValueError(
                f"targets: expected a sparse [N, C] tensor without dense dimensions, got {describe(matrix)} "
                f"and {matrix.dense_dim()} dense dimensions"
            )
        coo = check_indices(matrix.detach()).to_sparse_coo().coalesce()
        values = coo.values()
        check_binary(values)
        row, col = coo.indices()[:, values != 0]
        crow = row_offsets(torch.bincount(row, minlength=matrix.shape[0]))
        return cls(crow, col.contiguous(), matrix.shape[1])

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

    def __getitem__(self, index: slice | Sequence[int] | np.ndarray | Tensor) -> SparseTargets:
        """Some of the rows, in the order asked for: a slice, or a sequence or tensor of row numbers."""
        chosen: Any = index
        try:
            if not isinstance(index, slice):
                chosen = np.asarray(index.cpu() if isinstance(index, Tensor) else index)
                chosen = chosen if chosen.size else chosen.astype(np.int64)
            numbers = np.arange(len(self))[chosen]
        except (IndexError, TypeError, ValueError) as error:
            raise IndexError(
                f"index: expected row numbers in [{-len(self)}, {len(self)}), got {describe(index)}: {error}"
            ) from error
        if numbers.ndim != 1:
            raise TypeError(
                f"index: expected a slice or a sequence of row numbers, got {describe(index)}; "
                "targets[k:k + 1] is row k"
            )
        rows = torch.from_numpy(numbers.copy()).to(self.device)
        count = self.crow.diff()[rows]
        crow = row_offsets(count)
        entry = torch.arange(int(crow[-1]), device=self.device)
        shift = torch.repeat_interleave(self.crow[rows] - crow[:-1], count)
        return SparseTargets(crow, self.col[entry + shift], self.num_labels, check=False)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> SparseTargets:
        """The same targets on ``device``."""
        return self._of_each(lambda part: part.to(device, non_blocking=non_blocking))

    def contiguous(self) -> SparseTargets:
        """The same targets, whose tensors a kernel can read by pointer; itself where they are such."""
        crow, col = self.crow, self.col
        # Tracing knows no negative bit, and compiled code never sets one.
        if (
            crow.is_contiguous()
            and col.is_contiguous()
            and (torch.compiler.is_compiling() or not (crow.is_neg() or col.is_neg()))
        ):
            return self
        return self._of_each(lambda part: part.resolve_neg().contiguous())

    def pin_memory(self) -> SparseTargets:
        """The same targets in page-locked memory; DataLoader calls this with ``pin_memory=True``."""
        return self._of_each(Tensor.pin_memory)

    def _of_each(self, function: Callable[[Tensor], Tensor]) -> SparseTargets:
        return SparseTargets(function(self.crow), function(self.col), self.num_labels, check=False)

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
        same = torch.equal(self.crow, other.crow) and torch.equal(self.col, other.col)
        return same and self.num_labels == other.num_labels

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"SparseTargets(shape={list(self.shape)}, nnz={len(self.col)}, device={str(self.device)!r})"


def as_sparse_targets(targets: Any, num_labels: int | None = None) -> SparseTargets:
    """SparseTargets from any form that :meth:`LabelStatistics.from_targets` takes, checked.

    ``num_labels`` is C: needed for label ids, compared with the others' number of labels. Raises TypeError or
    ValueError.
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


def row_offsets(counts: Tensor) -> Tensor:
    """``crow``, int64 [N + 1], of rows with ``counts`` [N] entries."""
    return torch.nn.functional.pad(counts.cumsum(0), (1, 0))
