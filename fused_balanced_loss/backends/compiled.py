"""Value and gradient in closed form, in one pass under torch.compile."""

from __future__ import annotations

import math
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..spec import LossSpec
from ..targets import SparseTargets
from .eager import power, scale_gradient
from .problem import Problem, compute_dtype, sparse_row_sum

# Lowest power first; fitted for least relative error in float64, then rounded: with float32 arithmetic
# -log1p(-m) / m on [0, 1/2] is within 1.3e-7, exp(f) for |f| <= log(2) / 2 within 1.1e-7.
_LOG1P = (
    1.0,
    0.5000013709068298,
    0.3332453966140747,
    0.25216183066368103,
    0.17329253256320953,
    0.35335680842399597,
    -0.6334813237190247,
    2.046745777130127,
    -2.552624225616455,
    1.7756375074386597,
)
_EXP = (
    1.0,
    1.0,
    0.49999991059303284,
    0.16666419804096222,
    0.041668232530355453,
    0.008374898694455624,
    0.0013836742145940661,
)

# Elements of the gradient that is made aside before it overwrites the logits.
_ELEMENTS_ASIDE = 1 << 18

# Largest -t whose exponential is taken.
_BOUND = 60.0

__all__ = ["LogitsLostError", "gradient", "scale_gradient", "value", "value_and_gradient"]


class LogitsLostError(RuntimeError):
    """In place, a failure came after the first logits had been overwritten: nothing can start again from them."""


_Form = Callable[..., tuple[Tensor | None, Tensor | None]]


def value(problem: Problem, reduction: str, scale: float = 1.0) -> Tensor:
    """Loss: [N, C] for reduction "none", else ``scale`` times the sum of its elements."""
    want = "elements" if reduction == "none" else "value"
    loss, _ = _run(problem, want, scale, None)
    assert loss is not None
    return loss


def gradient(problem: Problem, upstream: Tensor, scale: float = 1.0) -> Tensor:
    """Gradient [N, C] of the logits, times ``scale`` and ``upstream`` (no dimension, or [N, C])."""
    _, dz = _run(problem, "gradient", scale, upstream)
    assert dz is not None
    return dz


