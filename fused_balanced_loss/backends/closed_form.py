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
    positive_weight: Tensor | None,
    row_sum: Tensor | None,
    row_weight: Tensor | None,
    label_mask: Tensor | None,
    scale: Tensor | float,
    spec: LossSpec,
    want: Want,
) -> tuple[Tensor | None, Tensor | None]:
    """Loss and gradient, each None unless ``want`` asks for it, both times ``scale``.

    Args:
        logits, targets: [N, C]. bias, inverse_frequency, label_weight, positive_weight: [C]. row_sum, row_weight: [N].
        label_mask: bool [N, C].
        scale: no dimensions, or [N, C] for the gradient alone.
        want: the loss of each ``"elements"``, their ``"sum"``, the ``"gradient"`` [N, C], or ``"both"`` of the last.
    """
    dtype = compute_dtype(logits.dtype)
    gamma, gamma_negative = spec.gammas
    mixed = targets.dtype.is_floating_point or spec.label_smoothing > 0
    y = _shares(targets, spec.label_smoothing, dtype) if mixed else targets == 1

    def choose(positive: Tensor, negative: Tensor) -> Tensor:
        if not mixed:
            return torch.where(y, positive, negative)
        # A part without share must not make a NaN of its infinity; a share that is NaN must.
        return torch.where(y == 0, 0.0, y * positive) + torch.where(y == 1, 0.0, (1 - y) * negative)

    # Two numbers alone would make a result of PyTorch's default dtype.
    positive_factor = torch.full((), spec.positive_factor, dtype=dtype, device=logits.device)
    negative_factor = torch.full((), spec.negative_factor, dtype=dtype, device=logits.device)
    if positive_weight is not None:
        positive_factor = positive_factor * positive_weight
        if label_weight is not None:
            negative_factor, label_weight = negative_factor * label_weight, None
    d = logits.to(dtype)
    if bias is not None:
        d = d - bias
    # u = -t is large where the prediction is wrong.
    if mixed or gamma != gamma_negative or spec.probability_margin:
        value, slope = _part(-d, gamma, spec.poly_epsilon)
        value_negative, slope_negative = _part(spec.lam * d, gamma_negative, spec.poly_epsilon, spec.probability_margin)
        value = choose(value * positive_factor, value_negative * (negative_factor / spec.lam))
        slope = choose(slope * -positive_factor, slope_negative * negative_factor)
    else:
        value, slope = _part(torch.where(y, -d, spec.lam * d), gamma, spec.poly_epsilon)
        value = value * choose(positive_factor, negative_factor / spec.lam)
        slope = slope * choose(-positive_factor, negative_factor)

    weight: Tensor | None = None
    if inverse_frequency is not None:
        assert row_sum is not None and spec.mu is not None
        share = inverse_frequency / row_sum[:, None]
        weight = spec.alpha + torch.sigmoid(spec.beta * (share - spec.mu))
    if not mixed and targets.dtype != torch.bool:
        valid = torch.full((), 1.0, dtype=dtype, device=logits.device)
        weight = torch.where(y | (targets == 0), valid if weight is None else weight, math.nan)
    for factor in (label_weight, None if row_weight is None else row_weight[:, None]):
        if factor is not None:
            weight = factor if weight is None else weight * factor

    def finish(part: Tensor) -> Tensor:
        part = part if weight is None else part * weight
        return part if label_mask is None else torch.where(label_mask, part, 0.0)

    loss = gradient = None
    if want != "gradient":
        loss = finish(value)
        loss = (loss if want == "elements" else loss.sum()) * scale
    if want in ("gradient", "both"):
        gradient = finish(slope * scale).to(logits.dtype)
    return loss, gradient


def _part(u: Tensor, gamma: float, poly_epsilon: float, margin: float = 0.0) -> tuple[Tensor, Tensor]:
    """The loss of one class, (1 - p)**gamma * (-log(p) + poly_epsilon * (1 - p)), and its derivative by u = -t."""
    p, q = torch.sigmoid(-u), torch.sigmoid(u)
    if margin:
        excess = q - margin
        # A comparison with NaN is false: it stays a NaN here and below.
        shifted = torch.where(excess <= 0, 0.0, excess)
        nll = -torch.log1p(-shifted)
        ratio = torch.where(shifted == 0, 1.0, nll / shifted)
        slope = (gamma * ratio + 1 / (1 - shifted) + poly_epsilon * (gamma + 1)) * p * q
        slope = torch.where(shifted == 0, 0.0, slope)
    else:
        shifted = q
        nll = torch.nn.functional.softplus(u, threshold=_LINEAR_FROM[u.dtype])
        slope = q + gamma * p * nll.clamp(max=_LARGEST_NLL)
        if poly_epsilon:
            slope = slope + poly_epsilon * (gamma + 1) * p * q
    if poly_epsilon:
        nll = nll + poly_epsilon * shifted
    focal = shifted**gamma
    return focal * nll, focal * slope


def _shares(targets: Tensor, smoothing: float, dtype: torch.dtype) -> Tensor:
    """Dense targets, smoothed; NaN for a target outside [0, 1]."""
    # What rounds to 0 or 1 may lie outside [0, 1] all the same.
    share = torch.where((targets >= 0) & (targets <= 1), targets.to(dtype), math.nan)
    return share * (1 - smoothing) + smoothing / 2 if smoothing else share


class ClosedForm:
    """The closed form as an implementation; ``run`` calls it, as it is or compiled."""

    def __init__(self, run: Callable[..., tuple[Tensor | None, Tensor | None]]) -> None:
        self._run = run

    def plan(self, problem: Problem) -> None:
        """Nothing: operators decide at each call."""

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
    logits, dense, *_, row_sum, row_weight, label_mask = tensors
    for rows in (logits, dense, row_sum, row_weight, label_mask):
        if rows is not None:
            torch._dynamo.maybe_mark_dynamic(rows, 0)
    if not isinstance(scale, Tensor):
        # A number would be a constant of the compiled code, and another batch size would compile it anew.
        scale = torch.full((), scale, dtype=compute_dtype(logits.dtype), device=logits.device)
    return _compiled[spec, want](*tensors, scale, spec, want)


EAGER = ClosedForm(closed_form)
COMPILED = ClosedForm(_run_compiled)
