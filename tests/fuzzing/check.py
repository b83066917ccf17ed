"""Runs one case and holds value, gradient, errors and arguments against what they should be."""

from __future__ import annotations

import contextlib
import math
import re
import warnings
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from fused_balanced_loss import SparseTargets, balanced_loss, linear_balanced_loss

from .call_arguments import Arguments, make
from .cases import DENSE, Case
from .compare import Bounds, disagreement
from .exact import Batch, Exact, exact, plain
from .memory import bytes_of

_NAMED = re.compile(
    r"^(logits|targets|features|weight|bias|sample_weight|label_mask|statistics|spec|reduction|gradient|impl|"
    r"chunk_size|ignore_index|crow|col|pos_weight|class_weight): "
)


def check(case: Case) -> str | None:
    """What is wrong with a case's results, in one line; None where nothing is."""
    try:
        arguments = make(case)
    except Exception as error:
        # SparseTargets are made there.
        return _judge_error(case, error, set())
    expected_errors = _expected_errors(case, arguments)
    before = {name: (bytes_of(base).clone(), _version(base)) for name, base in arguments.bases.items()}
    try:
        results = _call(case, arguments)
        if case.values % 2:
            # The second call of a kind goes by what was kept of the first.
            results = _call(case, arguments)
    except Exception as error:
        return _judge_error(case, error, expected_errors)
    if expected_errors:
        return f"raised nothing, where an error of {' or '.join(sorted(expected_errors))} was expected"
    changed = [
        name
        for name, base in arguments.bases.items()
        if not torch.equal(bytes_of(base), before[name][0]) or _version(base) != before[name][1]
    ]
    if changed:
        return f"modified {', '.join(changed)}"
    return _judge_linear(case, arguments, results) if case.linear else _judge(case, arguments, results)


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _kept(case: Case, arguments: Arguments) -> tuple[Tensor, Tensor]:
    """Targets as float64 [N, C], and the elements that no mask leaves out; copies, with which autograd may work."""
    number = math.prod(case.rows)
    targets = arguments.targets
    if isinstance(targets, SparseTargets):
        y = torch.zeros(number, case.labels, dtype=torch.float64)
        # PyTorch's own indexing takes no notice of an index's negative bit.
        crow, col = targets.crow.resolve_neg(), targets.col.resolve_neg()
        for k in range(number):
            y[k, col[int(crow[k]) : int(crow[k + 1])]] = 1.0
    else:
        y = (targets.to_dense() if targets.layout != torch.strided else targets).double().reshape(number, case.labels)
    kept = torch.ones(number, case.labels, dtype=torch.bool)
    if case.label_mask:
        kept = arguments.tensors["label_mask"].expand(*case.rows, case.labels).reshape(number, case.labels)
    if case.ignore_index is not None:
        kept = kept & (y != case.ignore_index)
    return y.clone(), kept.clone()


def _valid(case: Case, y: Tensor) -> Tensor:
    """Which targets may be what they are: floating-point numbers in [0, 1], others 0 and 1."""
    return (y >= 0) & (y <= 1) if DENSE.get(case.targets, torch.bool).is_floating_point else (y == 0) | (y == 1)


def _expected_errors(case: Case, arguments: Arguments) -> set[str]:
    y, kept = _kept(case, arguments)
    expected = set()
    if bool((kept & ~_valid(case, y)).any()):
        expected.add("targets")
    if 0 in case.rows and case.reduction in ("mean", "batchmean"):
        expected |= {"features", "logits"} if case.linear else {"logits"}
    if case.gradient == "in_place" and case.reduction == "none":
        expected.add("gradient")
    return expected


def _judge_error(case: Case, error: Exception, expected: set[str]) -> str | None:
    said = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:300]
    named = _NAMED.match(str(error))
    if named and named[1] == "impl" and case.impl in ("cpp", "triton") and isinstance(error, RuntimeError):
        return None
    if not named or not isinstance(error, (TypeError, ValueError, NotImplementedError)):
        return f"raised {said}"
    if named[1] in expected:
        return None
    if case.gradient == "in_place" and named[1] == "logits":
        # Logits that share elements or have gaps cannot take their gradient.
        return None
    return f"refused: {said}"


