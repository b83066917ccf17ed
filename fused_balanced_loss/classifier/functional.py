"""Linear classifier and loss in one, without the logits: the functional form."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ..arguments import Batch, Reduction, check_targets_of, flat_batch, flat_rows
from ..backends.constants import label_constants, resolved, row_weight
from ..backends.operator import mean_scale
from ..backends.problem import Problem, compute_dtype
from ..backends.select import Impl
from ..functional import balanced_loss
from ..label_statistics import LabelStatistics
from ..label_weights import Weight
from ..optim.base import ClassifierUpdate
from ..spec import LossSpec
from ..targets import SparseTargets
from ..weight_arguments import label_weights
from .arguments import LinearGradientMode, check_classifier, check_linear_settings, check_updatable, product_dtype
from .autograd import InPlaceOptimizer, LinearLoss, UpdatingLoss
from .chunked_pass import ChunkedPass
from .operator import operator
from .products import without_gaps


def linear_balanced_loss(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor | SparseTargets,
    spec: LossSpec,
    statistics: LabelStatistics | None = None,
    *,
    class_weight: Weight | None = None,
    pos_weight: Weight | None = None,
    reduction: Reduction = "mean",
    sample_weight: Tensor | None = None,
    label_mask: Tensor | None = None,
    ignore_index: float | None = None,
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
        targets, spec, statistics, pos_weight, sample_weight, label_mask, ignore_index: as for :func:`balanced_loss`,
            for logits [..., C].
        class_weight: what :func:`balanced_loss` calls ``weight``.
        reduction: ``"mean"``, ``"batchmean"`` or ``"sum"``.
        chunk_size: labels of a chunk, at least 1. None: a multiple of 128; on a CPU as many as have 32 MiB of
            weights and logits, on a GPU 256 MiB of weights, 128 with an update, and at most as many
            of logits.
        impl: as for :func:`balanced_loss`; ``"reference"`` makes the logits.
        gradient: ``"forward"`` makes the gradients in the pass that computes the loss, and keeps them;
            ``"backward"`` computes each chunk's logits again. ``"auto"``: forward.
        update: an in-place optimizer that changes weight and bias in the backward, chunk by chunk; they get no
            gradient. Each backward is one step. Weight and bias that do not require grad stay as they are. The backward
            makes each chunk's logits again, but where the gradient of all logits takes no more memory than a chunk may
            (128 MiB on a GPU, 32 on a CPU) it is kept from the forward. Under torch.compile the graph breaks here.

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
        check_updatable(weight, bias, impl)
        update.check(weight, bias)
    weights = class_weight, pos_weight
    settings = LinearSettings(spec, statistics, *weights, reduction, chunk_size, impl, gradient)
    return run(settings, features, weight, bias, targets, sample_weight, label_mask, ignore_index, update)


class LinearSettings(NamedTuple):
    """What a call of the classifier's loss is told besides its tensors; see :func:`linear_balanced_loss`."""

    spec: LossSpec
    statistics: LabelStatistics | None
    class_weight: Weight | None
    pos_weight: Weight | None
    reduction: Reduction
    chunk_size: int | None
    impl: Impl
    gradient: LinearGradientMode


