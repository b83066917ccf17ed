"""The loss by Triton kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from ..kernels.scale_gradient import scale_kernel
from . import device
from .problem import Problem, RowTerms, gradient_like
from .triton_counters import counters, forget
from .triton_launch import Launch, launch_of
from .triton_plan import Plan, plan_of

_SCALE_BLOCK = 1024
_LARGEST = 1 << 30
_scalings: dict[tuple[torch.dtype, torch.dtype, torch.device, bool], Launch] = {}


def prepare(problem: Problem) -> Problem:
    """The problem with the terms of its rows, which the forward and the backward share."""
    return problem._replace(row_terms=_row_terms(problem))


def value(problem: Problem, reduction: str, scale: float = 1.0) -> Tensor:
    """Loss: [N, C] for reduction "none", else ``scale`` times the sum of its elements."""
    terms = problem.row_terms or _row_terms(problem)
    return _launch(problem, terms, "elements" if reduction == "none" else "sum", scale, None)


def gradient(problem: Problem, upstream: Tensor, scale: float = 1.0) -> Tensor:
    """Gradient [N, C] of the logits, times ``scale`` and ``upstream`` (no dimensions, or [N, C])."""
    terms = problem.row_terms
    # What autograd had saved may come back with other strides, as from `save_on_cpu`.
    if terms is None or terms.plan.strides[0] != problem.logits.stride(0):
        terms = _row_terms(problem)
    if upstream.dim():
        upstream = upstream.contiguous()
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
    kind = gradient.dtype, upstream.dtype, where, stride % (16 // gradient.element_size()) == 0
    launch = _scalings.get(kind)
    if launch is None:
        constants = ("ALIGNED", 16 // gradient.element_size() if kind[-1] else 0), ("BLOCK", _SCALE_BLOCK)
        launch = _scalings[kind] = launch_of(scale_kernel, where, kind[:2], constants)
    programs = min(num_rows * -(-num_labels // _SCALE_BLOCK), 4 * device.num_processors(where))
    with device.guard(where):
        launch((programs, 1, 1), (gradient, upstream), (num_rows, num_labels, stride))


def _row_terms(problem: Problem) -> RowTerms:
    plan = plan_of(problem)
    try:
        return RowTerms(plan, *plan.make_terms(problem))
    except BaseException:
        forget()
        raise


def _launch(problem: Problem, terms: RowTerms, want_value: str, scale: float, gradient: Tensor | None) -> Tensor:
    """The loss, with the gradient written where there is room for it."""
    plan: Plan = terms.plan
    logits = problem.logits
    partial = count = None
    if want_value == "elements":
        made = logits.new_empty(logits.shape, dtype=plan.dtype)
    else:
        made = logits.new_empty((), dtype=plan.dtype)
        partial = made.new_empty(plan.num_partials)
        count = counters(plan.device, plan.num_counters)
    try:
        plan.launch_loss(
            problem, terms.weight_slope, terms.tile_offsets, want_value, None, (made, gradient, partial, count), scale
        )
    except BaseException:
        forget()
        raise
    return made
