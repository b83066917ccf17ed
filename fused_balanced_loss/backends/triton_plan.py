"""How the launches for one kind of call go: all that depends on shapes, dtypes and settings, made once and kept."""

from __future__ import annotations

import ctypes
import math
from typing import Any

import torch
from torch import Tensor

from ..kernels.logits_loss import logits_loss_kernel
from ..spec import LossSpec
from . import device as devices
from .aligned_copies import MOST_COPIED, aligned_copies
from .constants import constants_cache, constants_key
from .kept import keep
from .problem import Problem, RowTerms
from .triton_grid import FRINGE, RESIDENT, RESIDENT_MIXED, grid, layout, reciprocal
from .triton_launch import Launch, launch_of
from .triton_terms import DenseTerms, SparseTerms, slope_factor

# Programs whose sums one of them adds up: all of them at one counter would queue.
TEAM = 128
# Up to so many waves of programs each finds its own labels and row sums: a launch less. With more rows that is more
# work than a launch.
WAVES = 1
# Plans kept: a training loop needs one or two, and each number of labels or samples another.
_MOST_KEPT = 256
# Of what the kernels count in int32; a tile may reach beyond the last label.
_LARGEST = (1 << 31) - (1 << 16)
_NO_TERMS = RowTerms(None, None)


def kernel_spec(spec: LossSpec) -> tuple[float, ...]:
    """The settings of the loss at the places that kernels/element.py gives them."""
    return (
        *spec.gammas,
        spec.probability_margin,
        spec.lam,
        spec.alpha,
        spec.mu or 0.0,
        spec.positive_factor,
        spec.negative_factor,
        spec.label_smoothing,
        spec.poly_epsilon,
        spec.beta,
    )


