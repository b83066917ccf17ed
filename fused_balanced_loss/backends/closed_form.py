"""Value and gradient in closed form, in PyTorch operators: one text, called as it is or under torch.compile.

``EAGER`` runs wherever PyTorch does, and serves where no kernel can be had. ``COMPILED`` fuses the same text by
torch.compile, which compiles for seconds at the first call of each spec.
"""

from __future__ import annotations

import math
import types
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from ..spec import LossSpec
from ..targets import SparseTargets
from . import device
from .constants import row_sums
from .problem import Problem, compute_dtype

Want = Literal["elements", "sum", "gradient", "both"]

# Above this, log(1 + exp(u)) is u to the last digit; the exponential must not overflow before.
_LINEAR_FROM = {torch.float32: 80.0, torch.float64: 700.0}
# Keeps p * nll from being 0 * infinity; p is 0 long before nll is as large.
_LARGEST_NLL = 1e4


def closed_form(
    logits: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    inverse_frequency: Tensor | None,
    label_weight: Tensor | None,
    row_sum: Tensor | None,
    row_weight: Tensor | None,
    label_mask: Tensor | None,
    scale: Tensor | float,
    spec: LossSpec,
    want: Want,
) -> tuple[Tensor | None, Tensor | None]:
    """Loss and gradient, each None unless ``want`` asks for it, both times ``scale``.

    Args:
        logits, targets: [N, C]. bias, inverse_frequency, label_weight: [C]. row_sum, row_weight: [N].
        label_mask: bool [N, C].
        scale: no dimensions, or [N, C] for the gradient alone.
        want: the loss of each ``"elements"``, their ``"sum"``, the ``"gradient"`` [N, C], or ``"both"`` of the last.
    """
    dtype = compute_dtype(logits.dtype)
    gamma, gamma_negative = spec.gammas
    y = targets == 1
    d = logits.to(dtype)
    if bias is not None:
        d = d - bias
    # u = -t is large where the prediction is wrong.
    u = torch.where(y, -d, spec.lam * d)
    if targets.dtype != torch.bool:
        u = torch.where(y | (targets == 0), u, math.nan)
    p, q = torch.sigmoid(-u), torch.sigmoid(u)
    nll = torch.nn.functional.softplus(u, threshold=_LINEAR_FROM[dtype])
    focal = torch.where(y, q**gamma, q**gamma_negative) if gamma != gamma_negative else q**gamma
    # minus d(focal * nll) / dt over focal
    slope = q + _either(y, gamma, gamma_negative, dtype) * p * nll.clamp(max=_LARGEST_NLL)
    if spec.probability_margin:
        excess = q - spec.probability_margin
        # A comparison with NaN is false: it stays a NaN here and below.
        shifted = torch.where(excess <= 0, 0.0, excess)
        nll_shifted = -torch.log1p(-shifted)
        ratio = torch.where(shifted == 0, 1.0, nll_shifted / shifted)
        slope_shifted = torch.where(shifted == 0, 0.0, (gamma_negative * ratio + 1 / (1 - shifted)) * p * q)
        focal = torch.where(y, q**gamma, shifted**gamma_negative)
        nll = torch.where(y, nll, nll_shifted)
        slope = torch.where(y, slope, slope_shifted)

    weight = focal
    if inverse_frequency is not None:
        assert row_sum is not None and spec.mu is not None
        share = inverse_frequency / row_sum[:, None]
        weight = weight * (spec.alpha + torch.sigmoid(spec.beta * (share - spec.mu)))
    for factor in (label_weight, None if row_weight is None else row_weight[:, None]):
        if factor is not None:
            weight = weight * factor

    loss = gradient = None
    if want != "gradient":
        loss = weight * nll * _either(y, spec.positive_factor, spec.negative_factor / spec.lam, dtype)
        if label_mask is not None:
            loss = torch.where(label_mask, loss, 0.0)
        loss = (loss if want == "elements" else loss.sum()) * scale
    if want in ("gradient", "both"):
        gradient = weight * slope * _either(y, -spec.positive_factor, spec.negative_factor, dtype) * scale
        if label_mask is not None:
            gradient = torch.where(label_mask, gradient, 0.0)
        gradient = gradient.to(logits.dtype)
    return loss, gradient


