"""Classifier and loss as one operator that torch.compile does not look into, with its fake and its derivative."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..backends.flatten import NUM_ARGUMENTS, SCHEMA, flatten, unflatten
from ..backends.problem import compute_dtype
from ..backends.select import select
from .chunked_pass import Gradients
from .functional import Call, finish


def operator(features: Tensor, weight: Tensor, bias: Tensor | None, call: Call, impl: str) -> Tensor:
    """``call``'s loss, differentiable. The gradients are made in the same pass."""
    wants = [x is not None and x.requires_grad and torch.is_grad_enabled() for x in (features, weight, bias)]
    flat = flatten(call.problem._replace(logits=features))
    loss, *_ = linear_operator(
        *flat, weight, bias, call.chunk_size, call.first_label, call.num_labels, call.scale, call.dtype, impl, wants
    )
    return loss


def _call(arguments: tuple[Any, ...]) -> tuple[Call, Tensor, Tensor, Tensor | None, tuple[bool, bool, bool]]:
    flat, rest = arguments[:NUM_ARGUMENTS], arguments[NUM_ARGUMENTS:]
    weight, bias, chunk_size, first_label, num_labels, scale, dtype, impl, wants = rest
    features: Tensor = flat[0]
    problem = unflatten(flat, num_labels)
    backend = select(impl, features.device, len(features) * len(weight))
    call = Call(problem, backend, chunk_size, first_label, num_labels, scale, dtype)
    return call, features, weight, bias, (wants[0], wants[1], wants[2])


def _loss(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    call, features, weight, bias, wants = _call(arguments)
    loss, gradients = call.run(features, weight, bias, wants)
    nothing = loss.new_empty(0)
    d_features, d_weight, d_bias = (nothing.clone() if part is None else part for part in gradients)
    return loss, d_features, d_weight, d_bias


linear_operator = torch.library.custom_op(
    "fused_balanced_loss::linear_loss",
    _loss,
    mutates_args=(),
    schema=(
        f"({SCHEMA}, Tensor weight, Tensor? classifier_bias, int chunk_size, int first_label, int num_labels, "
        "float scale, ScalarType dtype, str impl, bool[] wants) -> (Tensor, Tensor, Tensor, Tensor)"
    ),
)


@linear_operator.register_fake
def _(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    features, (weight, *rest) = arguments[0], arguments[NUM_ARGUMENTS:]
    dtype, wants = rest[-3], rest[-1]
    exact = compute_dtype(dtype)
    return (
        features.new_empty((), dtype=exact),
        features.new_empty(features.shape if wants[0] else 0, dtype=exact),
        weight.new_empty(weight.shape) if wants[1] else features.new_empty(0, dtype=exact),
        features.new_empty(len(weight) if wants[2] else 0, dtype=exact),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    features, (_, bias, *rest) = inputs[0], inputs[NUM_ARGUMENTS:]
    ctx.save_for_backward(features, bias, *output[1:])
    ctx.scale, ctx.wants, ctx.num_inputs = rest[3], rest[-1], len(inputs)
    ctx.mark_non_differentiable(*output[1:])


def _backward(ctx: Any, upstream: Tensor, *unused: Any) -> tuple[Tensor | None, ...]:
    features, bias, *parts = ctx.saved_tensors
    gradients = Gradients(*(part if want else None for part, want in zip(parts, ctx.wants, strict=True)))
    result: list[Tensor | None] = [None] * ctx.num_inputs
    made = finish(gradients, upstream, ctx.scale, features.dtype, None if bias is None else bias.dtype)
    result[0], result[NUM_ARGUMENTS : NUM_ARGUMENTS + 2] = made[0], made[1:]
    return tuple(result)


linear_operator.register_autograd(_backward, setup_context=_setup_context)
