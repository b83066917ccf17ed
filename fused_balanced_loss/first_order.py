"""Backward passes that have no derivative of their own."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def first_order(backward: Callable[..., Any]) -> Callable[..., Any]:
    """A backward that raises RuntimeError under ``create_graph=True``.

    ``once_differentiable`` alone would take its result for a constant: a gradient penalty would train on part of its
    derivative, a Hessian be zero.
    """
    once = once_differentiable(backward)

    @functools.wraps(backward)
    def run(ctx: Any, upstream: Tensor) -> Any:
        # Without gradients nothing could take the result for a constant.
        if not torch.is_grad_enabled():
            return backward(ctx, upstream)
        if not torch.compiler.is_compiling():
            raise RuntimeError("create_graph: expected False, as the balanced losses have no second derivative")
        return once(ctx, upstream)

    return run
