"""Which labels a sample carries, as sorted label ids in compressed sparse rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor


class SparseTargets:
    """Targets [N, C] as label ids: row ``k`` carries the labels ``col[crow[k]:crow[k + 1]]``, ascending.

    Build one with :meth:`from_lists`, :meth:`from_dense`, :meth:`from_scipy` or :meth:`from_torch`, which check what
    they are given; the constructor checks too, and therefore waits for the device that holds its tensors.

    Args:
        crow: int64 [N + 1], offsets into ``col``.
        col: int64 [nnz], label ids in [0, num_labels), strictly ascending within a row.
        num_labels: C.
        check: False skips the checks, for tensors that have passed them.

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
        for name in ("crow", "col"):
            value = getattr(self, name)
            if not isinstance(value, Tensor) or value.dtype != torch.int64 or value.dim() != 1:
                raise TypeError(f"{name}: expected a one-dimensional int64 tensor, got {_describe(value)}")
        if isinstance(self.num_labels, bool) or not isinstance(self.num_labels, int) or self.num_labels < 1:
            raise ValueError(f"num_labels: expected an integer >= 1, got {self.num_labels!r}")
        if self.crow.device != self.col.device:
            raise ValueError(f"col: expected the device of crow, {self.crow.device}, got {self.col.device}")
        self.crow, self.col = self.crow.contiguous(), self.col.contiguous()
        crow, col = self.crow.cpu().numpy(), self.col.cpu().numpy()
        if len(crow) < 1 or crow[0] != 0 or crow[-1] != len(col) or (np.diff(crow) < 0).any():
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
            TypeError, ValueError: for ids that are not integers, out of range, or twice in a sample.
        """
        if not isinstance(ids, Iterable):
            raise TypeError(f"targets: expected each sample's label ids, got {_describe(ids)}")
        rows = [_row_of_ids(row, k) for k, row in enumerate(ids)]
        crow = torch.zeros(len(rows) + 1, dtype=torch.int64)
        torch.cumsum(torch.tensor([len(row) for row in rows], dtype=torch.int64), 0, out=crow[1:])
        col = np.concatenate(rows) if rows else np.empty(0, np.int64)
        return cls(crow, torch.from_numpy(col), num_labels)

    @classmethod
    def from_dense(cls, targets: Tensor | np.ndarray) -> SparseTargets:
        """From a dense [N, C] array of 0 and 1, on its device.

        Raises:
            TypeError, ValueError: for another number of dimensions, or for other values.
        """
        dense = as_tensor("targets", targets)
        if dense.dim() != 2 or dense.shape[1] == 0:
            raise ValueError(f"targets: expected [N, C] with C >= 1, got shape {list(dense.shape)}")
        check_binary(dense)
        # Not of the numbers: nonzero does not know all dtypes.
        row, col = torch.nonzero(dense != 0, as_tuple=True)
        return cls(_crow_from_rows(row, len(dense)), col, dense.shape[1], check=False)

    @classmethod
    def from_scipy(cls, matrix: Any) -> SparseTargets:
        """From a scipy sparse matrix or array [N, C] of 0 and 1; explicit zeros are dropped.

        Raises:
            TypeError, ValueError: for another kind of object or other values.
        """
        if not hasattr(matrix, "tocsr"):
            raise TypeError(f"targets: expected a scipy sparse matrix, got {_describe(matrix)}")
        csr = matrix.tocsr(copy=True)
        csr.sum_duplicates()
        _check_binary_values(csr.data)
        csr.eliminate_zeros()
        crow = torch.from_numpy(csr.indptr.astype(np.int64))
        return cls(crow, torch.from_numpy(csr.indices.astype(np.int64)), csr.shape[1])

    @classmethod
    def from_torch(cls, matrix: Tensor) -> SparseTargets:
        """From a torch sparse CSR or COO tensor [N, C] of 0 and 1, on its device; explicit zeros are dropped.

        Raises:
            TypeError, ValueError: for a dense tensor or other values.
        """
        if (
            not isinstance(matrix, Tensor)
            or matrix.layout not in (torch.sparse_csr, torch.sparse_coo)
            or matrix.dim() != 2
        ):
            raise TypeError(f"targets: expected a sparse [N, C] tensor, got {_describe(matrix)}")
        coo = matrix.to_sparse_coo().coalesce()
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
                f"index: expected a slice or a sequence of row numbers, got {_describe(index)}; "
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
        if all(part.is_contiguous() for part in parts):
            # Tracing knows no negative bit, and compiled code never sets one.
            if torch.compiler.is_compiling() or not any(part.is_neg() for part in parts):
                return self
        crow, col = (part.resolve_neg().contiguous() for part in parts)
        return SparseTargets(crow, col, self.num_labels, check=False)

    def pin_memory(self) -> SparseTargets:
        """The same targets in page-locked memory; DataLoader calls this with ``pin_memory=True``."""
        return SparseTargets(self.crow.pin_memory(), self.col.pin_memory(), self.num_labels, check=False)

    def to_dense(self, dtype: torch.dtype = torch.uint8) -> Tensor:
        """Dense [N, C] tensor of 0 and 1."""
        if self.device.type == "cpu" and not torch.compiler.is_compiling():
            # A quarter of the operators' host time, which is all there is for a small batch.
            crow = self.crow.numpy()
            rows = np.repeat(np.arange(len(self)), crow[1:] - crow[:-1])
            array = np.zeros(self.shape, bool)
            array[rows, self.col.numpy()[crow[0] : crow[-1]]] = True
            return torch.from_numpy(array).to(dtype)
        dense = torch.zeros(self.shape, dtype=dtype, device=self.device)
        dense.view(-1)[self.rows * self.num_labels + self.col] = 1
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


def as_sparse_targets(targets: Any, num_labels: int | None = None) -> SparseTargets:
    """SparseTargets from any form that targets come in.

    Args:
        targets: SparseTargets, a dense array or tensor [N, C], a scipy or torch sparse matrix, or an iterable of each
            sample's label ids.
        num_labels: C; needed for label ids, checked against the others.

    Raises:
        TypeError, ValueError: naming what was expected and what came.
    """
    if isinstance(targets, SparseTargets):
        sparse = targets
    elif isinstance(targets, Tensor) and targets.layout != torch.strided:
        sparse = SparseTargets.from_torch(targets)
    elif isinstance(targets, (Tensor, np.ndarray)):
        sparse = SparseTargets.from_dense(targets)
    elif hasattr(targets, "tocsr"):
        sparse = SparseTargets.from_scipy(targets)
    elif isinstance(targets, Iterable):
        if num_labels is None:
            raise TypeError("num_labels: expected the number of labels, which lists of label ids do not tell")
        sparse = SparseTargets.from_lists(targets, num_labels)
    else:
        raise TypeError(f"targets: expected an [N, C] array or lists of label ids, got {_describe(targets)}")
    if num_labels is not None and sparse.num_labels != num_labels:
        raise ValueError(f"targets: expected {num_labels} labels, got {sparse.num_labels}")
    return sparse


class SparseTargetsCollator:
    """Collates samples for a DataLoader, with each sample's list of label ids becoming a row of SparseTargets.

    A sample is a mapping with the label ids under ``label_key``, or a tuple whose last entry is the label ids. The rest
    goes through ``collate``, which gets the samples without their label ids.

    Args:
        num_labels: C.
        label_key: key of the label ids in mapping samples, in and out.
        collate: collates the rest; default :func:`torch.utils.data.default_collate`. A transformers data collator
            fits.
    """

    def __init__(
        self,
        num_labels: int,
        *,
        label_key: str = "labels",
        collate: Callable[[list[Any]], Any] = torch.utils.data.default_collate,
    ) -> None:
        self.num_labels = num_labels
        self.label_key = label_key
        self.collate = collate

    def __call__(self, samples: Sequence[Any]) -> Any:
        first = samples[0]
        if isinstance(first, tuple):
            targets = SparseTargets.from_lists([sample[-1] for sample in samples], self.num_labels)
            return (*self.collate([sample[:-1] for sample in samples]), targets)
        if not hasattr(first, "keys") or self.label_key not in first:
            raise TypeError(
                f"samples: expected tuples ending in label ids, or mappings with key {self.label_key!r}, "
                f"got {type(first).__name__}" + (f" with keys {list(first.keys())}" if hasattr(first, "keys") else "")
            )
        targets = SparseTargets.from_lists([sample[self.label_key] for sample in samples], self.num_labels)
        rest = [{key: sample[key] for key in sample if key != self.label_key} for sample in samples]
        batch = self.collate(rest)
        batch[self.label_key] = targets
        return batch


def as_tensor(name: str, value: Any) -> Tensor:
    """torch.as_tensor, with an error that names the argument."""
    try:
        if isinstance(value, np.ndarray):
            value = np.ascontiguousarray(value)
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name}: expected an array of numbers, got {_describe(value)}") from error


def check_binary(dense: Tensor, mask: Tensor | None = None) -> None:
    """Raises ValueError unless every entry of ``dense`` is 0 or 1, where ``mask`` is True; waits for its device."""
    if dense.dtype == torch.bool or dense.numel() == 0:
        return
    wrong = (dense != 0) & (dense != 1)
    if mask is not None:
        wrong &= mask
    if bool(wrong.any()):
        where = tuple(torch.nonzero(wrong)[0].tolist())
        raise ValueError(f"targets: expected 0 or 1, got {dense[where].item()} at {list(where)}")


def _check_binary_values(values: np.ndarray) -> None:
    if values.dtype != np.bool_:
        check_binary(torch.from_numpy(np.ascontiguousarray(values)))


def _crow_from_rows(row: Tensor, num_rows: int) -> Tensor:
    crow = torch.zeros(num_rows + 1, dtype=torch.int64, device=row.device)
    torch.cumsum(torch.bincount(row, minlength=num_rows), 0, out=crow[1:])
    return crow


def _row_of_ids(row: Iterable[int], k: int) -> np.ndarray:
    if isinstance(row, Tensor):
        row = row.cpu().numpy()
    try:
        ids = np.asarray(row if isinstance(row, np.ndarray) else list(row))
    except (TypeError, ValueError) as error:
        raise TypeError(f"targets: expected integer label ids, got {_describe(row)} in row {k}") from error
    if ids.size == 0:
        return np.empty(0, np.int64)
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise TypeError(f"targets: expected integer label ids, got {ids.dtype} of shape {list(ids.shape)} in row {k}")
    return np.sort(ids.astype(np.int64))


def _describe(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a {value.layout} tensor of {value.dtype} with shape {list(value.shape)}"
    return type(value).__name__
