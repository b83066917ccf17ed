"""How autograd meets the losses: an ``apply`` that takes little time, and backward passes of the first order."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def first_order(backward: Callable[..., Any]) -> Callable[..., Any]:
    """A backward that raises RuntimeError under ``create_graph=True``, and that sees no negative bit.

    PyTorch's ``once_differentiable`` would take its result for a constant: a gradient penalty would train on part of
    its derivative, a Hessian be zero.
    """

    @functools.wraps(backward)
    def run(ctx: Any, upstream: Tensor) -> Any:
        if not torch.compiler.is_compiling():
            if torch.is_grad_enabled():
                raise RuntimeError("create_graph: expected False, as the balanced losses have no second derivative")
            # A tensor of zeros may have no memory either.
            if upstream.is_neg() or upstream._is_zerotensor():
                upstream = upstream.clone().resolve_neg()
        return backward(ctx, upstream)

    return run


def apply_of(function: type[torch.autograd.Function]) -> Callable[..., Any]:
    """``function.apply`` without what it does for functorch's transforms, which takes the host longer than the rest.

    It must not be called under a transform. Where PyTorch has no such part, it is ``function.apply``.
    """
    apply: Callable[..., Any] = getattr(super(torch.autograd.Function, function), "apply", function.apply)
    return apply
