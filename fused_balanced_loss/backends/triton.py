"""Launches of the Triton kernels."""

from __future__ import annotations

import ctypes
import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..kernels.labels import row_terms_kernel
from ..kernels.logits_loss import logits_loss_kernel, scale_kernel
from ..spec import LossSpec
from . import device
from .problem import Problem, RowTerms, compute_dtype, gradient_like

# Rows narrower than this many elements are not worth a fringe.
_NARROW = 256
# A program is one warp: few tiles hold a positive, so a warp rarely diverges. 8 elements a thread are 16 bytes of half
# precision, one access.
WARP_SIZE = 64 if torch.version.hip else 32
_THREAD = 8
TILE = _THREAD * WARP_SIZE
# Elements of a fringe program.
FRINGE = 64
# Programs whose sums one of them adds up: all of them at one counter would queue.
TEAM = 128


class _Layout(NamedTuple):
    """How rows are cut into tiles; see ``logits_loss_kernel``."""

    vector: int
    groups: int
    period: int
    num_tiles: int


def prepare(problem: Problem) -> Problem:
    """The problem with the terms of its rows, which the forward and the backward share."""
    return problem._replace(row_terms=_row_terms(problem))


def value(problem: Problem, reduction: str, scale: float = 1.0) -> Tensor:
    """Loss: [N, C] for reduction "none", else ``scale`` times the sum of its elements."""
    loss, _ = _launch(problem, "elements" if reduction == "none" else "sum", scale)
    return loss


def gradient(problem: Problem, upstream: Tensor, scale: float = 1.0) -> Tensor:
    """Gradient [N, C] of the logits, times ``scale`` and ``upstream`` (no dimensions, or [N, C])."""
    _, gradient = _launch(problem, "", scale, upstream=upstream, gradient=gradient_like(problem.logits))
    return gradient