def _either(y: Tensor, positive: float, negative: float, dtype: torch.dtype) -> Tensor:
    # Two numbers alone would make a result of PyTorch's default dtype.
    return torch.where(y, torch.full((), positive, dtype=dtype, device=y.device), negative)


class ClosedForm:
    """The closed form as an implementation; ``run`` calls it, as it is or compiled."""

    def __init__(self, run: Callable[..., tuple[Tensor | None, Tensor | None]]) -> None:
        self._run = run

    def prepare(self, problem: Problem) -> Problem:
        """The problem as it is. Raises ValueError on the CPU for label ids that indexing could not take."""
        targets = problem.targets
        on_cpu = device.kind(problem.logits.device) == "cpu" and not torch.compiler.is_compiling()
        if on_cpu and isinstance(targets, SparseTargets):
            targets.check()
        return problem

    def value(self, problem: Problem, reduction: str, scale: float = 1.0) -> Tensor:
        """Loss: [N, C] for reduction "none", else ``scale`` times the sum of its elements."""
        loss, _ = self._call(
            problem, 1.0 if reduction == "none" else scale, "elements" if reduction == "none" else "sum"
        )
        assert loss is not None
        return loss

    def gradient(self, problem: Problem, upstream: Tensor, scale: float = 1.0) -> Tensor:
        """Gradient [N, C] of the logits, times ``scale`` and ``upstream`` (no dimensions, or [N, C])."""
        _, gradient = self._call(problem, upstream * scale, "gradient")
        assert gradient is not None
        return gradient

    def value_and_gradient(self, problem: Problem, scale: float, out: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """``scale`` times the sum of the loss, and its gradient [N, C], written to ``out`` where that is given."""
        loss, gradient = self._call(problem, scale, "both")
        assert loss is not None and gradient is not None
        return loss, gradient if out is None else out.copy_(gradient)

    @staticmethod
    def scale_gradient(gradient: Tensor, upstream: Tensor) -> None:
        """Multiplies ``gradient`` in place by ``upstream`` (no dimensions)."""
        # On the CPU the host knows the number, and nearly always it is 1.
        if device.kind(upstream.device) != "cpu" or upstream.item() != 1:
            gradient.mul_(upstream)

    def _call(self, problem: Problem, scale: Tensor | float, want: Want) -> tuple[Tensor | None, Tensor | None]:
        labels, targets, row_sum = problem.labels, problem.targets, problem.row_sum
        if labels.inverse_frequency is not None and row_sum is None:
            row_sum = row_sums(targets, labels.inverse_frequency)
        dense = targets.to_dense(torch.bool) if isinstance(targets, SparseTargets) else targets
        tensors = (problem.logits.detach(), dense, *labels, row_sum, problem.row_weight, problem.label_mask)
        with torch.no_grad():
            return self._run(*tensors, scale, problem.spec, want)


_compiled: dict[tuple[LossSpec, Want], Callable[..., Any]] = {}


def _run_compiled(*arguments: Any) -> tuple[Tensor | None, Tensor | None]:
    tensors: Any
    *tensors, scale, spec, want = arguments
    if torch.compiler.is_compiling():
        # The caller is being compiled, and this with it.
        return closed_form(*arguments)
    if (spec, want) not in _compiled:
        # PyTorch limits the recompilations of one code object, so each spec gets a code object of its own.
        own = types.FunctionType(
            closed_form.__code__.replace(), closed_form.__globals__, closed_form.__name__, closed_form.__defaults__
        )
        _compiled[spec, want] = torch.compile(own, fullgraph=True)
    logits, dense, _, _, _, row_sum, row_weight, label_mask = tensors
    for rows in (logits, dense, row_sum, row_weight, label_mask):
        if rows is not None:
            torch._dynamo.maybe_mark_dynamic(rows, 0)
    if not isinstance(scale, Tensor):
        # A number would be a constant of the compiled code, and another batch size would compile it anew.
        scale = torch.full((), scale, dtype=compute_dtype(logits.dtype), device=logits.device)
    return _compiled[spec, want](*tensors, scale, spec, want)


EAGER = ClosedForm(closed_form)
COMPILED = ClosedForm(_run_compiled)