class Shard(Protocol):
    """Some labels of a classifier whose others lie on other ranks, and the messages of one call between the ranks.

    first_label: the label of the weight's first row. num_labels: C, of all ranks.
    """

    first_label: int
    num_labels: int

    def check_batch(self, features: Tensor, batch: Batch) -> None:
        """Raises ValueError on all ranks unless they have the same features [N, D] and the same batch."""
        ...

    def logits(self, features: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Logits [N, C] of all labels."""
        ...

    def replicated(self, features: Tensor) -> Tensor:
        """The features, whose gradient becomes the sum over the ranks."""
        ...

    def total(self, loss: Tensor) -> Tensor:
        """The sum of the ranks' losses."""
        ...


def run(
    settings: LinearSettings,
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor | SparseTargets,
    sample_weight: Tensor | None,
    label_mask: Tensor | None,
    ignore_index: float | None,
    update: InPlaceOptimizer | None,
    shard: Shard | None = None,
) -> Tensor:
    """The loss of features [..., D] and of a whole classifier or a shard of one; its arguments have been checked."""
    spec, statistics, class_weight, pos_weight, reduction, chunk_size, impl, gradient = settings
    if spec.mu is None:
        spec = resolved(spec, statistics)
    num_labels = len(weight) if shard is None else shard.num_labels
    flat = flat_rows(features)
    # Not len(flat): torch.export would take the number for a constant.
    num_rows = flat.shape[0]
    batch = flat_batch(
        (*features.shape[:-1], num_labels), flat.device, targets, sample_weight, label_mask, ignore_index
    )
    if shard is not None:
        shard.check_batch(flat, batch)
    if num_rows == 0:
        if reduction != "sum":
            got = list(features.shape)
            raise ValueError(f"features: expected at least one sample for reduction {reduction!r}, got shape {got}")
        return _loss_of_nothing(flat, weight, bias, update)
    if impl == "reference":
        linear = torch.nn.functional.linear if shard is None else shard.logits
        logits = linear(without_gaps(flat), without_gaps(weight), bias)
        return balanced_loss(
            logits,
            batch.targets,
            spec,
            statistics,
            weight=class_weight,
            pos_weight=pos_weight,
            reduction=reduction,
            sample_weight=batch.sample_weight,
            label_mask=batch.label_mask,
            impl=impl,
        )
    dtype = product_dtype(flat)
    exact = compute_dtype(dtype)
    weights = label_weights(class_weight, pos_weight, statistics, num_labels, flat.device, "class_weight")
    problem = Problem(
        logits=torch.empty(0, dtype=dtype, device=flat.device),
        targets=batch.targets,
        spec=spec,
        labels=label_constants(statistics, spec, exact, flat.device, weights),
        row_weight=row_weight(batch.targets, statistics, spec, batch.sample_weight, exact),
        label_mask=batch.label_mask,
    )
    own_labels = (0 if shard is None else shard.first_label, len(weight))
    inputs = flat if shard is None else shard.replicated(flat)
    if torch.compiler.is_compiling() and update is None:
        loss = operator(inputs, weight, bias, problem, reduction, impl, chunk_size, own_labels, num_labels)
    else:
        if torch.compiler.is_compiling():
            # The update changes weight and bias, which an operator with a derivative must not.
            torch._dynamo.graph_break()
        scale = mean_scale(reduction, batch.label_mask, num_rows, num_labels)
        chunked = ChunkedPass(
            problem,
            impl,
            chunk_size,
            (num_rows, flat.shape[1]),
            own_labels,
            scale,
            weight.dtype,
            update=update is not None,
        )
        loss = _differentiable(inputs, weight, bias, chunked, gradient, update)
    if shard is not None:
        loss = shard.total(loss)
    num_kept = batch.num_kept() if reduction == "mean" else None
    if num_kept is not None:
        loss = loss / num_kept
    check_targets_of(loss, batch.targets, batch.label_mask)
    return loss


def _loss_of_nothing(flat: Tensor, weight: Tensor, bias: Tensor | None, update: InPlaceOptimizer | None) -> Tensor:
    """Zero, with zero gradients; a classifier that is updated in place gets none."""
    rest = (weight, bias) if update is None else (flat.new_zeros(1).requires_grad_(),)
    nothing = sum(part[:0].sum() for part in rest if part is not None)
    return (flat.sum() + nothing).to(compute_dtype(flat.dtype))


def _differentiable(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    chunked: ChunkedPass,
    gradient: str,
    update: InPlaceOptimizer | None,
) -> Tensor:
    loss: Tensor
    if update is not None and _trains(weight, bias):
        loss = UpdatingLoss.apply(features, weight, bias, chunked, update)
        return loss
    if not torch.is_grad_enabled():
        return chunked.run(features, weight, bias)[0]
    # Also where nothing requires grad, so that vmap raises.
    loss = LinearLoss.apply(features, weight, bias, chunked, gradient != "backward")
    return loss


def _trains(weight: Tensor, bias: Tensor | None) -> bool:
    """Whether an update may change the classifier."""
    if bias is not None and bias.requires_grad != weight.requires_grad:
        raise ValueError(
            "bias: expected to require grad where the weight does, as update changes both, "
            f"got requires_grad={bias.requires_grad} beside {weight.requires_grad}"
        )
    return weight.requires_grad