def value_and_gradient(problem: Problem, scale: float, out: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """``scale`` times the sum of the loss, and its gradient [N, C], written to ``out`` where that is given."""
    return _launch(problem, "sum", scale, gradient=gradient_like(problem.logits) if out is None else out)


def scale_gradient(gradient: Tensor, upstream: Tensor) -> None:
    """Multiplies ``gradient`` in place by ``upstream`` (no dimensions); the device finds out whether that is 1."""
    num_rows, num_labels = gradient.shape
    block = 1024
    programs = min(num_rows * -(-num_labels // block), 4 * device.num_processors(gradient.device))
    with device.guard(gradient.device):
        scale_kernel[(programs,)](gradient, upstream, num_rows, num_labels, gradient.stride(0), BLOCK=block)


def layout(num_labels: int, logits_stride: int, itemsize: int, warp_size: int = WARP_SIZE) -> _Layout:
    """Tiles for rows of this width and stride: 16 bytes an access wherever rows are wide enough for it to pay."""
    vector = 16 // itemsize if num_labels >= _NARROW else 1
    period = vector // math.gcd(vector, logits_stride)
    tile = min(_THREAD * warp_size, max(32, 1 << (num_labels - 1).bit_length()))
    return _Layout(vector, tile // vector, period, -(-num_labels // tile))


def kernel_spec(spec: LossSpec) -> tuple[float, ...]:
    """The settings of the loss at the places that kernels/element.py gives them."""
    return (
        *spec.gammas,
        spec.probability_margin,
        spec.lam,
        spec.alpha,
        spec.beta * spec.mu,
        spec.positive_factor,
        spec.negative_factor,
    )


def _num_teams(num_programs: int) -> int:
    return -(-num_programs // TEAM)


def _row_terms(problem: Problem) -> RowTerms:
    logits, labels = problem.logits, problem.labels
    dense, crow, col = problem.target_tensors()
    csr, rebalanced = dense is None, labels.inverse_frequency is not None
    num_rows, num_labels = logits.shape
    cut = layout(num_labels, logits.stride(0), logits.element_size())
    _, _, num_programs = grid(num_rows, cut, device.num_processors(logits.device))
    num_counters = 1 + _num_teams(num_programs)
    weight_slope = logits.new_empty(num_rows if rebalanced else 0, dtype=compute_dtype(logits.dtype))
    if not (csr or rebalanced):
        counters = logits.new_zeros(num_counters, dtype=torch.int32)
        return RowTerms(weight_slope, counters[:0], counters)
    tile_offsets = logits.new_empty(num_rows * (cut.num_tiles + 1) if csr else 0, dtype=torch.int32)
    counters = logits.new_empty(num_counters, dtype=torch.int32)
    with device.guard(logits.device):
        row_terms_kernel[(num_rows,)](
            dense,
            crow,
            col,
            labels.inverse_frequency,
            problem.row_sum,
            weight_slope,
            tile_offsets,
            counters,
            num_labels,
            0 if col is None else len(col),
            0 if dense is None else dense.stride(0),
            logits.stride(0),
            cut.num_tiles,
            num_counters,
            BETA=problem.spec.beta,
            CSR=csr,
            REBALANCED=rebalanced,
            HAS_ROW_SUM=problem.row_sum is not None,
            TILE=cut.vector * cut.groups,
            VECTOR=cut.vector,
            BLOCK=64 if csr else 1024,
        )
    return RowTerms(weight_slope, tile_offsets, counters)


def _launch(
    problem: Problem,
    want_value: str,
    scale: float,
    *,
    upstream: Tensor | None = None,
    gradient: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    logits, labels = problem.logits, problem.labels
    row_terms = problem.row_terms or _row_terms(problem)
    num_rows, num_labels = logits.shape
    cut = layout(num_labels, logits.stride(0), logits.element_size())
    rows_each, num_main, num_programs = grid(num_rows, cut, device.num_processors(logits.device))
    dense, crow, col = problem.target_tensors()
    dtype = compute_dtype(logits.dtype)
    value = logits.new_empty((num_rows, num_labels) if want_value == "elements" else (), dtype=dtype)
    partial = value.new_empty(num_programs + _num_teams(num_programs)) if want_value == "sum" else None
    if upstream is not None and upstream.dim():
        upstream = upstream.resolve_neg().contiguous()
    # The launcher takes numbers as float32.
    single = ctypes.c_float(scale).value if dtype == torch.float64 else scale
    mask = problem.label_mask
    with device.guard(logits.device):
        logits_loss_kernel[(num_programs,)](
            logits,
            dense,
            crow,
            col,
            row_terms.tile_offsets,
            labels.bias,
            labels.inverse_frequency,
            labels.weight,
            row_terms.weight_slope,
            problem.row_weight,
            mask,
            upstream,
            value,
            gradient,
            partial,
            row_terms.counters,
            num_rows,
            num_labels,
            0 if col is None else len(col),
            logits.stride(0),
            0 if dense is None else dense.stride(0),
            0 if mask is None else mask.stride(0),
            0 if gradient is None else gradient.stride(0),
            cut.num_tiles,
            num_main,
            num_programs,
            rows_each,
            single,
            scale - single,
            SPEC=kernel_spec(problem.spec),
            WANT_VALUE=want_value,
            WANT_GRADIENT=gradient is not None,
            UPSTREAM="" if upstream is None else "elements" if upstream.dim() else "scalar",
            CSR=dense is None,
            HAS_BIAS=labels.bias is not None,
            REBALANCED=labels.inverse_frequency is not None,
            HAS_LABEL_WEIGHT=labels.weight is not None,
            HAS_ROW_WEIGHT=problem.row_weight is not None,
            HAS_MASK=mask is not None,
            ALIGNED_TARGETS=dense is not None and (dense.stride(0) - logits.stride(0)) % cut.vector == 0,
            PTX=logits.dtype != torch.float64 and device.has_ptx(logits.device),
            PERIOD=cut.period,
            VECTOR=cut.vector,
            GROUPS=cut.groups,
            FRINGE=FRINGE,
            TEAM=TEAM,
            num_warps=1,
        )
    return value, logits if gradient is None else gradient


def grid(num_rows: int, cut: _Layout, num_processors: int) -> tuple[int, int, int]:
    """Rows of a main program, number of main programs, number of all programs."""
    # More rows a program reuse its columns' constants; fewer keep every processor busy.
    rows_each = max(1, min(16, num_rows * cut.num_tiles // (16 * num_processors * cut.period)))
    blocks, rest = divmod(num_rows, rows_each * cut.period)
    num_main = cut.num_tiles * (blocks * cut.period + min(rest, cut.period))
    fringe_lanes = num_rows * 2 * cut.vector if cut.vector > 1 else 0
    return rows_each, num_main, num_main + -(-fringe_lanes // FRINGE)
