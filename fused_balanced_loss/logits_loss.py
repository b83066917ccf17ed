"""The loss over logits: checks, autograd, and the functional form."""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .backends.select import IMPLS, Backend, Impl, select
from .label_statistics import LabelStatistics
from .spec import LossSpec
from .targets import SparseTargets, check_binary
from .terms import Problem, compute_dtype, label_terms, pooled_row_weight

Reduction = Literal["none", "sum", "mean"]
GradientMode = Literal["auto", "forward", "backward", "in_place"]
REDUCTIONS: tuple[str, ...] = get_args(Reduction)
GRADIENT_MODES: tuple[str, ...] = get_args(GradientMode)

_LOGITS_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_TARGET_DTYPES = (torch.bool, torch.uint8, *_LOGITS_DTYPES)


class _GradientInForward(torch.autograd.Function):
    """``scale`` times the sum of the loss, with the gradient made in the same pass."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, problem: Problem, backend: Backend, scale: float, in_place: bool) -> Tensor:
        out = problem.logits if in_place else None
        loss, ctx.gradient = backend.value_and_gradient(problem, scale, out=out)
        if in_place:
            # Whatever else had saved the logits for its backward now raises.
            torch.autograd.graph.increment_version(logits)
        else:
            ctx.save_for_backward(logits)
        ctx.problem, ctx.backend, ctx.scale = problem.without_logits(), backend, scale
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        gradient, ctx.gradient = ctx.gradient, None
        if gradient is not None:
            ctx.backend.scale_gradient(gradient, upstream)
        elif ctx.saved_tensors:
            # A second backward: the first has given its gradient away.
            problem = ctx.problem._replace(logits=ctx.saved_tensors[0].detach())
            gradient = ctx.backend.gradient(problem, upstream, ctx.scale)
        else:
            raise RuntimeError("gradient='in_place' has overwritten the logits: there is no second backward")
        return gradient, None, None, None, None


class _GradientInBackward(torch.autograd.Function):
    """The loss [N, C], or ``scale`` times its sum; only the logits are saved."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, problem: Problem, backend: Backend, reduction: str, scale: float) -> Tensor:
        ctx.save_for_backward(logits)
        ctx.problem, ctx.backend, ctx.scale = problem.without_logits(), backend, scale
        return backend.value(problem, reduction, scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        problem = ctx.problem._replace(logits=ctx.saved_tensors[0].detach())
        return ctx.backend.gradient(problem, upstream, ctx.scale), None, None, None, None


def balanced_loss(
    logits: Tensor,
    targets: Tensor | SparseTargets,
    statistics: LabelStatistics | None,
    spec: LossSpec,
    *,
    reduction: Reduction = "mean",
    sample_weight: Tensor | None = None,
    label_mask: Tensor | None = None,
    impl: Impl = "auto",
    gradient: GradientMode = "auto",
) -> Tensor:
    """Balanced multi-label loss of logits (Huang et al., EMNLP 2021; the formula stands at :class:`LossSpec`).

    Args:
        logits: [..., C], float16, bfloat16, float32 or float64. All dimensions before the last are samples, N in all.
            Computed in float32 (float64 for float64). Never modified, but with ``gradient="in_place"``.
        targets: 1 where a sample carries a label, else 0: dense of the shape of the logits (bool, uint8 or floating
            point), a torch sparse CSR tensor [N, C] (converted at each call; :class:`SparseTargets` is not), or
            SparseTargets of N rows.
        statistics: label counts of the training set; None where the spec needs none.
        spec: which loss.
        reduction: ``"mean"`` over the N * C elements, or, with a label mask, over those it keeps; ``"sum"``; ``"none"``
            for the loss of each element.
        sample_weight: [...] (the shape of the logits without C), multiplies the loss of each sample; the mean still
            divides by N * C. Not differentiated.
        label_mask: bool [C] or the shape of the logits; False leaves an element out of loss, gradient and mean. The
            weights still take all targets into account.
        impl: ``"auto"`` chooses by device and size: Triton kernels on GPUs; on CPUs a C++ kernel (float32 and half
            precision, gamma 0, 1 or 2, no label mask, no margin), torch.compile for what that does not know, and few
            uncompiled operators for small inputs. ``"triton"``: custom kernels, for GPUs. ``"compile"``: closed form
            under torch.compile. ``"reference"``: the equations read literally.
        gradient: ``"forward"`` makes the gradient in the pass that computes the loss, and keeps it; ``"backward"``
            reads the logits again; ``"in_place"`` writes the gradient over the logits' storage: no second buffer, no
            later use of the logits. ``"auto"``: forward, or backward for float16, whose range the gradient
            of a mean can leave before the upstream gradient (a GradScaler's) is applied. Under torch.compile
            always backward.

    Returns:
        float32 (float64 for float64 logits): no dimensions, or the shape of the logits for reduction "none".

    A target other than 0 and 1 raises ValueError on the CPU; on other devices, where looking would stall, the loss and
    that element's gradient are NaN. A NaN logit gives NaN. An infinite logit gives 0 where it is right, and
    infinity with a finite gradient where it is wrong.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
        RuntimeError: for ``impl="triton"`` without Triton or GPU.
    """
    check_settings(spec, statistics, reduction, impl, gradient)
    _check_logits(logits, statistics if spec.needs_statistics else None)
    if gradient == "in_place":
        _check_writable(logits)
    shape, num_labels = logits.shape, logits.shape[-1]
    flat = logits if logits.dim() == 2 else logits.reshape(-1, num_labels)
    if flat.stride(1) != 1 and num_labels > 1:
        flat = flat.contiguous()
    targets = _flat_targets(targets, logits, flat)
    sample_weight = _flat_sample_weight(sample_weight, logits)
    label_mask = _flat_label_mask(label_mask, logits, flat)
    if len(flat) == 0:
        if reduction == "mean":
            raise ValueError(f"logits: expected at least one sample for reduction 'mean', got shape {list(shape)}")
        return (
            logits.to(compute_dtype(logits.dtype))
            if reduction == "none"
            else (logits * 0).sum(dtype=compute_dtype(logits.dtype))
        )

    dtype = compute_dtype(logits.dtype)
    row_weight = None if sample_weight is None else sample_weight.to(dtype)
    if spec.pooling != "label":
        assert statistics is not None
        pooled = pooled_row_weight(targets, statistics, spec, dtype)
        row_weight = pooled if row_weight is None or pooled is None else pooled * row_weight
    problem = Problem(
        logits=flat.detach(),
        targets=targets,
        spec=spec,
        terms=label_terms(statistics, spec, dtype, logits.device),
        row_weight=row_weight,
        label_mask=label_mask,
        num_samples=0 if statistics is None else statistics.num_samples,
        saved={},
    )
    backend = select(impl, logits)
    scale = 1 / flat.numel() if reduction == "mean" and label_mask is None else 1.0
    loss = _differentiable(flat, problem, backend, reduction, scale, gradient)
    if reduction == "mean" and label_mask is not None:
        loss = loss / label_mask.sum().clamp(min=1)
    if not torch.compiler.is_compiling() and loss.device.type == "cpu":
        # An invalid target has turned the loss into NaN: looking for one only then costs a good call nothing.
        lost = bool(torch.isnan(loss).any()) if reduction == "none" else math.isnan(loss.item())
        if lost and isinstance(targets, Tensor):
            check_binary(targets)
    return loss.reshape(shape) if reduction == "none" else loss


def _differentiable(
    flat: Tensor, problem: Problem, backend: Backend, reduction: str, scale: float, gradient: str
) -> Tensor:
    compiling = torch.compiler.is_compiling()
    if not (torch.is_grad_enabled() and flat.requires_grad) and not compiling:
        return backend.value(problem, reduction, scale)
    if compiling and hasattr(backend, "operator"):
        return backend.operator(problem._replace(logits=flat), reduction, scale)
    if gradient == "auto":
        # The mean over a mask is divided after the sum: the upstream gradient is never 1.
        early = flat.dtype != torch.float16 and (reduction == "mean") == (scale != 1.0)
        gradient = "forward" if early else "backward"
    if reduction == "none" or gradient == "backward" or compiling:
        return _GradientInBackward.apply(flat, problem, backend, reduction, scale)
    return _GradientInForward.apply(flat, problem, backend, scale, gradient == "in_place")


def check_settings(
    spec: LossSpec, statistics: LabelStatistics | None, reduction: str, impl: str, gradient: str
) -> None:
    """Raises TypeError or ValueError, naming the setting, unless all fit together."""
    if not isinstance(spec, LossSpec):
        raise TypeError(f"spec: expected a LossSpec, got {type(spec).__name__}")
    if statistics is not None and not isinstance(statistics, LabelStatistics):
        raise TypeError(f"statistics: expected LabelStatistics, got {type(statistics).__name__}")
    if statistics is None and spec.needs_statistics:
        raise ValueError("statistics: expected LabelStatistics, which this spec's weighting or kappa needs; got None")
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction: expected one of {', '.join(map(repr, REDUCTIONS))}; got {reduction!r}")
    if impl not in IMPLS:
        raise ValueError(f"impl: expected one of {', '.join(map(repr, IMPLS))}; got {impl!r}")
    if gradient not in GRADIENT_MODES:
        raise ValueError(f"gradient: expected one of {', '.join(map(repr, GRADIENT_MODES))}; got {gradient!r}")
    if gradient == "in_place" and reduction == "none":
        raise ValueError("gradient: 'in_place' needs reduction 'sum' or 'mean', got reduction 'none'")


def _check_logits(logits: Tensor, statistics: LabelStatistics | None) -> None:
    if not isinstance(logits, Tensor):
        raise TypeError(f"logits: expected a tensor, got {type(logits).__name__}")
    if logits.dtype not in _LOGITS_DTYPES:
        raise TypeError(f"logits: expected float16, bfloat16, float32 or float64, got {logits.dtype}")
    if logits.dim() < 2 or logits.shape[-1] == 0:
        raise ValueError(f"logits: expected [..., C] with at least two dimensions and C >= 1, got {list(logits.shape)}")
    if statistics is not None and logits.shape[-1] != statistics.num_labels:
        raise ValueError(
            f"logits: expected {statistics.num_labels} labels in the last dimension, as in statistics, "
            f"got shape {list(logits.shape)}"
        )


def _check_writable(logits: Tensor) -> None:
    """Raises ValueError where the gradient cannot be written over the logits."""
    base = logits._base if logits._is_view() else logits
    if logits.requires_grad and (base is None or base.is_leaf):
        raise ValueError("logits: expected the result of a computation for gradient='in_place', got a leaf or its view")
    strides = sorted((stride, size) for stride, size in zip(logits.stride(), logits.shape, strict=True) if size > 1)
    whole, reach = logits.stride(-1) == 1 or logits.shape[-1] == 1, 1
    for stride, size in strides:
        whole &= stride >= reach
        reach = stride * size
    try:
        logits.view(-1, logits.shape[-1])
    except RuntimeError:
        whole = False
    if not whole:
        raise ValueError(
            f"logits: expected rows side by side in memory for gradient='in_place', got shape {list(logits.shape)} "
            f"with strides {list(logits.stride())}"
        )


def _check_device(name: str, value: Tensor | SparseTargets, logits: Tensor) -> None:
    if value.device != logits.device:
        raise ValueError(f"{name}: expected the device of the logits, {logits.device}, got {value.device}")


def _flat_targets(targets: Tensor | SparseTargets, logits: Tensor, flat: Tensor) -> Tensor | SparseTargets:
    if isinstance(targets, Tensor) and targets.layout != torch.strided:
        targets = SparseTargets.from_torch(targets)
    if isinstance(targets, SparseTargets):
        if targets.shape != tuple(flat.shape):
            raise ValueError(f"targets: expected shape {list(flat.shape)}, as the logits, got {list(targets.shape)}")
        _check_device("targets", targets, logits)
        return targets
    if not isinstance(targets, Tensor):
        raise TypeError(f"targets: expected a tensor or SparseTargets, got {type(targets).__name__}")
    if targets.dtype not in _TARGET_DTYPES:
        raise TypeError(f"targets: expected bool, uint8 or a floating-point dtype, got {targets.dtype}")
    if targets.shape != logits.shape:
        raise ValueError(f"targets: expected shape {list(logits.shape)}, as the logits, got {list(targets.shape)}")
    if targets.requires_grad:
        raise ValueError("targets: expected a tensor without gradient, got one that requires it")
    _check_device("targets", targets, logits)
    targets = targets.reshape(flat.shape)
    return targets if targets.stride(1) == 1 else targets.contiguous()


def _flat_sample_weight(sample_weight: Tensor | None, logits: Tensor) -> Tensor | None:
    if sample_weight is None:
        return None
    if not isinstance(sample_weight, Tensor):
        raise TypeError(f"sample_weight: expected a tensor, got {type(sample_weight).__name__}")
    if sample_weight.shape != logits.shape[:-1]:
        raise ValueError(
            f"sample_weight: expected shape {list(logits.shape[:-1])}, one for each sample, "
            f"got {list(sample_weight.shape)}"
        )
    if sample_weight.requires_grad:
        raise ValueError("sample_weight: expected a tensor without gradient, got one that requires it")
    _check_device("sample_weight", sample_weight, logits)
    return sample_weight.reshape(-1)


def _flat_label_mask(label_mask: Tensor | None, logits: Tensor, flat: Tensor) -> Tensor | None:
    if label_mask is None:
        return None
    if not isinstance(label_mask, Tensor) or label_mask.dtype != torch.bool:
        got = label_mask.dtype if isinstance(label_mask, Tensor) else type(label_mask).__name__
        raise TypeError(f"label_mask: expected a bool tensor, got {got}")
    _check_device("label_mask", label_mask, logits)
    if label_mask.shape == logits.shape[-1:]:
        return label_mask.contiguous().expand(flat.shape)
    if label_mask.shape != logits.shape:
        raise ValueError(
            f"label_mask: expected shape {list(logits.shape[-1:])} or {list(logits.shape)}, "
            f"got {list(label_mask.shape)}"
        )
    return label_mask.reshape(flat.shape).contiguous()
