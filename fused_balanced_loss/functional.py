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
    check_targets,
    check_targets_of,
    check_writable,
    flat_batch,
    flat_rows,
    warn_of_probabilities,
)
from .backends import device as devices
from .backends import reference
from .backends.constants import label_constants, resolved, row_weight
from .backends.operator import mean_scale, operator
from .backends.problem import Problem, compute_dtype
from .backends.select import Backend, Impl, select
from .first_order import apply_of, first_order
from .kept_calls import find_call, keep_call
from .label_statistics import LabelStatistics
from .label_weights import Weight
from .spec import LossSpec
from .targets import SparseTargets
from .weight_arguments import label_weights

# Under torch.compile these are one operator; the others are traced into the caller's graph.
_OPAQUE = ("auto", "triton", "cpp")


class _GradientInForward(torch.autograd.Function):
    """``scale`` times the sum of the loss, with the gradient made in the same pass."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, problem: Problem, backend: Backend, scale: float, in_place: bool) -> Tensor:
        loss, ctx.gradient = backend.value_and_gradient(problem, scale, out=problem.logits if in_place else None)
        if in_place:
            # Whatever else had saved the logits for its backward now raises.
            torch.autograd.graph.increment_version(logits)
        else:
            ctx.save_for_backward(logits, *problem.given())
        # Autograd saves the logits; the rest of the problem goes by itself.
        ctx.rest, ctx.backend, ctx.scale = problem[1:], backend, scale
        return loss

    @staticmethod
    @first_order
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        gradient, ctx.gradient = ctx.gradient, None
        if gradient is not None:
            ctx.backend.scale_gradient(gradient, upstream)
        elif ctx.saved_tensors:
            # A second backward: the first has given its gradient away.
            problem = Problem(ctx.saved_tensors[0].detach(), *ctx.rest)
            gradient = ctx.backend.gradient(problem, upstream, ctx.scale)
        else:
            raise RuntimeError("gradient='in_place' has overwritten the logits: there is no second backward")
        return gradient, None, None, None, None


class _GradientInBackward(torch.autograd.Function):
    """The loss [N, C], or ``scale`` times its sum; nothing is kept but what came in."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, problem: Problem, backend: Backend, reduction: str, scale: float) -> Tensor:
        ctx.save_for_backward(logits, *problem.given())
        ctx.rest, ctx.backend, ctx.scale = problem[1:], backend, scale
        return backend.value(problem, reduction, scale)

    @staticmethod
    @first_order
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        problem = Problem(ctx.saved_tensors[0].detach(), *ctx.rest)
        return ctx.backend.gradient(problem, upstream, ctx.scale), None, None, None, None