def num_teams(num_programs: int) -> int:
    return -(-num_programs // TEAM)


class Plan:
    """The launches of problems of one kind: shapes, strides, dtypes, device, spec, and which arguments are there."""

    def __init__(self, problem: Problem) -> None:
        logits, labels = problem.logits, problem.labels
        dense, crow, col = problem.target_tensors()
        mask = problem.label_mask
        self.spec = problem.spec
        self.device = logits.device
        self.dtype = problem.dtype
        self.csr, self.rebalanced = dense is None, labels.inverse_frequency is not None
        self.num_rows, self.num_labels = logits.shape
        self.cut = cut = layout(self.num_labels, logits.stride(0), logits.element_size())
        resident = RESIDENT_MIXED if problem.mixed else RESIDENT
        at_once = devices.num_processors(self.device) * resident[logits.element_size()]
        programs = grid(self.num_rows, self.num_labels, cut, at_once)
        self.num_programs = programs.num_programs
        self.grid = self.num_programs, 1, 1
        copy_stride = cut.num_tiles * cut.groups * cut.vector
        self._check_limits(problem)
        few = self.num_rows * cut.num_tiles <= WAVES * at_once
        self.find_labels = self.csr and few
        self.slope = "sum" if problem.row_sum is not None else "here" if self.find_labels else "made"
        make_slope = self.rebalanced and self.slope == "made"
        self.num_counters = 1 + num_teams(self.num_programs)
        self.num_partials = self.num_programs + num_teams(self.num_programs)
        self._num_offsets = self.num_rows * (cut.num_tiles + 1) if self.csr and not self.find_labels else 0
        self._num_slopes = self.num_rows if make_slope else 0
        self.strides = (
            logits.stride(0),
            0 if dense is None else dense.stride(0),
            0 if mask is None else mask.stride(0),
        )
        self.numbers = (
            cut.num_tiles,
            programs.num_fringe,
            self.num_programs,
            programs.rows_each,
            programs.num_strips,
            *reciprocal(programs.num_strips),
        )
        given = (dense, crow, col, *labels, problem.row_weight, mask)
        self._dtypes = (logits.dtype, *(None if tensor is None else tensor.dtype for tensor in given))
        self._constants = {
            "CSR": self.csr,
            "SLOPE": self.slope,
            "FIND_LABELS": self.find_labels,
            "HAS_BIAS": labels.bias is not None,
            "REBALANCED": self.rebalanced,
            "HAS_LABEL_WEIGHT": labels.weight is not None,
            "HAS_POSITIVE_WEIGHT": labels.positive_weight is not None,
            "HAS_ROW_WEIGHT": problem.row_weight is not None,
            "HAS_MASK": mask is not None,
            "MIXED": problem.mixed,
            "ALIGNED_TARGETS": dense is not None and (dense.stride(0) - logits.stride(0)) % cut.vector == 0,
            "COPIES": False,
            "PTX": logits.dtype != torch.float64 and devices.has_ptx(self.device),
            "PERIOD": cut.period,
            "VECTOR": cut.vector,
            "GROUPS": cut.groups,
            "FRINGE": FRINGE,
            "TEAM": TEAM,
        }
        self._terms: SparseTerms | DenseTerms | None = None
        self.makes_terms = bool(self._num_offsets or self._num_slopes)
        if self.makes_terms:
            self._terms = SparseTerms(problem, cut, make_slope) if self.csr else DenseTerms(problem, at_once)
        # Rows that all begin at a boundary need one copy of the constants, and that is the constants themselves.
        has_cache = constants_cache(problem.statistics, problem.label_weights) is not None
        num_bytes = cut.vector * copy_stride * self.dtype.itemsize * sum(part is not None for part in labels)
        self._may_copy = cut.period > 1 and has_cache and 0 < num_bytes <= MOST_COPIED
        self._constants_key = constants_key(self.spec, self.dtype, self.device)
        self._copies_key = cut.vector, copy_stride, self.spec.lam / math.log(2), *self._constants_key
        self._losses: dict[tuple[object, ...], Launch] = {}

    def _check_limits(self, problem: Problem) -> None:
        """Raises ValueError where a number that the kernels take as int32 is larger."""
        lanes = self.num_rows * 2 * self.cut.vector
        if max(self.num_labels, self.num_programs, lanes, _number_of(problem.target_tensors()[2])) >= _LARGEST:
            raise ValueError(
                f"logits: expected fewer rows, labels or label ids for impl='triton', got shape "
                f"{list(problem.logits.shape)}"
            )

    def make_terms(self, problem: Problem) -> RowTerms:
        """weight_slope and tile_offsets by a launch before the loss; where ``makes_terms``."""
        assert self._terms is not None
        weight_slope = tile_offsets = None
        if self._num_slopes:
            weight_slope = problem.logits.new_empty(self._num_slopes, dtype=self.dtype)
        if self._num_offsets:
            tile_offsets = problem.logits.new_empty(self._num_offsets, dtype=torch.int32)
        with devices.guard(self.device):
            self._terms.launch(problem, weight_slope, tile_offsets)
        return RowTerms(weight_slope, tile_offsets)

    def launch_loss(
        self,
        problem: Problem,
        want_value: str,
        upstream: Tensor | None,
        outputs: tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None],
        scale: float,
    ) -> None:
        """Computes the loss. outputs: value, gradient, and the scratch of the sum, partial and counters."""
        dense, crow, col = problem.target_tensors()
        weight_slope, tile_offsets = problem.row_terms or _NO_TERMS
        labels, gradient = problem.labels, outputs[1]
        copies = aligned_copies(problem, self._constants_key, self._copies_key) if self._may_copy else None
        of_elements = upstream is not None and upstream.dim() > 0
        kind = (
            want_value,
            copies is not None,
            gradient is not None and gradient.dtype,
            upstream is not None and upstream.dtype,
            of_elements,
        )
        launch = self._losses.get(kind)
        if launch is None:
            launch = self._losses[kind] = self._launch_of_loss(*kind)
        # The launcher takes numbers as float32.
        single = ctypes.c_float(scale).value if self.dtype == torch.float64 else scale
        with devices.guard(self.device):
            launch(
                self.grid,
                (
                    problem.logits,
                    dense,
                    crow,
                    col,
                    tile_offsets,
                    *(copies or labels),
                    weight_slope,
                    problem.row_sum,
                    problem.row_weight,
                    problem.label_mask,
                    upstream,
                    *outputs,
                ),
                (
                    self.num_rows,
                    self.num_labels,
                    _number_of(col),
                    *self.strides,
                    0 if gradient is None else gradient.stride(0),
                    *self.numbers,
                    single,
                    scale - single,
                ),
            )

    def _launch_of_loss(
        self,
        want_value: str,
        copies: bool,
        gradient: torch.dtype | bool,
        upstream: torch.dtype | bool,
        of_elements: bool,
    ) -> Launch:
        constants = {
            "SPEC": kernel_spec(self.spec),
            "SLOPE_FACTOR": slope_factor(self.spec) if self.rebalanced else 0.0,
            "WANT_VALUE": want_value,
            "WANT_GRADIENT": gradient is not False,
            "UPSTREAM": "" if upstream is False else "elements" if of_elements else "scalar",
            **self._constants,
        }
        constants["COPIES"] = copies
        dtypes = (*self._dtypes, gradient, upstream, self.makes_terms)
        return launch_of(logits_loss_kernel, self.device, dtypes, tuple(constants.items()), num_warps=1)


_plans: dict[tuple[Any, ...], Plan] = {}


def plan(problem: Problem) -> Plan:
    """The plan of a problem; kept for the next of its kind."""
    logits, labels = problem.logits, problem.labels
    dense, crow, col = problem.target_tensors()
    mask = problem.label_mask
    targets: tuple[Any, ...]
    if dense is None:
        assert crow is not None and col is not None
        targets = crow.dtype, col.dtype
    else:
        targets = dense.dtype, dense.stride(0)
    key = (
        logits.shape,
        logits.stride(0),
        logits.dtype,
        logits.device,
        targets,
        # A spec is told by identity, because hashing 13 numbers takes longer. The plan holds it, so no other can take
        # its place in memory.
        id(problem.spec),
        labels.bias is None,
        labels.inverse_frequency is None,
        labels.weight is None,
        labels.positive_weight is None,
        problem.row_weight is None,
        problem.row_sum is None,
        constants_cache(problem.statistics, problem.label_weights) is None,
        None if mask is None else mask.stride(0),
        TEAM,
        WAVES,
    )
    found = _plans.get(key)
    if found is None:
        found = Plan(problem)
        keep(_plans, key, found, _MOST_KEPT)
    return found


def _number_of(col: Tensor | None) -> int:
    return 0 if col is None else col.shape[0]
