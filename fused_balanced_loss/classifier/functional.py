"""Linear classifier and loss in one, without the logits: checks, autograd, and the functional form."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, Protocol, get_args

import torch
from torch import Tensor

from ..arguments import Reduction, check_settings, check_targets_of, flat_label_mask, flat_sample_weight, flat_targets
from ..backends.problem import Problem, compute_dtype, label_terms, row_weight
from ..backends.select import Backend, Impl, select
from ..first_order import first_order
from ..functional import balanced_loss
from ..label_statistics import LabelStatistics
from ..optim.base import ClassifierUpdate
from ..optim.rule import Sink
from ..spec import LossSpec
from ..targets import SparseTargets
from .chunked_pass import Gradients, classifier_pass, default_chunk_size
from .label_chunks import LabelChunks

LinearGradientMode = Literal["auto", "forward", "backward"]
LINEAR_GRADIENT_MODES: tuple[str, ...] = get_args(LinearGradientMode)

_NO_LOGITS = torch.empty(0)


class Stepping(Protocol):
    """What takes the gradients of weight and bias, as :class:`ClassifierUpdate` does."""

    def step(self, weight: Tensor, bias: Tensor | None, factor: Tensor, finite: Tensor) -> Sink: ...


class Call(NamedTuple):
    """One call's settings: what forward and backward share besides features, weight and bias.

    problem: of all ``num_labels`` labels, without logits. first_label: the label of the weight's first row.
    dtype: of the products.
    """

    problem: Problem
    backend: Backend
    chunk_size: int
    first_label: int
    num_labels: int
    scale: float
    dtype: torch.dtype

    def run(
        self, features: Tensor, weight: Tensor, bias: Tensor | None, wants: tuple[bool, bool, bool], sink: Any = None
    ) -> tuple[Tensor, Gradients]:
        # A second pass finds them cut.
        chunks = self.problem.saved.get("chunks")
        if chunks is None:
            chunks = LabelChunks(self.problem, self.chunk_size, self.first_label, len(weight))
            self.problem.saved["chunks"] = chunks
        return classifier_pass(
            features.detach().to(self.dtype),
            weight.detach(),
            None if bias is None else bias.detach(),
            chunks,
            self.chunk_size,
            self.backend,
            self.scale,
            wants=wants,
            sink=sink,
        )


class _LinearLoss(torch.autograd.Function):
    """``scale`` times the sum of the loss; ``early`` makes the gradients in the same pass."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: Tensor, bias: Tensor | None, call: Call, early: bool) -> Tensor:
        wants = tuple(ctx.needs_input_grad[:3])
        loss, gradients = call.run(features, weight, bias, wants if early else (False, False, False))
        ctx.save_for_backward(features, weight, bias, *call.problem.given())
        ctx.call, ctx.wants, ctx.gradients = call, wants, gradients if early else None
        ctx.dtypes = features.dtype, None if bias is None else bias.dtype
        return loss

    @staticmethod
    @first_order
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            # In the backward by choice, or a second one: the first has given its gradients away.
            features, weight, bias, *_ = ctx.saved_tensors
            _, gradients = ctx.call.run(features, weight, bias, ctx.wants)
        call: Call = ctx.call
        features_dtype, bias_dtype = ctx.dtypes
        return (*finish(gradients, upstream, call.scale, features_dtype, bias_dtype, call.backend), None, None)