def balanced_loss(
    logits: Tensor,
    targets: Tensor | SparseTargets,
    spec: LossSpec,
    statistics: LabelStatistics | None = None,
    *,
    weight: Weight | None = None,
    pos_weight: Weight | None = None,
    reduction: Reduction = "mean",
    sample_weight: Tensor | None = None,
    label_mask: Tensor | None = None,
    ignore_index: float | None = None,
    impl: Impl = "auto",
    gradient: GradientMode = "auto",
) -> Tensor:
    """Balanced multi-label loss of logits (Huang et al., EMNLP 2021; the formula stands at :class:`LossSpec`).

    Args:
        logits: [..., C], float16, bfloat16, float32 or float64. All dimensions before the last are samples, N in all.
            Computed in float32 (float64 for float64). Never modified, but with ``gradient="in_place"``.
        targets: 1 where a sample carries a label, else 0: dense of the shape of the logits (bool, any integer or
            floating-point dtype), a torch sparse tensor [N, C] (converted at each call; :class:`SparseTargets` is not),
            or SparseTargets of N rows. NumPy arrays and scipy sparse matrices are taken too, and brought to the device
            of the logits. Floating-point targets may lie anywhere in [0, 1]: they are the share of target 1 in the
            loss, and of the label in the rebalanced weight. Not differentiated.
        spec: which loss.
        statistics: label counts of the training set; None where the spec needs none.
        weight: a number or [C], real, finite, >= 0; multiplies the loss of each label. The mean still divides by N * C,
            as that of ``torch.nn.BCEWithLogitsLoss``. Not differentiated. Tensors are checked and converted once, and
            again after a change: keep them from call to call. On a GPU a change without a new version, as through
            ``.data``, is not seen; under torch.compile values are not checked.
        pos_weight: the same for the part of target 1 alone.
        reduction: ``"mean"`` over the N * C elements, or, with a mask, over those it keeps; ``"batchmean"``: the sum
            over the labels, the mean over the N samples; ``"sum"``; ``"none"`` for the loss of each element.
        sample_weight: [...] (the shape of the logits without C), real; multiplies the loss of each sample. The mean
            still divides by N * C. Not differentiated.
        label_mask: bool [C] or the shape of the logits; False leaves an element out of loss, gradient and mean. A
            masked label still counts among its row's labels in the rebalanced weight; a masked target outside [0, 1]
            takes part in nothing.
        ignore_index: a number other than 0 and 1, such as -100 or -1: dense targets equal to it are masked.
        impl: ``"auto"``: Triton kernels on GPUs, the C++ kernel on CPUs, and ``"eager"`` where they cannot be had.
            ``"triton"`` and ``"cpp"``: these kernels or an error. ``"eager"``: the closed form in PyTorch operators.
            ``"compile"``: the same under torch.compile. ``"reference"``: the equations read literally, differentiated
            by autograd, any number of times.
        gradient: when the gradient is made. ``"forward"``: in the pass that computes the loss, which keeps it: the
            least memory traffic, one buffer as large as the logits between forward and backward. ``"backward"``: the
            backward reads the logits again: nothing but them is kept, and half the traffic more. ``"in_place"``: as
            forward, written over the logits' storage: no second buffer; for logits that nothing else reads later.
            ``"auto"``: forward, or backward for float16, whose range the gradient of a mean can leave before the
            upstream gradient (a GradScaler's) is applied. Under torch.compile always backward, whose graph may then
            fuse the upstream gradient.

    Returns:
        float32 (float64 for float64 logits): no dimensions, or the shape of the logits for reduction "none".

    A target outside [0, 1], an integer other than 0 and 1, or an invalid label id raises ValueError on the CPU. On
    other devices, where looking would stall, and under torch.compile, such a target makes the loss NaN, and so does an
    invalid id of a loss with the rebalanced weight; the other losses leave it out there. No id makes a kernel read
    other memory.

    A NaN logit gives NaN. An infinite logit gives 0 where it is right, and infinity with a finite gradient where it is
    wrong.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
        RuntimeError: for an ``impl`` that was named and cannot be had; in the backward, under ``create_graph=True``;
            for torch.jit.trace and forward-mode differentiation.
    """
    key = None
    if weight is None and pos_weight is None and sample_weight is None and label_mask is None and ignore_index is None:
        key, call, problem = find_call(logits, targets, spec, statistics, reduction, impl, gradient)
        if call is not None and problem is not None:
            loss = _differentiable(logits, problem, call.backend, reduction, call.gradient, call.scale, kept=True)
            check_targets_of(loss, targets, None)
            return loss
    check_settings(spec, statistics, reduction, impl, gradient)
    check_logits(logits, statistics if spec.needs_statistics else None)
    compiling = torch.compiler.is_compiling()
    in_place = gradient == "in_place" and not compiling and impl != "reference"
    if in_place:
        check_writable(logits)
    settled = resolved(spec, statistics) if spec.mu is None else spec
    shape, dtype = logits.shape, compute_dtype(logits.dtype)
    flat = flat_rows(logits)
    batch = flat_batch(shape, logits.device, targets, sample_weight, label_mask, ignore_index)
    # Not len(flat): torch.export would take the number for a constant.
    if flat.shape[0] == 0:
        if reduction in ("mean", "batchmean"):
            raise ValueError(
                f"logits: expected at least one sample for reduction {reduction!r}, got shape {list(shape)}"
            )
        return logits.to(dtype) if reduction == "none" else (logits * 0).sum(dtype=dtype)
    warn_of_probabilities(flat)
    if in_place and devices.kind(flat.device) == "cpu":
        # Afterwards the logits would be gone.
        check_targets(batch.targets, batch.label_mask)
    weights = None
    if weight is not None or pos_weight is not None:
        weights = label_weights(weight, pos_weight, statistics, shape[-1], logits.device)
    problem = Problem(
        logits=flat if impl == "reference" else flat.detach(),
        targets=batch.targets,
        spec=settled,
        labels=label_constants(statistics, settled, dtype, logits.device, weights),
        row_weight=row_weight(batch.targets, statistics, settled, batch.sample_weight, dtype),
        label_mask=batch.label_mask,
        statistics=statistics,
        label_weights=weights,
    )
    num_kept = batch.num_kept() if reduction == "mean" else None
    if impl == "reference":
        loss = reference.loss(problem)
        loss = loss if reduction == "none" else loss.sum() * mean_scale(reduction, problem.label_mask, *flat.shape)
    elif compiling and impl in _OPAQUE:
        loss = operator(problem._replace(logits=flat), reduction, impl)
    else:
        if gradient == "auto":
            # The mean over a mask is divided after the sum, so the upstream gradient is never 1.
            gradient = "backward" if logits.dtype == torch.float16 or num_kept is not None else "forward"
        gradient = "backward" if compiling or reduction == "none" else gradient
        backend, scale = select(impl, problem), mean_scale(reduction, problem.label_mask, *flat.shape)
        if key is not None and flat is logits and batch.targets is targets and problem.row_weight is None:
            keep_call(key, spec, problem, backend, gradient, scale)
        loss = _differentiable(flat, problem, backend, reduction, gradient, scale)
    if num_kept is not None:
        loss = loss / num_kept
    check_targets_of(loss, batch.targets, batch.label_mask)
    return loss.reshape(shape) if reduction == "none" else loss


def _differentiable(
    logits: Tensor,
    problem: Problem,
    backend: Backend,
    reduction: str,
    gradient: str,
    scale: float,
    kept: bool = False,
) -> Tensor:
    problem = backend.prepare(problem)
    if not torch.is_grad_enabled() and not torch.compiler.is_compiling():
        return backend.value(problem, reduction, scale)
    # Also where nothing requires grad, so that vmap raises.
    loss: Tensor
    if gradient == "backward" or not logits.requires_grad:
        apply = _apply_in_backward if kept else _GradientInBackward.apply
        loss = apply(logits, problem, backend, reduction, scale)
    else:
        apply = _apply_in_forward if kept else _GradientInForward.apply
        loss = apply(logits, problem, backend, scale, gradient == "in_place")
    return loss


# Kept calls are under no transform of functorch.
_apply_in_forward = apply_of(_GradientInForward)
_apply_in_backward = apply_of(_GradientInBackward)
