"""The loss by Triton kernels."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from ..kernels.scale_gradient import scale_kernel
from . import device
from .kept import keep
from .problem import Problem, gradient_like
from .triton_counters import counters, forget
from .triton_launch import Launch, launch_of
from .triton_plan import Plan, plan

_SCALE_BLOCK = 1024
_LARGEST = 1 << 30
# Each batch size has another, and a training loop has few.
_MOST_KEPT = 256
_scalings: dict[object, _Scaling] = {}


def prepare(problem: Problem) -> Problem:
    """The problem with its plan, and with the terms of its rows, which the forward and the backward share."""
    decided, terms = problem.plan, problem.row_terms
    # What autograd had saved may come back with other strides, as from `save_on_cpu`.
    if decided is None or decided.strides[0] != problem.logits.stride(0):
        decided, terms = plan(problem), None
    if decided.makes_terms and terms is None:
        try:
            terms = decided.make_terms(problem)
        except BaseException:
            forget()
            raise
    same = decided is problem.plan and terms is problem.row_terms
    return problem if same else problem._replace(plan=decided, row_terms=terms)


def value(problem: Problem, reduction: str, scale: float = 1.0) -> Tensor:
    """Loss: [N, C] for reduction "none", else ``scale`` times the sum of its elements."""
    return _launch(prepare(problem), "elements" if reduction == "none" else "sum", scale, None)


def gradient(problem: Problem, upstream: Tensor, scale: float = 1.0) -> Tensor:
    """Gradient [N, C] of the logits, times ``scale`` and ``upstream`` (no dimensions, or [N, C])."""
    problem = prepare(problem)
    if upstream.dim():
        upstream = upstream.contiguous()
    made = gradient_like(problem.logits)
    problem.plan.launch_loss(problem, "", upstream, (None, made, None, None), scale)
    return made


def value_and_gradient(problem: Problem, scale: float, out: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """``scale`` times the sum of the loss, and its gradient [N, C], written to ``out`` where that is given."""
    made = gradient_like(problem.logits) if out is None else out
    return _launch(prepare(problem), "sum", scale, made), made


def scale_gradient(gradient: Tensor, upstream: Tensor) -> None:
    """Multiplies ``gradient`` in place by ``upstream`` (no dimensions); the device finds out whether that is 1."""
    kind = gradient.shape, gradient.stride(), gradient.dtype, upstream.dtype, gradient.device
    scaling = _scalings.get(kind)
    if scaling is None:
        scaling = _scaling_of(gradient, upstream)
        keep(_scalings, kind, scaling, _MOST_KEPT)
    with device.guard(kind[-1]):
        scaling.launch(scaling.grid, (gradient, upstream), scaling.numbers)


class _Scaling(NamedTuple):
    """How a gradient of one kind is multiplied."""

    launch: Launch
    grid: tuple[int, int, int]
    numbers: tuple[int, int, int]


def _scaling_of(gradient: Tensor, upstream: Tensor) -> _Scaling:
    num_rows, num_labels = gradient.shape
    stride = gradient.stride(0)
    if stride == num_labels and num_rows * num_labels < _LARGEST:
        # One long row, whose accesses all begin at multiples of 16 bytes.
        num_rows, num_labels, stride = 1, num_rows * num_labels, 0
    where, per_access = gradient.device, 16 // gradient.element_size()
    constants = ("ALIGNED", 0 if stride % per_access else per_access), ("BLOCK", _SCALE_BLOCK)
    launch = launch_of(scale_kernel, where, (gradient.dtype, upstream.dtype), constants)
    programs = min(num_rows * -(-num_labels // _SCALE_BLOCK), 4 * device.num_processors(where))
    return _Scaling(launch, (programs, 1, 1), (num_rows, num_labels, stride))


def _launch(problem: Problem, want_value: str, scale: float, gradient: Tensor | None) -> Tensor:
    """The loss, with the gradient written where there is room for it."""
    decided: Plan = problem.plan
    partial = count = None
    if want_value == "elements":
        made = problem.logits.new_empty(problem.logits.shape, dtype=decided.dtype)
    else:
        made = problem.logits.new_empty((), dtype=decided.dtype)
        partial = made.new_empty(decided.num_partials)
        count = counters(decided.device, decided.num_counters, not problem.in_operator)
    try:
        decided.launch_loss(problem, want_value, None, (made, gradient, partial, count), scale)
    except BaseException:
        forget()
        raise
    return made
