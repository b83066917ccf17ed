"""Classifier and loss as one operator that torch.compile does not look into, with its fake and its derivative.

As in ``backends.operator``, no number among the arguments changes from step to step.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..backends.operator import mean_scale
from ..backends.problem import NUM_ARGUMENTS, SCHEMA, Problem, compute_dtype, from_arguments, to_arguments
from .autograd import finish, weight_factor
from .chunked_pass import ChunkedPass, Gradients


def operator(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    problem: Problem,
    reduction: str,
    impl: str,
    chunk_size: int | None,
    own_labels: tuple[int, int],
    num_labels: int,
) -> Tensor:
    """The loss, differentiable by features, weight and bias, whose gradients are made in the same pass.

    num_labels: C, of which the weight's rows are ``own_labels``.
    """
    wants = [x is not None and x.requires_grad and torch.is_grad_enabled() for x in (features, weight, bias)]
    arguments = to_arguments(problem._replace(logits=features))
    dtype = problem.logits.dtype
    loss: Tensor
    loss, *_ = linear_operator(
        *arguments, weight, bias, reduction, impl, chunk_size, *own_labels, num_labels, dtype, wants
    )
    return loss


def _loss(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    flat, (weight, bias, reduction, impl, chunk_size, first_label, num_own, num_labels, dtype, wants) = (
        arguments[:NUM_ARGUMENTS],
        arguments[NUM_ARGUMENTS:],
    )
    features: Tensor = flat[0]
    problem = from_arguments(flat, num_labels)._replace(logits=features.new_empty(0, dtype=dtype))
    scale = mean_scale(reduction, problem.label_mask, len(features), num_labels)
    shape = (len(features), features.shape[1])
    own_labels = first_label, num_own
    chunked = ChunkedPass(problem, impl, chunk_size, shape, own_labels, scale, weight.dtype, update=False)
    loss, gradients = chunked.run(features, weight, bias, wants=(wants[0], wants[1], wants[2]))
    nothing = loss.new_empty(0)
    d_features, d_weight, d_bias = (nothing.clone() if part is None else part for part in gradients)
    return loss, torch.full_like(loss, chunked.late_scale), d_features, d_weight, d_bias


linear_operator = torch.library.custom_op(
    "fused_balanced_loss::linear_loss",
    _loss,
    mutates_args=(),
    schema=(
        f"({SCHEMA}, Tensor weight, Tensor? classifier_bias, str reduction, str impl, SymInt? chunk_size, "
        "SymInt first_label, SymInt num_own, SymInt num_labels, ScalarType dtype, bool[] wants) "
        "-> (Tensor, Tensor, Tensor, Tensor, Tensor)"
    ),
)


@linear_operator.register_fake
def _(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    features, (weight, *rest) = arguments[0], arguments[NUM_ARGUMENTS:]
    dtype, wants = rest[-2:]
    exact = compute_dtype(dtype)
    return (
        features.new_empty((), dtype=exact),
        features.new_empty((), dtype=exact),
        features.new_empty(features.shape if wants[0] else 0, dtype=exact),
        weight.new_empty(weight.shape) if wants[1] else features.new_empty(0, dtype=exact),
        features.new_empty(len(weight) if wants[2] else 0, dtype=exact),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    features, (_, bias, *rest) = inputs[0], inputs[NUM_ARGUMENTS:]
    ctx.save_for_backward(features, bias, *output[1:])
    ctx.wants, ctx.num_inputs = rest[-1], len(inputs)
    ctx.mark_non_differentiable(*output[1:])


def _backward(ctx: Any, upstream: Tensor, *unused: Any) -> tuple[Tensor | None, ...]:
    features, bias, late_scale, *parts = ctx.saved_tensors
    gradients = Gradients(*(part if want else None for part, want in zip(parts, ctx.wants, strict=True)))
    factor = upstream * late_scale
    # Not in place, because what is saved serves a second backward, too.
    d_features, d_weight, d_bias = finish(
        gradients, factor, features.dtype, None if bias is None else bias.dtype, in_place=False
    )
    if d_weight is not None:
        d_weight = (d_weight * weight_factor(d_weight, factor, upstream)).to(d_weight.dtype)
    result: list[Tensor | None] = [None] * ctx.num_inputs
    result[0], result[NUM_ARGUMENTS], result[NUM_ARGUMENTS + 1] = d_features, d_weight, d_bias
    return tuple(result)


linear_operator.register_autograd(_backward, setup_context=_setup_context)
