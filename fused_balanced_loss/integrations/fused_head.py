"""A sequence classifier of transformers whose classifier and loss are one in training::

    head = fuse_classifier(model, LossSpec.preset("DB"), statistics)
    trainer = Trainer(model, arguments, compute_loss_func=head.compute_loss, data_collator=..., ...)

The model's parameters keep their names: a checkpoint loads into the plain model. With ``update=`` Trainer also needs
:class:`~fused_balanced_loss.integrations.update_callback.ClassifierUpdateCallback`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..backends.select import Impl
from ..classifier.functional import linear_balanced_loss
from ..functional import balanced_loss
from ..label_statistics import LabelStatistics
from ..optim.base import ClassifierUpdate
from ..spec import LossSpec
from .transformers import PaddedLabelIds, label_smoothing_factor, model_logits, smoothed_spec, step_loss

# Where the *ForSequenceClassification models keep their last layer.
_NAMES = ("classifier", "score")


class FusedClassifier(nn.Linear):
    """The last layer of a sequence classifier: logits in evaluation, and in training the features themselves.

    In training the model's output has the features [N, D] in the place of the logits; :meth:`compute_loss` takes them
    from there, and the logits never exist.
    """

    spec: LossSpec
    statistics: LabelStatistics | None
    chunk_size: int | None
    impl: Impl
    update: ClassifierUpdate | None
    _may_step = False
    # The dtype of the forward's mixed precision.
    _autocast: torch.dtype | None = None

    def forward(self, features: Tensor) -> Tensor:
        """Logits [..., C] in evaluation, ``features`` [..., D] in training."""
        if not self.training:
            return super().forward(features)
        device = features.device.type
        # Mixed precision ends with the model's forward: remember it for the loss.
        self._autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        return features

    def compute_loss(self, outputs: Any, labels: Any, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        """Trainer's ``compute_loss_func``: the mean over the step's samples and labels, as by
        :func:`~fused_balanced_loss.integrations.transformers.compute_loss_func`.

        Raises:
            TypeError, ValueError: for missing labels, labels of another number than the model's, and as
                :func:`linear_balanced_loss`.
            RuntimeError: with ``update``, in a Trainer without ClassifierUpdateCallback, and for a second call within
                one of its steps.
        """
        if self.update is not None and self.training and torch.is_grad_enabled():
            self._check_step(labels, num_items_in_batch)
        return step_loss(self._loss, model_logits(outputs), labels, self.out_features, num_items_in_batch)

    def _loss(self, values: Tensor, targets: Any) -> Tensor:
        factor = label_smoothing_factor()
        spec = smoothed_spec(self.spec, factor) if factor else self.spec
        if not self.training:
            return balanced_loss(values, targets, spec, self.statistics, impl=self.impl)
        if values.shape[-1] != self.in_features:
            raise ValueError(
                f"outputs: expected the features [N, {self.in_features}] of a forward in training, "
                f"got shape {list(values.shape)}"
            )
        device, dtype = values.device.type, self._autocast
        with contextlib.nullcontext() if dtype is None else torch.autocast(device, dtype=dtype):
            return linear_balanced_loss(
                values,
                self.weight,
                self.bias,
                targets,
                spec,
                self.statistics,
                chunk_size=self.chunk_size,
                impl=self.impl,
                update=self.update if torch.is_grad_enabled() else None,
            )

    def grant_step(self) -> None:
        """Allows one training call of :meth:`compute_loss` by Trainer; ClassifierUpdateCallback calls it each step."""
        self._may_step = True

    def _check_step(self, labels: Any, num_items_in_batch: Tensor | int | None) -> None:
        """Raises unless the backward of this call is one step of the whole model."""
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            number = dist.get_world_size()
            raise RuntimeError(f"update: expected one process, as replicas of the classifier diverge, got {number}")
        if labels is not None and not isinstance(labels, (Tensor, PaddedLabelIds)):
            # Trainer can count the items of these alone, and the count shows that it is Trainer who calls.
            raise TypeError(f"labels: expected a tensor or PaddedLabelIds, got {type(labels).__name__}")
        if num_items_in_batch is None:
            # A training loop of the caller's own.
            return
        if not self._may_step:
            raise RuntimeError(
                "update: expected Trainer(callbacks=[ClassifierUpdateCallback()]) and one call for each of its steps; "
                "without the callback a run that resumes would lose the update's state, and accumulation or a second "
                "call would step the classifier more often than the model"
            )
        self._may_step = False

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FusedClassifier:
        super()._apply(fn, recurse)
        if self.update is not None:
            self.update._apply(fn, recurse)
        return self


def fuse_classifier(
    model: nn.Module,
    spec: LossSpec,
    statistics: LabelStatistics | None,
    *,
    chunk_size: int | None = None,
    impl: Impl = "auto",
    update: ClassifierUpdate | None = None,
) -> FusedClassifier:
    """Exchanges the last layer of a ``*ForSequenceClassification`` model, in place, and returns the new one.

    Args:
        model: its last layer, ``classifier`` or ``score``, is an ``nn.Linear``; weight and bias stay the same tensors.
        spec, statistics: which loss, and the label counts that it needs.
        chunk_size: labels of a chunk; None takes as many as keep weights and logits of a chunk in cache.
        impl: which implementation computes the loss.
        update: an in-place optimizer for the layer's weight and bias. They get no gradient, so that the Trainer's
            optimizer leaves them alone; each backward is a step. Trainer needs ClassifierUpdateCallback beside it; in a
            training loop of your own, save and load ``head.update.state_dict()`` with the optimizer's.

    Raises:
        TypeError: for a model without such a layer.
        ValueError: where the statistics have another number of labels.
    """
    for name in _NAMES:
        linear = getattr(model, name, None)
        if isinstance(linear, nn.Linear):
            break
    else:
        kinds = {name: type(getattr(model, name)).__name__ for name in _NAMES if hasattr(model, name)}
        raise TypeError(
            f"model: expected one whose classifier or score is nn.Linear, got {type(model).__name__} {kinds}"
        )
    if spec.needs_statistics and (statistics is None or statistics.num_labels != linear.out_features):
        got = statistics if statistics is None else statistics.num_labels
        raise ValueError(f"statistics: expected {linear.out_features} labels, as the model's {name}, got {got}")
    head = FusedClassifier(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
    head.register_parameter("weight", linear.weight)  # type: ignore[arg-type]
    head.register_parameter("bias", linear.bias)
    head.train(linear.training)
    head.spec, head.statistics, head.chunk_size, head.impl = spec, statistics, chunk_size, impl
    # Keep it out of the submodules: the checkpoint then has the plain model's names alone.
    object.__setattr__(head, "update", update)
    if update is not None:
        update.prepare(head.weight, head.bias)
    setattr(model, name, head)
    return head
