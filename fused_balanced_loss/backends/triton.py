"""Launches of the Triton kernels."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..kernels.labels import row_terms_kernel
from ..kernels.logits_loss import logits_loss_kernel, scale_kernel
from ..spec import LossSpec
from ..targets import SparseTargets
from .flatten import target_tensors
from .problem import Problem, compute_dtype
from .select import interpreting

# Rows narrower than this many elements are not worth a fringe.
_NARROW = 256
# A program is one warp: few of its tiles have a label, and all of it goes one way. 8 elements a thread are 16 bytes of
# half precision.
WARP_SIZE = 64 if torch.version.hip else 32
_THREAD = 8
TILE = _THREAD * WARP_SIZE
# Elements of a fringe program.
FRINGE = 64
# Programs whose sums one of them adds up: all of them at one counter would queue.
TEAM = 128


class RowTerms(NamedTuple):
    """What the first launch leaves for the second and for the backward.

    row_rate: [N], -beta * log2(e) / (sum of 1/n over the row's labels); empty unless rebalanced.
    first: int32 [N, tiles + 1], where in ``col`` each tile's labels begin; empty for dense targets.
    counter: int32 [1 + teams of programs], zeros.
    """

    row_rate: Tensor
    first: Tensor
    counter: Tensor


class _Layout(NamedTuple):
    """How rows are cut into tiles; see ``logits_loss_kernel``."""

    vector: int
    group: int
    period: int
    num_tiles: int


def value(problem: Problem, reduction: str, scale: float = 1.0) -> Tensor:
    """Loss: [N, C] for reduction "none", else ``scale`` times the sum of its elements."""
    rows = _row_terms(problem)
    problem.saved["row_terms"] = rows
    loss, _ = _launch(problem, rows, "elements" if reduction == "none" else "sum", scale)
    return loss


def gradient(problem: Problem, upstream: Tensor, scale: float = 1.0) -> Tensor:
    """Gradient [N, C] of the logits, times ``scale`` and ``upstream`` (no dimension, or [N, C])."""
    rows = problem.saved.get("row_terms")
    if rows is None:
        rows = _row_terms(problem)
    _, dz = _launch(problem, rows, "", scale, upstream=upstream, gradient=like_logits(problem.logits))
    return dz


def value_and_gradient(problem: Problem, scale: float, out: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """``scale`` times the sum of the loss, and its gradient [N, C], written to ``out`` where that is given."""
    rows = _row_terms(problem)
    problem.saved["row_terms"] = rows
    gradient = like_logits(problem.logits) if out is None else out
    return _launch(problem, rows, "sum", scale, gradient=gradient)


def scale_gradient(gradient: Tensor, upstream: Tensor) -> None:
    """Multiplies ``gradient`` in place by ``upstream`` (no dimension); the device finds out whether that is 1."""
    num_rows, num_labels = gradient.shape
    block = 1024
    programs = min(num_rows * -(-num_labels // block), 4 * _num_processors(gradient.device))
    scale_kernel[(programs,)](gradient, upstream, num_rows, num_labels, gradient.stride(0), BLOCK=block)


def layout(num_labels: int, logits_stride: int, itemsize: int, warp_size: int = WARP_SIZE) -> _Layout:
    """Tiles for rows of this width and stride: 16 bytes an access wherever rows are wide enough for it to pay."""
    vector = 16 // itemsize if num_labels >= _NARROW else 1
    period = vector // math.gcd(vector, logits_stride)
    tile = min(_THREAD * warp_size, max(32, 1 << (num_labels - 1).bit_length()))
    return _Layout(vector, tile // vector, period, -(-num_labels // tile))


def kernel_spec(spec: LossSpec) -> tuple[float, ...]:
    """The settings that ``balanced_element`` takes, in its order."""
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


def _num_processors(device: torch.device) -> int:
    return 8 if device.type == "cpu" else torch.cuda.get_device_properties(device).multi_processor_count


def _use_ptx(logits: Tensor) -> bool:
    return logits.is_cuda and torch.version.hip is None and logits.dtype != torch.float64 and not interpreting()


def like_logits(logits: Tensor) -> Tensor:
    """Memory for the gradient, its rows aligned as those of the logits."""
    num_rows, num_labels = logits.shape
    vector = 16 // logits.element_size()
    stride = num_labels + (logits.stride(0) - num_labels) % vector
    if stride == num_labels:
        return torch.empty_like(logits, memory_format=torch.contiguous_format)
    return logits.new_empty(num_rows, stride)[:, :num_labels]


def _row_terms(problem: Problem) -> RowTerms:
    logits, targets, terms = problem.logits, problem.targets, problem.terms
    csr, rebalanced = isinstance(targets, SparseTargets), terms.inverse_frequency is not None
    dtype = compute_dtype(logits.dtype)
    row_rate = torch.empty(len(logits) if rebalanced else 0, dtype=dtype, device=logits.device)
    cut = layout(logits.shape[1], logits.stride(0), logits.element_size())
    _, _, num_programs = grid(len(logits), cut, _num_processors(logits.device))
    num_counters = 1 + _num_teams(num_programs)
    if not (csr or rebalanced):
        counter = row_rate.new_zeros(num_counters, dtype=torch.int32)
        return RowTerms(row_rate, row_rate.new_empty(0, dtype=torch.int32), counter)
    first = row_rate.new_empty((len(logits) * (cut.num_tiles + 1)) if csr else 0, dtype=torch.int32)
    counter = row_rate.new_empty(num_counters, dtype=torch.int32)
    dense, crow, col = target_tensors(targets)
    row_terms_kernel[(len(logits),)](
        dense,
        crow,
        col,
        terms.inverse_frequency,
        problem.row_sum,
        row_rate,
        first,
        counter,
        logits.shape[1],
        0 if dense is None else dense.stride(0),
        logits.stride(0),
        cut.num_tiles,
        num_counters,
        BETA=problem.spec.beta,
        CSR=csr,
        REBALANCED=rebalanced,
        HAS_ROW_SUM=problem.row_sum is not None,
        TILE=cut.vector * cut.group,
        P=cut.vector,
        BLOCK=64 if csr else 1024,
    )
    return RowTerms(row_rate, first, counter)


def _launch(
    problem: Problem,
    rows: RowTerms,
    want_value: str,
    scale: float,
    *,
    upstream: Tensor | None = None,
    gradient: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    logits, terms = problem.logits, problem.terms
    num_rows, num_labels = logits.shape
    cut = layout(num_labels, logits.stride(0), logits.element_size())
    rows_each, num_main, num_programs = grid(num_rows, cut, _num_processors(logits.device))
    dense, crow, col = target_tensors(problem.targets)
    dtype = compute_dtype(logits.dtype)
    value = logits.new_empty((num_rows, num_labels) if want_value == "elements" else (), dtype=dtype)
    partial = value.new_empty(num_programs + _num_teams(num_programs)) if want_value == "sum" else None
    if upstream is not None and upstream.dim():
        upstream = upstream.contiguous()
    single = torch.tensor(scale, dtype=torch.float32).item() if dtype == torch.float64 else scale
    mask = problem.label_mask
    logits_loss_kernel[(num_programs,)](
        logits,
        dense,
        crow,
        col,
        rows.first,
        terms.bias,
        terms.inverse_frequency,
        terms.weight,
        rows.row_rate,
        problem.row_weight,
        mask,
        upstream,
        value,
        gradient,
        partial,
        rows.counter,
        num_rows,
        num_labels,
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
        HAS_BIAS=terms.bias is not None,
        REBALANCED=terms.inverse_frequency is not None,
        HAS_LABEL_WEIGHT=terms.weight is not None,
        HAS_ROW_WEIGHT=problem.row_weight is not None,
        HAS_MASK=mask is not None,
        ALIGNED_TARGETS=dense is not None and (dense.stride(0) - logits.stride(0)) % cut.vector == 0,
        PTX=_use_ptx(logits),
        PERIOD=cut.period,
        P=cut.vector,
        G=cut.group,
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


def operator(problem: Problem, reduction: str, scale: float) -> Tensor:
    """``value`` as one operator that torch.compile does not look into, differentiable."""
    # It launches through this module.
    from .triton_operator import operator

    return operator(problem, reduction, scale)