def value_and_gradient(problem: Problem, scale: float, out: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """``scale`` times the sum of the loss, and its gradient [N, C], written to ``out`` where that is given."""
    if out is None:
        loss, dz = _run(problem, "both", scale, None)
        assert loss is not None and dz is not None
        return loss, dz
    # Some rows at a time: in place there is no room for a second gradient.
    total = torch.zeros((), dtype=compute_dtype(out.dtype), device=out.device)
    step = max(1, _ELEMENTS_ASIDE // out.shape[1])
    for start in range(0, len(out), step):
        rows = slice(start, start + step)
        try:
            part, dz = value_and_gradient(_some_rows(problem, rows), scale)
        except Exception as error:
            if start:
                raise LogitsLostError(f"logits: rows before {start} hold the gradient already") from error
            raise
        out[rows] = dz
        total += part
    return total, out


def _some_rows(problem: Problem, rows: slice) -> Problem:
    weight, mask, row_sum = problem.row_weight, problem.label_mask, problem.row_sum
    return problem._replace(
        logits=problem.logits[rows],
        targets=problem.targets[rows],
        row_weight=None if weight is None else weight[rows],
        label_mask=None if mask is None else mask[rows],
        row_sum=None if row_sum is None else row_sum[rows],
    )


def _run(problem: Problem, want: str, scale: float, upstream: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    spec, terms, logits = problem.spec, problem.terms, problem.logits.detach()
    dtype = compute_dtype(logits.dtype)
    targets = problem.targets
    row_sum = problem.row_sum
    if isinstance(targets, SparseTargets):
        if terms.inverse_frequency is not None and row_sum is None:
            row_sum = sparse_row_sum(targets, terms.inverse_frequency)
        dense = targets.to_dense(torch.uint8)
        binary = True
    else:
        # Inductor turns bytes into vectors, booleans only one by one.
        binary = targets.dtype == torch.bool
        dense = targets.detach().view(torch.uint8) if binary else targets.detach()
    factor = torch.full((), scale, dtype=dtype, device=logits.device)
    arguments: tuple[Tensor | None, ...] = (logits, dense, terms.bias, terms.inverse_frequency, terms.weight, row_sum)
    arguments += (problem.row_weight, problem.label_mask, factor if upstream is None else factor * upstream)
    if torch.compiler.is_compiling():
        # Whoever compiles the caller compiles this with it.
        return _make_form(spec, want, binary, dtype)(*arguments)
    for rows in (logits, dense, row_sum, problem.row_weight, problem.label_mask):
        if rows is not None:
            torch._dynamo.maybe_mark_dynamic(rows, 0)
    with torch.no_grad():
        return _compiled_form(spec, want, binary, dtype)(*arguments)


def _make_form(spec: LossSpec, want: str, binary: bool, dtype: torch.dtype) -> _Form:
    """The closed form of one spec: a function of tensors alone.

    ``want``: "value" (the sum of the loss), "elements" (the loss [N, C]), "gradient", or "both" (sum and gradient).
    Sum and gradient are multiplied by ``scale`` (no dimension; [N, C] for the gradient alone). ``binary``: the targets
    are known to be 0 or 1; otherwise others turn the loss into NaN.
    """
    single = dtype == torch.float32
    exp = _fast_exp if single else torch.exp
    minus_log1p = _fast_minus_log1p if single else _exact_minus_log1p

    def form(
        logits: Tensor,
        targets: Tensor,
        bias: Tensor | None,
        inverse_frequency: Tensor | None,
        label_weight: Tensor | None,
        row_sum: Tensor | None,
        row_weight: Tensor | None,
        label_mask: Tensor | None,
        scale: Tensor,
    ) -> tuple[Tensor | None, Tensor | None]:
        y = targets.to(dtype)
        n = 1 - y
        d = logits.to(dtype)
        if bias is not None:
            d = d - bias
        # Blends by arithmetic throughout: Inductor's vector selects cost several times as much on a CPU.
        u = d * (spec.lam * n - y)  # -t: large where the prediction is wrong
        # The bound keeps products finite; what it cuts from p is below the last digit of anything it is added to.
        bounded = u.clamp(max=_BOUND)
        e = exp(bounded)
        e1 = 1 + e
        weight = None
        if inverse_frequency is not None:
            if row_sum is None:
                row_sum = (y * inverse_frequency).sum(1)
            exponent = (-spec.beta / row_sum)[:, None] * inverse_frequency + spec.beta * spec.mu
            if spec.beta * spec.mu < _BOUND / 3:
                f1 = 1 + exp(exponent)
                both = 1 / (e1 * f1)  # one division for the two sigmoids
                p = both * f1
                weight = spec.alpha + both * e1
            else:
                p = 1 / e1
                weight = spec.alpha + torch.sigmoid(-exponent)
        else:
            p = 1 / e1
        if label_weight is not None:
            weight = label_weight if weight is None else weight * label_weight
        if row_weight is not None:
            weight = row_weight[:, None] if weight is None else weight * row_weight[:, None]
        q = e * p
        log_part = minus_log1p(torch.minimum(p, q))
        nll = torch.relu(u) + log_part

        gamma, gamma_negative = spec.gammas
        w = power(q, gamma)
        if gamma_negative != gamma:
            w = _blend(y, n, w, power(q, gamma_negative))
        slope = q
        if gamma or gamma_negative:
            slope = q + _blend(y, n, gamma, gamma_negative) * p * (torch.relu(bounded) + log_part)
        if spec.probability_margin:
            shifted = (q - spec.probability_margin).clamp(min=0)
            nll_shifted = -torch.log1p(-shifted)
            ratio = torch.where(shifted > 0, nll_shifted / shifted, 1.0)
            slope_shifted = (gamma_negative * ratio + 1 / (1 - shifted)) * p * q
            slope_shifted = torch.where(shifted > 0, slope_shifted, 0.0)
            w = _blend(y, n, power(q, gamma), power(shifted, gamma_negative))
            nll = torch.where(y > 0, nll, nll_shifted)
            slope = torch.where(y > 0, slope, slope_shifted)
        w = weight if w is None else w if weight is None else weight * w

        loss = dz = None
        if want != "gradient":
            factor = _blend(y, n, spec.positive_factor, spec.negative_factor / spec.lam)
            loss = nll * factor if w is None else w * nll * factor
            if label_mask is not None:
                loss = torch.where(label_mask, loss, 0.0)
            if not binary:
                # Zero where the target is 0 or 1.
                invalid = (y * n).abs()
                if want == "elements":
                    loss = torch.where(invalid == 0, loss, math.nan)
                else:
                    loss = torch.where(invalid.sum(1) == 0, loss.sum(1), math.nan)
            elif want != "elements":
                loss = loss.sum(1)
            if want != "elements":
                # Rows first: one sum over all would be a second loop over a copy of the elements.
                loss = loss.sum() * scale
        if want in ("gradient", "both"):
            factor = (spec.negative_factor * n - spec.positive_factor * y) * scale
            dz = slope * factor if w is None else w * slope * factor
            if label_mask is not None:
                dz = torch.where(label_mask, dz, 0.0)
            dz = dz.to(logits.dtype)
        return loss, dz

    return form


def _polynomial(x: Tensor, coefficients: tuple[float, ...]) -> Any:
    """Even and odd powers apart, which halves the chain of dependent steps that the loop waits for.

    Higher powers than x * x would be denormal for small x, and slow.
    """
    square = x * x
    even, odd = (_horner(square, coefficients[start::2]) for start in (0, 1))
    return even + odd * x


def _horner(x: Tensor, coefficients: tuple[float, ...]) -> Any:
    total: Any = coefficients[-1]
    for coefficient in coefficients[-2::-1]:
        total = total * x + coefficient
    return total


def _fast_minus_log1p(m: Tensor) -> Tensor:
    """-log(1 - m) for m in [0, 1/2], float32."""
    return _polynomial(m, _LOG1P) * m


def _fast_exp(x: Tensor) -> Tensor:
    """exp(x) for x <= 88, float32; 0 from -88 down. Inline code, where torch.exp is a call for every 16 lanes."""
    x = x.clamp(min=-127 * math.log(2))
    power = torch.floor(x * (1 / math.log(2)) + 0.5)
    # log(2) in two parts, the first exact in any product with ``power``.
    f = (x - power * 0.693359375) + power * 2.12194440e-4
    # 2**power by its exponent bits; -127 gives all bits 0.
    bits = (power * 8388608.0 + 1065353216.0).to(torch.int32)
    return _polynomial(f, _EXP) * bits.view(torch.float32)


def _exact_minus_log1p(m: Tensor) -> Tensor:
    return -torch.log1p(-m)


def _blend(y: Tensor, n: Tensor, positive: Any, negative: Any) -> Any:
    """``positive`` where y = 1, ``negative`` where n = 1 - y = 1; None counts as 1."""
    if isinstance(positive, float) and positive == negative:
        return positive
    return (1.0 if positive is None else positive) * y + (1.0 if negative is None else negative) * n


_compiled_forms: dict[Any, _Form] = {}


def _compiled_form(spec: LossSpec, want: str, binary: bool, dtype: torch.dtype) -> _Form:
    key = (spec, want, binary, dtype)
    if key not in _compiled_forms:
        form = _make_form(spec, want, binary, dtype)
        assert isinstance(form, types.FunctionType)
        # Recompilations are counted by code object: each spec gets its own.
        own = types.FunctionType(
            form.__code__.replace(), form.__globals__, form.__name__, form.__defaults__, form.__closure__
        )
        _compiled_forms[key] = torch.compile(
            own, fullgraph=True, options={"cpp.enable_floating_point_contract_flag": "fast"}
        )
    return _compiled_forms[key]
