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
        factor = late_factor(upstream, chunked.late_scale)
        d_features, d_weight, d_bias = finish(gradients, factor, *ctx.dtypes)
        if d_weight is not None:
            chunked.backend.scale_gradient(d_weight, weight_factor(d_weight, factor, upstream))
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
        factor = late_factor(upstream, chunked.late_scale)
        take_gradients = ctx.update.step(weight.detach(), None if bias is None else bias.detach(), factor, finite)
        wants = (ctx.needs_input_grad[0], True, True)
        _, gradients = chunked.run(features, weight, bias, wants=wants, take_gradients=take_gradients)
        torch.autograd.graph.increment_version(weight)
        if bias is not None:
            torch.autograd.graph.increment_version(bias)
        d_features, _, _ = finish(gradients, factor, features.dtype, None)
        return d_features, None, None, None, None


def late_factor(upstream: Tensor, late_scale: float) -> Tensor:
    """What gradients without the late scale are multiplied by; 1 costs no operator."""
    return upstream if late_scale == 1.0 else upstream * late_scale


def weight_factor(d_weight: Tensor, factor: Tensor, upstream: Tensor) -> Tensor:
    """What the weight's gradient is yet to be multiplied by: only in float16 it is without the late scale."""
    return factor if d_weight.dtype == torch.float16 else upstream


def finish(
    gradients: Gradients, factor: Tensor, features: torch.dtype, bias: torch.dtype | None, in_place: bool = True
) -> Gradients:
    """Gradients of features and bias times ``factor``, in their dtypes; the weight's as it is.

    in_place: whether those that have this dtype already may be changed.
    """
    d_features, d_weight, d_bias = gradients
    if d_features is not None:
        d_features = _times(d_features, factor, features, in_place)
    if d_bias is not None and bias is not None:
        d_bias = _times(d_bias, factor, bias, in_place)
    return Gradients(d_features, d_weight, d_bias)


def _times(gradient: Tensor, factor: Tensor, dtype: torch.dtype, in_place: bool) -> Tensor:
    if not in_place:
        return (gradient * factor).to(dtype)
    out = gradient if gradient.dtype == dtype else gradient.new_empty(gradient.shape, dtype=dtype)
    return torch.mul(gradient, factor, out=out)