class _UpdatingLoss(torch.autograd.Function):
    """``scale`` times the sum of the loss; the backward changes weight and bias."""

    @staticmethod
    def forward(
        ctx: Any, features: Tensor, weight: Tensor, bias: Tensor | None, call: Call, update: Stepping
    ) -> Tensor:
        loss, _ = call.run(features, weight, bias, (False, False, False))
        ctx.save_for_backward(features, weight, bias, loss, *call.problem.given())
        ctx.call, ctx.update = call, update
        return loss

    @staticmethod
    @first_order
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        # A second backward finds the weight changed, and autograd says so.
        features, weight, bias, loss, *_ = ctx.saved_tensors
        call: Call = ctx.call
        finite = torch.isfinite(loss) & torch.isfinite(upstream)
        sink = ctx.update.step(weight.detach(), None if bias is None else bias.detach(), upstream * call.scale, finite)
        _, gradients = call.run(features, weight, bias, (ctx.needs_input_grad[0], True, True), sink)
        torch.autograd.graph.increment_version(weight)
        if bias is not None:
            torch.autograd.graph.increment_version(bias)
        return (finish(gradients, upstream, call.scale, features.dtype, None)[0], None, None, None, None)


def finish(
    gradients: Gradients,
    upstream: Tensor,
    scale: float,
    features: torch.dtype,
    bias: torch.dtype | None,
    backend: Backend | None = None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients times scale and upstream gradient, in the dtypes of features and bias; with ``backend`` the weight's in
    place."""
    factor = upstream * scale
    d_features, d_weight, d_bias = gradients
    if d_features is not None:
        d_features = (d_features * factor).to(features)
    if d_weight is not None:
        rest = factor if d_weight.dtype == torch.float16 else upstream
        if backend is None:
            d_weight = (d_weight * rest).to(d_weight.dtype)
        else:
            backend.scale_gradient(d_weight, rest)
    if d_bias is not None and bias is not None:
        d_bias = (d_bias * factor).to(bias)
    return d_features, d_weight, d_bias


def linear_balanced_loss(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor | SparseTargets,
    spec: LossSpec,
    statistics: LabelStatistics | None = None,
    *,
    reduction: Reduction = "mean",
    sample_weight: Tensor | None = None,
    label_mask: Tensor | None = None,
    chunk_size: int | None = None,
    impl: Impl = "auto",
    gradient: LinearGradientMode = "auto",
    update: ClassifierUpdate | None = None,
) -> Tensor:
    """``balanced_loss(F.linear(features, weight, bias), ...)`` without the logits.

    No element of these losses (Huang et al., EMNLP 2021) needs another's logit, so a chunk of labels is finished when
    it has been seen once: its logits are made, turned into their gradient in place, and multiplied into the gradients
    of features and weight, before the next chunk takes their place. Beyond the arguments and their gradients this
    holds one chunk of logits [N, chunk_size], whatever C is.

    Args:
        features: [..., D], float16, bfloat16, float32 or float64. All dimensions before the last are samples, N in all.
        weight: [C, D]. Of the features' dtype, except under autocast, whose dtype the products then take: the weight
            is converted chunk by chunk.
        bias: [C], or None.
        targets, statistics, spec, sample_weight, label_mask: as for :func:`balanced_loss`, for logits [..., C].
        reduction: ``"mean"`` or ``"sum"``.
        chunk_size: labels of a chunk, at least 1; None takes as many, a multiple of 128, as keep weights and logits of
            a chunk in cache.
        impl: as for :func:`balanced_loss`; ``"reference"`` makes the logits.
        gradient: ``"forward"`` makes the gradients in the pass that computes the loss, and keeps them;
            ``"backward"`` computes each chunk's logits again. ``"auto"``: forward.
        update: an in-place optimizer that changes weight and bias in the backward, chunk by chunk; they get no
            gradient. Each backward is one step. Weight and bias that do not require grad stay as they are. Under
            torch.compile the graph breaks here.

    Returns:
        float32 (float64 for float64 features), no dimensions. Products accumulate in float32; factor and upstream
        gradient are applied in float32.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
        RuntimeError: for ``impl="triton"`` without Triton or GPU; in the backward, under ``create_graph=True``.
    """
    check_linear_settings(spec, statistics, reduction, impl, gradient, chunk_size)
    check_classifier(features, weight, bias, statistics if spec.needs_statistics else None)
    if update is not None:
        if impl == "reference":
            raise ValueError("update: expected None with impl 'reference', which makes logits and whole gradients")
        update.check(weight, bias)
        for name, part in (("weight", weight), ("bias", bias)):
            base = part if part is None or part._base is None else part._base
            if base is not None and not base.is_leaf:
                raise ValueError(
                    f"{name}: expected a parameter for update, which changes it in place, got the result of a "
                    "computation, such as a parametrization's"
                )
    if impl == "reference":
        logits = torch.nn.functional.linear(features, weight, bias)
        return balanced_loss(
            logits,
            targets,
            spec,
            statistics,
            reduction=reduction,
            sample_weight=sample_weight,
            label_mask=label_mask,
            impl=impl,
        )
    flat = features.reshape(-1, features.shape[-1])
    shape = (*features.shape[:-1], len(weight))
    call, divisor = prepare(
        flat, shape, targets, statistics, spec, reduction, sample_weight, label_mask, chunk_size, impl
    )
    if len(flat) == 0:
        return loss_of_nothing(flat, weight, bias, update)
    loss = run_call(flat, weight, bias, call, impl, gradient, update)
    return finish_loss(loss, divisor, call.problem.targets)


def loss_of_nothing(flat: Tensor, weight: Tensor, bias: Tensor | None, update: ClassifierUpdate | None) -> Tensor:
    """Zero, with zero gradients; a classifier that is updated in place gets none."""
    rest = (weight, bias) if update is None else (flat.new_zeros(1).requires_grad_(),)
    nothing = sum(part[:0].sum() for part in rest if part is not None)
    return (flat.sum() + nothing).to(compute_dtype(flat.dtype))


def run_call(
    flat: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    call: Call,
    impl: str,
    gradient: str,
    update: Stepping | None,
) -> Tensor:
    """``call``'s loss for features [N, D], differentiable where anything wants a gradient."""
    if update is not None and _trains(weight, bias):
        if torch.compiler.is_compiling():
            torch._dynamo.graph_break()
        loss: Tensor = _UpdatingLoss.apply(flat, weight, bias, call, update)
        return loss
    if torch.compiler.is_compiling():
        from .operator import operator

        return operator(flat, weight, bias, call, impl)
    if not torch.is_grad_enabled():
        return call.run(flat, weight, bias, (False, False, False))[0]
    # Also where nothing requires grad, so that forward-mode differentiation and vmap raise.
    loss = _LinearLoss.apply(flat, weight, bias, call, gradient != "backward")
    return loss


def _trains(weight: Tensor, bias: Tensor | None) -> bool:
    """Whether an update may change the classifier."""
    if bias is not None and bias.requires_grad != weight.requires_grad:
        raise ValueError(
            "bias: expected to require grad where the weight does, as update changes both, "
            f"got requires_grad={bias.requires_grad} beside {weight.requires_grad}"
        )
    return weight.requires_grad


def prepare(
    flat: Tensor,
    shape: tuple[int, ...],
    targets: Tensor | SparseTargets,
    statistics: LabelStatistics | None,
    spec: LossSpec,
    reduction: str,
    sample_weight: Tensor | None,
    label_mask: Tensor | None,
    chunk_size: int | None,
    impl: str,
    first_label: int = 0,
    num_rows: int | None = None,
) -> tuple[Call, Tensor | None]:
    """The call for features [N, D] and logits of ``shape`` [..., C], and what its loss is yet to be divided by.

    A shard of the classifier has ``num_rows`` of the C labels, from ``first_label``.
    """
    device, num_labels = flat.device, shape[-1]
    targets = flat_targets(targets, shape, device)
    mask = flat_label_mask(label_mask, shape, device)
    sample_weight = flat_sample_weight(sample_weight, shape, device)
    if len(flat) == 0 and reduction == "mean":
        raise ValueError(f"features: expected at least one sample for reduction 'mean', got shape {list(shape[:-1])}")
    dtype = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else flat.dtype
    exact = compute_dtype(dtype)
    problem = Problem(
        logits=_NO_LOGITS,
        targets=targets,
        spec=spec,
        terms=label_terms(statistics, spec, exact, device),
        row_weight=row_weight(targets, statistics, spec, sample_weight, exact),
        label_mask=mask,
        num_samples=0 if statistics is None else statistics.num_samples,
        saved={},
    )
    own = num_labels if num_rows is None else num_rows
    if chunk_size is None:
        chunk_size = default_chunk_size(len(flat), flat.shape[1], dtype, device)
    call = Call(
        problem=problem,
        backend=select(impl, device, len(flat) * own),
        chunk_size=min(chunk_size, max(own, 1)),
        first_label=first_label,
        num_labels=num_labels,
        scale=1 / (len(flat) * num_labels) if reduction == "mean" and mask is None else 1.0,
        dtype=dtype,
    )
    return call, mask.sum().clamp(min=1) if reduction == "mean" and mask is not None else None


def finish_loss(loss: Tensor, divisor: Tensor | None, targets: Tensor | SparseTargets) -> Tensor:
    """The mean over a mask; and an error for the invalid target that has turned the loss into NaN."""
    if divisor is not None:
        loss = loss / divisor
    check_targets_of(loss, targets)
    return loss


def check_linear_settings(
    spec: LossSpec,
    statistics: LabelStatistics | None,
    reduction: str,
    impl: str,
    gradient: str,
    chunk_size: int | None,
) -> None:
    """Raises TypeError or ValueError, naming the setting, unless all fit together."""
    check_settings(spec, statistics, reduction, impl, "auto")
    if reduction == "none":
        raise ValueError("reduction: expected 'mean' or 'sum', got 'none', which would need the logits")
    if gradient not in LINEAR_GRADIENT_MODES:
        expected = ", ".join(map(repr, LINEAR_GRADIENT_MODES))
        raise ValueError(f"gradient: expected one of {expected}; got {gradient!r}")
    if chunk_size is not None and (isinstance(chunk_size, bool) or not isinstance(chunk_size, int)):
        raise TypeError(f"chunk_size: expected an integer or None, got {type(chunk_size).__name__}")
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size: expected at least 1, got {chunk_size}")


def check_classifier(features: Tensor, weight: Tensor, bias: Tensor | None, statistics: LabelStatistics | None) -> None:
    """Raises TypeError or ValueError unless features, weight, bias and statistics belong together."""
    for name, value in (("features", features), ("weight", weight), ("bias", bias)):
        if name == "bias" and value is None:
            continue
        if not isinstance(value, Tensor):
            raise TypeError(f"{name}: expected a tensor, got {type(value).__name__}")
        if value.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
            raise TypeError(f"{name}: expected float16, bfloat16, float32 or float64, got {value.dtype}")
        if value.device != features.device:
            raise ValueError(f"{name}: expected the device of the features, {features.device}, got {value.device}")
        if value.dtype != features.dtype and not torch.is_autocast_enabled(features.device.type):
            raise TypeError(f"{name}: expected the dtype of the features, {features.dtype}, got {value.dtype}")
    if features.dim() < 2 or features.shape[-1] == 0:
        raise ValueError(f"features: expected [..., D] with at least two dimensions, got shape {list(features.shape)}")
    if weight.dim() != 2 or weight.shape[1] != features.shape[-1] or len(weight) == 0:
        raise ValueError(f"weight: expected [C, {features.shape[-1]}] with C >= 1, got shape {list(weight.shape)}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias: expected [{len(weight)}], as the weight's rows, got shape {list(bias.shape)}")
    if statistics is not None and statistics.num_labels != len(weight):
        raise ValueError(
            f"weight: expected {statistics.num_labels} rows, as labels in statistics, got shape {list(weight.shape)}"
        )
