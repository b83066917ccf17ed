"""How autograd sees the classifier and its loss: gradients made early, late, or handed to an optimizer in place."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from ..first_order import first_order
from ..optim.rule import GradientConsumer
from .chunked_pass import ChunkedPass, Gradients


class InPlaceOptimizer(Protocol):
    """What takes the gradients of weight and bias in the backward, as
    :class:`~fused_balanced_loss.optim.base.ClassifierUpdate` does."""

    def expect_backward(self, node: Any) -> None:
        """As :meth:`~fused_balanced_loss.optim.base.ClassifierUpdate.expect_backward`."""
        ...

    def step(self, weight: Tensor, bias: Tensor | None, factor: Tensor, finite: Tensor) -> GradientConsumer:
        """As :meth:`~fused_balanced_loss.optim.base.ClassifierUpdate.step`."""
        ...


class LinearLoss(torch.autograd.Function):
    """``scale`` times the sum of the loss; ``early`` makes the gradients in the same pass."""

    @staticmethod
    def forward(
        ctx: Any, features: Tensor, weight: Tensor, bias: Tensor | None, chunked: ChunkedPass, early: bool
    ) -> Tensor:
        ctx.wants = tuple(ctx.needs_input_grad[:3])
        loss, gradients = chunked.run(features, weight, bias, wants=ctx.wants if early else (False, False, False))
        ctx.save_for_backward(features, weight, bias, *chunked.given())
        ctx.chunked, ctx.gradients = chunked, gradients if early else None
        ctx.dtypes = features.dtype, None if bias is None else bias.dtype
        return loss

    @staticmethod
    @first_order
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        chunked: ChunkedPass = ctx.chunked
        if gradients is None:
            # In the backward by choice, or a second backward: the first has given its gradients away.
            features, weight, bias, *_ = ctx.saved_tensors
            _, gradients = chunked.run(features, weight, bias, wants=ctx.wants)
        d_features, d_weight, d_bias = finish(gradients, upstream, chunked.scale, *ctx.dtypes)
        if d_weight is not None:
            chunked.backend.scale_gradient(d_weight, weight_factor(d_weight, upstream, chunked.scale))
        return d_features, d_weight, d_bias, None, None


class UpdatingLoss(torch.autograd.Function):
    """``scale`` times the sum of the loss; the backward changes weight and bias."""

    @staticmethod
    def forward(
        ctx: Any, features: Tensor, weight: Tensor, bias: Tensor | None, chunked: ChunkedPass, update: InPlaceOptimizer
    ) -> Tensor:
        loss, _ = chunked.run(features, weight, bias, keep=chunked.may_keep)
        ctx.save_for_backward(features, weight, bias, loss, *chunked.given())
        ctx.chunked, ctx.update = chunked, update
        update.expect_backward(ctx)
        return loss

    @staticmethod
    @first_order
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        # In a second backward autograd finds the weight changed, and raises.
        features, weight, bias, loss, *_ = ctx.saved_tensors
        chunked: ChunkedPass = ctx.chunked
        finite = torch.isfinite(loss) & torch.isfinite(upstream)
        factor = scaled(upstream, chunked.scale)
        take_gradients = ctx.update.step(weight.detach(), None if bias is None else bias.detach(), factor, finite)
        wants = (ctx.needs_input_grad[0], True, True)
        _, gradients = chunked.run(features, weight, bias, wants=wants, take_gradients=take_gradients)
        torch.autograd.graph.increment_version(weight)
        if bias is not None:
            torch.autograd.graph.increment_version(bias)
        d_features, _, _ = finish(gradients, upstream, chunked.scale, features.dtype, None)
        return d_features, None, None, None, None


def finish(
    gradients: Gradients, upstream: Tensor, scale: float | Tensor, features: torch.dtype, bias: torch.dtype | None
) -> Gradients:
    """Gradients of features and bias times scale and upstream gradient, in their dtypes; the weight's as it is.

    Those of the dtype that is asked for are changed in place.
    """
    factor = scaled(upstream, scale)
    d_features, d_weight, d_bias = gradients
    if d_features is not None:
        d_features = _times(d_features, factor, features)
    if d_bias is not None and bias is not None:
        d_bias = _times(d_bias, factor, bias)
    return Gradients(d_features, d_weight, d_bias)


def _times(gradient: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    out = gradient if gradient.dtype == dtype else gradient.new_empty(gradient.shape, dtype=dtype)
    return torch.mul(gradient, factor, out=out)


def scaled(upstream: Tensor, scale: float | Tensor) -> Tensor:
    """upstream [] * scale, without an operator for 1."""
    return upstream if isinstance(scale, float) and scale == 1.0 else upstream * scale


def weight_factor(d_weight: Tensor, upstream: Tensor, scale: float | Tensor) -> Tensor:
    """What is left to multiply the weight's gradient by: float16 is unscaled so far, to stay in its range."""
    return upstream * scale if d_weight.dtype == torch.float16 else upstream
