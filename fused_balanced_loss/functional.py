"""The loss over logits: checks, autograd, and the functional form."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .arguments import (
    GradientMode,
    Reduction,
    check_logits,
    check_settings,
    check_targets_of,
    check_writable,
    flat_label_mask,
    flat_sample_weight,
    flat_targets,
)
from .backends.problem import Problem, compute_dtype, label_terms, row_weight
from .backends.select import Backend, Impl, select
from .first_order import first_order
from .label_statistics import LabelStatistics
from .spec import LossSpec
from .targets import SparseTargets


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
            ctx.save_for_backward(logits, *problem.given())
        ctx.problem, ctx.backend, ctx.scale = problem.without_logits(), backend, scale
        return loss

    @staticmethod
    @first_order
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
    """The loss [N, C], or ``scale`` times its sum; nothing is kept but what came in."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, problem: Problem, backend: Backend, reduction: str, scale: float) -> Tensor:
        ctx.save_for_backward(logits, *problem.given())
        ctx.problem, ctx.backend, ctx.scale = problem.without_logits(), backend, scale
        return backend.value(problem, reduction, scale)

    @staticmethod
    @first_order
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        problem = ctx.problem._replace(logits=ctx.saved_tensors[0].detach())
        return ctx.backend.gradient(problem, upstream, ctx.scale), None, None, None, None


def balanced_loss(
    logits: Tensor,
    targets: Tensor | SparseTargets,
    spec: LossSpec,
    statistics: LabelStatistics | None = None,
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
        RuntimeError: for ``impl="triton"`` without Triton or GPU; in the backward, under ``create_graph=True``.
    """
    check_settings(spec, statistics, reduction, impl, gradient)
    check_logits(logits, statistics if spec.needs_statistics else None)
    if gradient == "in_place":
        check_writable(logits)
    shape, num_labels = logits.shape, logits.shape[-1]
    flat = logits if logits.dim() == 2 else logits.reshape(-1, num_labels)
    if flat.stride(1) != 1 and num_labels > 1:
        flat = flat.contiguous()
    targets = flat_targets(targets, shape, logits.device)
    sample_weight = flat_sample_weight(sample_weight, shape, logits.device)
    label_mask = flat_label_mask(label_mask, shape, logits.device)
    if len(flat) == 0:
        if reduction == "mean":
            raise ValueError(f"logits: expected at least one sample for reduction 'mean', got shape {list(shape)}")
        return (
            logits.to(compute_dtype(logits.dtype))
            if reduction == "none"
            else (logits * 0).sum(dtype=compute_dtype(logits.dtype))
        )

    dtype = compute_dtype(logits.dtype)
    problem = Problem(
        logits=flat.detach(),
        targets=targets,
        spec=spec,
        terms=label_terms(statistics, spec, dtype, logits.device),
        row_weight=row_weight(targets, statistics, spec, sample_weight, dtype),
        label_mask=label_mask,
        num_samples=0 if statistics is None else statistics.num_samples,
        saved={},
    )
    backend = select(impl, logits.device, logits.numel())
    scale = 1 / flat.numel() if reduction == "mean" and label_mask is None else 1.0
    if gradient == "auto":
        # The mean over a mask is divided after the sum: the upstream gradient is never 1.
        late = logits.dtype == torch.float16 or (reduction == "mean" and label_mask is not None)
        gradient = "backward" if late else "forward"
    loss = _differentiable(flat, problem, backend, reduction, scale, gradient)
    if reduction == "mean" and label_mask is not None:
        loss = loss / label_mask.sum().clamp(min=1)
    check_targets_of(loss, targets)
    return loss.reshape(shape) if reduction == "none" else loss


def _differentiable(
    flat: Tensor, problem: Problem, backend: Backend, reduction: str, scale: float, gradient: str
) -> Tensor:
    compiling = torch.compiler.is_compiling()
    if not torch.is_grad_enabled() and not compiling:
        return backend.value(problem, reduction, scale)
    if compiling and hasattr(backend, "operator"):
        return backend.operator(problem._replace(logits=flat), reduction, scale)
    # Also where nothing requires grad, so that forward-mode differentiation and vmap raise.
    if reduction == "none" or gradient == "backward" or compiling or not flat.requires_grad:
        return _GradientInBackward.apply(flat, problem, backend, reduction, scale)
    return _GradientInForward.apply(flat, problem, backend, scale, gradient == "in_place")
