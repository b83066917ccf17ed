"""The Triton kernels as one operator that torch.compile does not look into, with its fake and its derivative."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .flatten import NUM_ARGUMENTS, NUM_TENSORS, SCHEMA, flatten, unflatten
from .problem import Problem, compute_dtype
from .triton import TILE, RowTerms, gradient, layout, like_logits, value

# Graphs that torch.compile has cached know the shapes of what an operator returned: other tiles need another name.
_NAME = f"fused_balanced_loss::logits_loss_{TILE}"


def operator(problem: Problem, reduction: str, scale: float) -> Tensor:
    """``value``, differentiable."""
    loss, _, _ = loss_operator(*flatten(problem), reduction, scale)
    return loss


def _loss(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    *flat, reduction, scale = arguments
    problem = unflatten(tuple(flat), flat[0].shape[1])
    loss = value(problem, reduction, scale)
    rows: RowTerms = problem.saved["row_terms"]
    return loss, rows.row_rate, rows.first


loss_operator = torch.library.custom_op(
    _NAME,
    _loss,
    mutates_args=(),
    schema=f"({SCHEMA}, str reduction, float scale) -> (Tensor, Tensor, Tensor)",
)


@loss_operator.register_fake
def _(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    logits, dense, _, _, _, inverse_frequency, *_, reduction, _ = arguments
    num_rows, num_labels = logits.shape
    dtype = compute_dtype(logits.dtype)
    loss = logits.new_empty((num_rows, num_labels) if reduction == "none" else (), dtype=dtype)
    row_rate = logits.new_empty(0 if inverse_frequency is None else num_rows, dtype=dtype)
    num_tiles = layout(num_labels, logits.stride(0), logits.element_size()).num_tiles
    return loss, row_rate, logits.new_empty(0 if dense is not None else num_rows * (num_tiles + 1), dtype=torch.int32)


def _gradient(*arguments: Any) -> Tensor:
    *flat, scale, upstream, row_rate, first = arguments
    problem = unflatten(tuple(flat), flat[0].shape[1])
    problem.saved["row_terms"] = RowTerms(row_rate, first, first.new_empty(0))
    return gradient(problem, upstream, scale)


gradient_operator = torch.library.custom_op(
    f"{_NAME}_gradient",
    _gradient,
    mutates_args=(),
    schema=f"({SCHEMA}, float scale, Tensor upstream, Tensor row_rate, Tensor first) -> Tensor",
)


@gradient_operator.register_fake
def _(*arguments: Any) -> Tensor:
    return like_logits(arguments[0])


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:NUM_TENSORS], *output[1:])
    ctx.numbers, _, ctx.scale = inputs[NUM_TENSORS:]
    ctx.mark_non_differentiable(*output[1:])


def _backward(ctx: Any, upstream: Tensor, *unused: Any) -> tuple[Tensor | None, ...]:
    *tensors, row_rate, first = ctx.saved_tensors
    dz = gradient_operator(*tensors, ctx.numbers, ctx.scale, upstream, row_rate, first)
    return (dz, *(None,) * (NUM_ARGUMENTS + 1))


loss_operator.register_autograd(_backward, setup_context=_setup_context)
