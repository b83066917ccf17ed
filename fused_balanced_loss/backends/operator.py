"""The loss as one operator that torch.compile does not look into, with its fake and its derivative.

Nothing that changes from step to step is a number among the arguments: torch.compile would compile anew for each. The
factor 1 / (N * C) of a mean is made inside, from the shape of the logits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .problem import (
    NUM_ARGUMENTS,
    NUM_TENSORS,
    SCHEMA,
    Problem,
    compute_dtype,
    from_arguments,
    gradient_like,
    to_arguments,
)
from .select import select


def operator(problem: Problem, reduction: str, impl: str) -> Tensor:
    """Loss of no dimensions, or [N, C] for reduction "none", differentiable by the logits."""
    loss: Tensor = loss_operator(*to_arguments(problem), reduction, impl)
    return loss


def mean_scale(reduction: str, label_mask: Tensor | None, num_rows: int, num_labels: int) -> float:
    """What the sum is multiplied by. A mean over a mask is divided after the sum, by what the mask keeps."""
    if reduction == "batchmean":
        return 1 / num_rows
    return 1 / (num_rows * num_labels) if reduction == "mean" and label_mask is None else 1.0


def _loss(*arguments: Any) -> Tensor:
    *flat, reduction, impl = arguments
    problem = from_arguments(tuple(flat), flat[0].shape[1])
    return select(impl, problem).value(
        problem, reduction, mean_scale(reduction, problem.label_mask, *problem.logits.shape)
    )


loss_operator = torch.library.custom_op(
    "fused_balanced_loss::loss", _loss, mutates_args=(), schema=f"({SCHEMA}, str reduction, str impl) -> Tensor"
)


@loss_operator.register_fake
def _(*arguments: Any) -> Tensor:
    logits, reduction = arguments[0], arguments[-2]
    return logits.new_empty(logits.shape if reduction == "none" else (), dtype=compute_dtype(logits.dtype))


def _gradient(*arguments: Any) -> Tensor:
    *flat, reduction, impl, upstream = arguments
    problem = from_arguments(tuple(flat), flat[0].shape[1])
    return select(impl, problem).gradient(
        problem, upstream, mean_scale(reduction, problem.label_mask, *problem.logits.shape)
    )


gradient_operator = torch.library.custom_op(
    "fused_balanced_loss::loss_gradient",
    _gradient,
    mutates_args=(),
    schema=f"({SCHEMA}, str reduction, str impl, Tensor upstream) -> Tensor",
)


@gradient_operator.register_fake
def _(*arguments: Any) -> Tensor:
    return gradient_like(arguments[0])


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:NUM_TENSORS])
    ctx.numbers, ctx.reduction, ctx.impl = inputs[NUM_TENSORS:]


def _backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
    gradient = gradient_operator(*ctx.saved_tensors, ctx.numbers, ctx.reduction, ctx.impl, upstream)
    return (gradient, *(None,) * (NUM_ARGUMENTS + 1))


loss_operator.register_autograd(_backward, setup_context=_setup_context)
