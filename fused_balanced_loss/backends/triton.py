"""The loss by Triton kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from ..kernels.scale_gradient import scale_kernel
from . import device
from .problem import Problem, RowTerms, gradient_like
from .triton_counters import counters, forget
from .triton_launch import launch_of
from .triton_plan import Plan, plan_of

_SCALE_BLOCK = 1024
_LARGEST = 1 << 30


def prepare(problem: Problem) -> Problem:
    """The problem with the terms of its rows, which the forward and the backward share."""
    return problem._replace(row_terms=_row_terms(problem))


def value(problem: Problem, reduction: str, scale: float = 1.0) -> Tensor:
    """Loss: [N, C] for reduction "none", else ``scale`` times the sum of its elements."""
    terms = problem.row_terms or _row_terms(problem)
    return _launch(problem, terms, "elements" if reduction == "none" else "sum", scale, None)


def gradient(problem: Problem, upstream: Tensor, scale: float = 1.0) -> Tensor:
    """Gradient [N, C] of the logits, times ``scale`` and ``upstream`` (no dimensions, or [N, C])."""
    terms = problem.row_terms or _row_terms(problem)
    if upstream.dim():
        upstream = upstream.resolve_neg().contiguous()
    made = gradient_like(problem.logits)
    terms.plan.launch_loss(
        problem, terms.weight_slope, terms.tile_offsets, "", upstream, (None, made, None, None), scale
    )
    return made


def value_and_gradient(problem: Problem, scale: float, out: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """``scale`` times the sum of the loss, and its gradient [N, C], written to ``out`` where that is given."""
    terms = problem.row_terms or _row_terms(problem)
    made = gradient_like(problem.logits) if out is None else out
    return _launch(problem, terms, "sum", scale, made), made


def scale_gradient(gradient: Tensor, upstream: Tensor) -> None:
    """Multiplies ``gradient`` in place by ``upstream`` (no dimensions); the device finds out whether that is 1."""
    num_rows, num_labels = gradient.shape
    stride = gradient.stride(0)
    if stride == num_labels and num_rows * num_labels < _LARGEST:
        # One long row, whose accesses all begin at multiples of 16 bytes.
        num_rows, num_labels, stride = 1, num_rows * num_labels, 0
    where = gradient.device
    aligned = 16 // gradient.element_size()
    constants = ("ALIGNED", aligned if stride % aligned == 0 else 0), ("BLOCK", _SCALE_BLOCK)
    launch = launch_of(scale_kernel, where, (gradient.dtype, upstream.dtype), constants)
    programs = min(num_rows * -(-num_labels // _SCALE_BLOCK), 4 * device.num_processors(where))
    with device.guard(where):
        launch((programs, 1, 1), (gradient, upstream), (num_rows, num_labels, stride))


def _row_terms(problem: Problem) -> RowTerms:
    plan = plan_of(problem)
    logits = problem.logits
    weight_slope = logits.new_empty(plan.num_slopes, dtype=plan.dtype)
    tile_offsets = logits.new_empty(plan.num_offsets, dtype=torch.int32)
    plan.launch_terms(problem, weight_slope, tile_offsets)
    return RowTerms(plan, weight_slope, tile_offsets)


def _launch(problem: Problem, terms: RowTerms, want_value: str, scale: float, gradient: Tensor | None) -> Tensor:
    """The loss, with the gradient written where there is room for it."""
    plan: Plan = terms.plan
    logits = problem.logits
    of_elements = want_value == "elements"
    made = logits.new_empty(logits.shape if of_elements else (), dtype=plan.dtype)
    partial = None if of_elements else logits.new_empty(plan.num_partials, dtype=plan.dtype)
    count = None if of_elements else counters(logits.device, plan.num_counters)
    try:
        plan.launch_loss(
            problem, terms.weight_slope, terms.tile_offsets, want_value, None, (made, gradient, partial, count), scale
        )
    except BaseException:
        forget()
        raise
    return made