@contextlib.contextmanager
def _poisoned() -> Iterator[None]:
    """Fresh buffers hold NaN, so that an element nobody wrote shows."""

    def poisoning(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def poisoned(*arguments: Any, **options: Any) -> Tensor:
            tensor = function(*arguments, **options)
            return tensor.fill_(math.nan) if tensor.is_floating_point() and tensor.device.type == "cpu" else tensor

        return poisoned

    with (
        mock.patch.object(torch, "empty", poisoning(torch.empty)),
        mock.patch.object(torch, "empty_like", poisoning(torch.empty_like)),
        mock.patch.object(torch.Tensor, "new_empty", poisoning(torch.Tensor.new_empty)),
    ):
        yield


def _leaf(case: Case, arguments: Arguments, name: str, grad: bool) -> Tensor:
    """The argument, requiring grad: as a leaf of its own, or as a view of a leaf that owns the memory."""
    if not grad:
        return arguments.tensors[name]
    if case.values % 3 and case.form(name) != "contiguous":
        return arguments.views[name](arguments.bases[name].requires_grad_())
    return arguments.tensors[name].requires_grad_()


def _call(case: Case, arguments: Arguments) -> list[Tensor]:
    """Loss, and the gradients of logits, or of features, weight and bias."""
    options: dict[str, Any] = {
        name: arguments.tensors[name] for name in ("sample_weight", "label_mask") if name in arguments.tensors
    }
    options |= {"reduction": case.reduction, "gradient": case.gradient, "impl": case.impl}
    if case.ignore_index is not None:
        options["ignore_index"] = case.ignore_index
    for name, value in arguments.label_weights.items():
        plain_name = "class_weight" if case.linear else "weight"
        options["pos_weight" if name == "pos_weight" else plain_name] = value
    if case.linear:
        names = ("features", "weight", "bias")
        leaves = [_leaf(case, arguments, name, case.grad) if name in arguments.tensors else None for name in names]
        inputs, call = leaves, linear_balanced_loss
        options["chunk_size"] = case.chunk_size
    else:
        z = _leaf(case, arguments, "logits", case.grad)
        leaves, inputs, call = [z], [z], balanced_loss
        if case.gradient == "in_place":
            # The gradient is written over a result's memory, and no longer belongs to that result.
            leaf = arguments.bases["logits"].detach().clone().requires_grad_(case.grad)
            computed = leaf * 1
            leaves, inputs = [leaf], [arguments.views["logits"](computed)]
            beside = computed.detach().clone()
    wanted = [leaf for leaf in leaves if leaf is not None]
    with warnings.catch_warnings(), contextlib.nullcontext() if case.impl == "compile" else _poisoned():
        warnings.simplefilter("ignore")
        loss = call(*inputs, arguments.targets, spec=case.spec, statistics=arguments.statistics, **options)
        if not case.grad:
            return [loss.detach()]
        upstream = arguments.tensors.get("upstream")
        if upstream is None:
            upstream = torch.tensor(case.upstream, dtype=loss.dtype)
        gradients = torch.autograd.grad(loss, wanted, upstream)
    for name in arguments.bases:
        arguments.bases[name] = arguments.bases[name].detach()
    if case.gradient == "in_place":
        # What lies between the logits is nobody's to write.
        for memory in (beside, computed.detach()):
            arguments.views["logits"](memory).zero_()
        if not torch.equal(bytes_of(beside), bytes_of(computed.detach())):
            raise AssertionError("memory beside the logits was written")
        if case.form("logits").startswith("expanded") and computed.numel():
            # An implementation that makes another buffer takes these: the gradients of one number are summed.
            return [loss.detach()]
        gradients = (arguments.views["logits"](gradients[0]),)
    return [loss.detach(), *gradients]


def _batch(case: Case, arguments: Arguments, z: Tensor, z_error: Tensor | float = 0.0) -> Batch:
    y, kept = _kept(case, arguments)
    number = math.prod(case.rows)
    weight = torch.ones(number, dtype=torch.float64)
    if case.sample_weight:
        weight = arguments.tensors["sample_weight"].detach().double().reshape(number).clone()
    counts = arguments.counts.clamp(1, case.num_train - 1).double()
    y = torch.where(_valid(case, y), y, 0.0)
    factors = []
    for name in ("label_weight", "pos_weight"):
        value = torch.as_tensor(arguments.label_weights.get(name, 1.0), dtype=torch.float64)
        factors.append(value.detach().expand(case.labels).clone())
    return Batch(z, y, kept, weight, counts, case.num_train, z_error, *factors)


def _divisor(case: Case, batch: Batch) -> float:
    if case.reduction == "mean":
        return float(max(int(batch.kept.sum()), 1))
    return float(max(len(batch.z), 1)) if case.reduction == "batchmean" else 1.0


def _eps(dtype: torch.dtype) -> float:
    return torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps


def _total(values: Tensor, margins: Tensor, free: Tensor, eps: float, divisor: float) -> Bounds:
    size = values.abs().nan_to_num(0.0, 0.0, 0.0).sum()
    margin = (margins.sum() + 8 * eps * size) / divisor
    total = values.sum() / divisor
    return Bounds(total, margin, free.any())


def _judge(case: Case, arguments: Arguments, results: list[Tensor]) -> str | None:
    z = arguments.tensors["logits"].detach().double().reshape(math.prod(case.rows), case.labels).clone()
    batch, eps = _batch(case, arguments, z), _eps(case.dtype)
    truth = exact(batch, case.spec, eps)
    divisor, shape = _divisor(case, batch), (*case.rows, case.labels)
    loss_dtype = torch.float64 if case.dtype == torch.float64 else torch.float32

    def bounds(truth: Exact, loss_error: Tensor | float = 0.0, gradient_error: Tensor | float = 0.0) -> list[Bounds]:
        whole = truth._replace(
            loss_margin=truth.loss_margin + loss_error, gradient_margin=truth.gradient_margin + gradient_error
        )
        if case.reduction == "none":
            loss = Bounds(*(part.reshape(shape) for part in (whole.loss, whole.loss_margin, whole.free)))
        else:
            loss = _total(whole.loss, whole.loss_margin, whole.free, eps, divisor)
        upstream: Tensor | float = case.upstream
        if case.reduction == "none":
            upstream = arguments.tensors["upstream"].double().reshape(z.shape)
        factor = torch.as_tensor(upstream, dtype=torch.float64) / divisor
        rounded = torch.finfo(case.dtype)
        gradient = whole.gradient * factor
        # Stored in the dtype of the logits, and scaled once more where it was made in the forward.
        early = case.gradient in ("forward", "in_place", "auto")
        least = rounded.smallest_normal * rounded.eps * (1 + (abs(case.upstream) if early else 0.0))
        margin = whole.gradient_margin * factor.abs() + 1.6 * rounded.eps * gradient.abs() + least
        if rounded.smallest_normal < 1e-30:
            margin = margin + rounded.smallest_normal * (1 + abs(case.upstream))
        margin = torch.where(batch.kept, margin, 0.0)
        unbounded = whole.gradient.abs() / divisor > 0.98 * rounded.max
        return [loss, Bounds(gradient.reshape(shape), margin.reshape(shape), unbounded.reshape(shape))]

    names, dtypes = ("loss", "gradient"), (loss_dtype, case.dtype)
    wrong = _first_disagreement(names, dtypes, results, bounds(truth))
    if wrong is None:
        return None
    # The rule: twice the error that plain PyTorch makes in the same dtype.
    plain_loss, plain_gradient = plain(batch, case.spec, loss_dtype)
    errors = [
        2 * (one - other).abs().nan_to_num(0.0, 0.0, 0.0)
        for one, other in ((plain_loss, truth.loss), (plain_gradient, truth.gradient))
    ]
    return _first_disagreement(names, dtypes, results, bounds(truth, *errors))


def _first_disagreement(
    names: tuple[str, ...], dtypes: tuple[torch.dtype, ...], results: list[Tensor], expected: list[Bounds]
) -> str | None:
    for name, dtype, ours, bound in zip(names, dtypes, results, expected, strict=False):
        if ours.dtype != dtype:
            return f"{name} has dtype {ours.dtype} for {dtype}"
        wrong = disagreement(ours, bound)
        if wrong:
            return f"{name} {wrong}"
    return None


def _judge_linear(case: Case, arguments: Arguments, results: list[Tensor]) -> str | None:
    parts = {name: part.detach().double() for name, part in arguments.tensors.items()}
    x, w = parts["features"].reshape(-1, case.features), parts["weight"]
    b = parts.get("bias", torch.zeros(case.labels, dtype=torch.float64))
    eps, own = _eps(case.dtype), torch.finfo(case.dtype)
    size = x.abs() @ w.abs().t() + b.abs()
    # A program rounds its logits to their dtype, after a sum of D products.
    z = x @ w.t() + b
    z_error = size * (0.6 * own.eps + (case.features + 2) ** 0.5 * 2 * eps)
    batch = _batch(case, arguments, z, z_error)
    truth = exact(batch, case.spec, eps)
    divisor = _divisor(case, batch)
    factor = case.upstream / divisor
    dz = truth.gradient * factor
    least = own.smallest_normal * own.eps * (1 + abs(case.upstream))
    off = truth.gradient_margin * abs(factor) + own.eps * dz.abs() + least * (1 + abs(factor))

    def product(a: Tensor, a_off: Tensor, c: Tensor, terms: int) -> Bounds:
        total, large = a @ c, a.abs() @ c.abs()
        margin = a_off @ c.abs() + (1.6 * own.eps + 4 * eps * max(terms, 1) ** 0.5) * large + least
        return Bounds(total, margin, torch.zeros((), dtype=torch.bool))

    number = len(x)
    # Chunks are added one to another, in the dtype of the loss.
    chunks = case.labels / (case.chunk_size or case.labels)
    chunks_margin = truth.loss_margin + 0.5 * eps * chunks * truth.loss.abs()
    expected = [
        _total(truth.loss, chunks_margin, truth.free, eps, divisor),
        product(dz, off, w, case.labels),
        product(dz.t(), off.t(), x, number),
        product(dz.t(), off.t(), torch.ones(number, 1, dtype=torch.float64), number),
    ]
    expected[1] = Bounds(*(part.reshape(*case.rows, case.features) for part in expected[1][:2]), expected[1].free)
    expected[3] = Bounds(*(part[:, 0] for part in expected[3][:2]), expected[3].free)
    loss_dtype = torch.float64 if case.dtype == torch.float64 else torch.float32
    names = ("loss", "gradient of features", "gradient of weight", "gradient of bias")
    wrong = _first_disagreement(names, (loss_dtype, *(case.dtype,) * 3), results, expected)
    if wrong is None or not all(bool(torch.isfinite(part).all()) for part in results):
        return wrong
    # The rule, for each result as a whole: of F.linear and the formula in the same dtypes.
    logits = (x.to(case.dtype) @ w.to(case.dtype).t() + b.to(case.dtype)).double()
    loss, dz = plain(batch._replace(z=logits), case.spec, loss_dtype)
    dz = (dz * factor).to(case.dtype).double()
    others = (loss.sum() / divisor, (dz @ w).reshape(*case.rows, case.features), dz.t() @ x, dz.sum(0))
    for ours, other, bound in zip(results, others, expected, strict=False):
        error, allowed = (ours.double() - bound.value).norm(), (other.to(ours.dtype).double() - bound.value).norm()
        if not error <= 2 * allowed + 4 * torch.finfo(ours.dtype).eps * bound.value.norm():
            return wrong
    return None


def kind(wrong: str) -> str:
    """Without numbers: failures of one kind have one cause more often than not."""
    return re.sub(r"[-+]?\d[\d.e+-]*", "#", wrong)[:160]


__all__ = ["DENSE", "check", "kind"]
