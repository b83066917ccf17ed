"""Launches that make the terms of the rows before the loss; see ``problem.RowTerms``."""

from __future__ import annotations

from torch import Tensor

from ..kernels.dense_sums import dense_sums_kernel, narrow_sums_kernel
from ..kernels.element import LOG2E, STEEP
from ..kernels.labels import row_terms_kernel
from ..spec import LossSpec
from .problem import Problem
from .triton_counters import counters
from .triton_grid import NARROW, Layout
from .triton_launch import launch_of

# Elements of a program that takes several narrow rows.
_NARROW_ELEMENTS = 2048
# Bytes of targets that a warp loads at once: two accesses of 16 bytes a thread.
_BLOCK_BYTES = 1024
_MOST_PARTS = 64


def slope_factor(spec: LossSpec) -> float:
    """What 1 / (sum of 1/n over the row's labels) is multiplied by, as ``balanced_element`` takes it; 1 where it takes
    the sum itself."""
    assert spec.mu is not None
    # In the order of the kernel, so that both agree on what is steep.
    if spec.beta * spec.mu * LOG2E.value >= STEEP.value:
        return 1.0
    return -spec.beta * LOG2E.value


class SparseTerms:
    """weight_slope and tile_offsets from label ids."""

    def __init__(self, problem: Problem, cut: Layout, rebalanced: bool) -> None:
        logits = problem.logits
        constants = {
            "SLOPE_FACTOR": slope_factor(problem.spec) if rebalanced else 0.0,
            "REBALANCED": rebalanced,
            "TILE": cut.vector * cut.groups,
            "VECTOR": cut.vector,
            "BLOCK": 64,
        }
        _, crow, col = problem.target_tensors()
        assert crow is not None and col is not None
        dtypes = crow.dtype, col.dtype, problem.dtype if rebalanced else None
        self._launch = launch_of(row_terms_kernel, logits.device, dtypes, tuple(constants.items()))
        self._rebalanced = rebalanced
        self._num_rows, self._num_labels = logits.shape
        self._numbers = logits.stride(0), cut.num_tiles

    def launch(self, problem: Problem, weight_slope: Tensor | None, tile_offsets: Tensor | None) -> None:
        _, crow, col = problem.target_tensors()
        assert col is not None
        # A chunk of a classifier has 1/n, but its row sums are given.
        inverse_frequency = problem.labels.inverse_frequency if self._rebalanced else None
        self._launch(
            (self._num_rows, 1, 1),
            (crow, col, inverse_frequency, weight_slope, tile_offsets),
            (self._num_labels, col.shape[0], *self._numbers),
        )


class DenseTerms:
    """weight_slope from dense targets [N, C]; for rebalanced weights alone."""

    def __init__(self, problem: Problem, at_once: int) -> None:
        logits, targets = problem.logits, problem.target_tensors()[0]
        assert targets is not None
        num_rows, num_labels = targets.shape
        where, dtypes = logits.device, (targets.dtype, problem.dtype)
        self._num_rows = num_rows
        self._narrow = num_labels <= NARROW
        if self._narrow:
            columns = max(16, 1 << (num_labels - 1).bit_length())
            constants: tuple[tuple[str, float], ...] = (
                ("SLOPE_FACTOR", slope_factor(problem.spec)),
                ("ROWS", _NARROW_ELEMENTS // columns),
                ("COLUMNS", columns),
            )
            self._launch = launch_of(narrow_sums_kernel, where, dtypes, constants)
            self._grid = -(-num_rows // (_NARROW_ELEMENTS // columns)), 1, 1
            self._numbers: tuple[int, ...] = num_rows, num_labels, targets.stride(0)
            return
        block = _BLOCK_BYTES // targets.element_size()
        blocks = -(-num_labels // block)
        # Few rows are cut into many parts, so that each processor has some.
        part_blocks = max(-(-blocks // _MOST_PARTS), blocks * num_rows // (2 * at_once), 1)
        self._num_parts = -(-blocks // part_blocks)
        constants = (
            ("SLOPE_FACTOR", slope_factor(problem.spec)),
            ("VECTOR", 16 // targets.element_size()),
            ("BLOCK", block),
            ("MOST_PARTS", _MOST_PARTS),
        )
        self._launch = launch_of(dense_sums_kernel, where, dtypes, constants, num_warps=1)
        self._grid = num_rows * self._num_parts, 1, 1
        self._numbers = num_labels, targets.stride(0), self._num_parts, part_blocks

    def launch(self, problem: Problem, weight_slope: Tensor | None, tile_offsets: Tensor | None) -> None:
        targets, inverse_frequency = problem.target_tensors()[0], problem.labels.inverse_frequency
        if self._narrow:
            self._launch(self._grid, (targets, inverse_frequency, weight_slope), self._numbers)
            return
        assert weight_slope is not None
        partial = weight_slope.new_empty(self._grid[0])
        count = counters(problem.logits.device, self._num_rows, not problem.in_operator)
        self._launch(self._grid, (targets, inverse_frequency, weight_slope, partial, count), self._numbers)
