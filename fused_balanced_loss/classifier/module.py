"""Classifier and loss in one as a module."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..arguments import Reduction
from ..backends.select import Impl
from ..label_statistics import LabelStatistics
from ..label_weights import Weight
from ..optim.base import ClassifierUpdate, ignore_update_state
from ..spec import LossSpec
from ..statistics_module import StatisticsModule
from ..targets import SparseTargets
from .arguments import LinearGradientMode, check_linear, check_linear_settings
from .functional import linear_balanced_loss
from .prediction import LabelsAbove, TopLabels, predict_above, predict_topk


class LinearBalancedLoss(StatisticsModule):
    """A linear classifier and its balanced loss: training never makes the logits.

    The weight and bias are parameters, initialised as those of ``nn.Linear``; the label counts are buffers.

    Args:
        spec: which loss, for example ``LossSpec.preset("DB")``.
        statistics: label counts of the training set; they say how many labels there are. May be None where the spec
            needs none (BCE, FL, ASL), and where ``load_state_dict`` brings them before the first call.
        num_features: D.
        num_labels: C; needed only without statistics.
        bias: whether the classifier has one.
        class_weight, pos_weight: a number or [C]; multiply the loss of each label, and the part of target 1 of each
            label. Tensors are buffers.
        reduction: ``"mean"`` over the N * C elements, ``"batchmean"`` over the N samples, or ``"sum"``.
        chunk_size: labels of a chunk; None: see :func:`linear_balanced_loss`.
        impl: which implementation computes the loss of a chunk; see :func:`balanced_loss`.
        gradient: ``"forward"`` makes the gradients in the pass that computes the loss; ``"backward"`` computes the
            logits again and keeps nothing in between; ``"auto"``: forward.
        update: an in-place optimizer, which then trains weight and bias in the backward, chunk by chunk, so that
            their gradient never exists whole; they must not be given to another. See :class:`ClassifierUpdate`.
        device, dtype: of weight and bias.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None
    class_weight: Weight | None
    pos_weight: Weight | None

    def __init__(
        self,
        spec: LossSpec,
        statistics: LabelStatistics | None,
        num_features: int,
        *,
        num_labels: int | None = None,
        bias: bool = True,
        class_weight: Weight | None = None,
        pos_weight: Weight | None = None,
        reduction: Reduction = "mean",
        chunk_size: int | None = None,
        impl: Impl = "auto",
        gradient: LinearGradientMode = "auto",
        update: ClassifierUpdate | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_linear_settings(spec, statistics, reduction, impl, gradient, chunk_size, statistics_later=True)
        if statistics is not None and num_labels not in (None, statistics.num_labels):
            raise ValueError(f"num_labels: expected {statistics.num_labels}, as in statistics, got {num_labels!r}")
        for name, value in (("num_features", num_features), ("num_labels", num_labels)):
            if name == "num_labels" and value is None and statistics is not None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}: expected an integer of at least 1, got {value!r}")
        if update is not None and not isinstance(update, ClassifierUpdate):
            raise TypeError(f"update: expected a ClassifierUpdate, got {type(update).__name__}")
        self.spec = spec
        self.reduction: Reduction = reduction
        self.chunk_size = chunk_size
        self.impl: Impl = impl
        self.gradient: LinearGradientMode = gradient
        rows = statistics.num_labels if statistics is not None else num_labels
        assert rows is not None
        self.weight = nn.Parameter(torch.empty(rows, num_features, device=device, dtype=dtype))
        self.register_parameter("bias", nn.Parameter(torch.empty(rows, device=device, dtype=dtype)) if bias else None)
        self.reset_parameters()
        place = None if self.weight.device.type == "meta" else self.weight.device
        self.keep_label_weights(rows, place, class_weight=class_weight, pos_weight=pos_weight)
        self.keep_statistics(statistics)
        self.update = update
        self.register_load_state_dict_pre_hook(ignore_update_state)
        if update is not None:
            update.prepare(self.weight, self.bias)

    @classmethod
    def from_linear(
        cls,
        linear: nn.Linear,
        spec: LossSpec,
        statistics: LabelStatistics | None,
        *,
        class_weight: Weight | None = None,
        pos_weight: Weight | None = None,
        reduction: Reduction = "mean",
        chunk_size: int | None = None,
        impl: Impl = "auto",
        gradient: LinearGradientMode = "auto",
        update: ClassifierUpdate | None = None,
    ) -> LinearBalancedLoss:
        """Over a classifier that exists: the module shares its weight and bias.

        Args:
            linear: the classifier, with one output a label.
            spec, statistics, class_weight, pos_weight, reduction, chunk_size, impl, gradient, update: see
                :class:`LinearBalancedLoss`.
        """
        check_linear(linear, statistics)
        module = cls(
            spec,
            statistics,
            linear.in_features,
            num_labels=linear.out_features,
            bias=linear.bias is not None,
            reduction=reduction,
            chunk_size=chunk_size,
            impl=impl,
            gradient=gradient,
            device="meta",
        )
        module.keep_label_weights(
            linear.out_features, linear.weight.device, class_weight=class_weight, pos_weight=pos_weight
        )
        # Share the tensors, so that other holders see the trained values.
        module.register_parameter("weight", linear.weight)  # type: ignore[arg-type]
        module.register_parameter("bias", linear.bias)
        if update is not None:
            module.update = update
            update.prepare(module.weight, module.bias)
        return module

    def reset_parameters(self) -> None:
        """The distribution of ``nn.Linear``: uniform within 1 / sqrt(D)."""
        if self.weight.device.type == "meta":
            return
        bound = 1 / math.sqrt(self.weight.shape[1])
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(
        self,
        features: Tensor,
        targets: Tensor | SparseTargets,
        sample_weight: Tensor | None = None,
        label_mask: Tensor | None = None,
        ignore_index: float | None = None,
    ) -> Tensor:
        """Loss of features [..., D].

        Args:
            features: [..., D], in the dtype of the weight but under autocast.
            targets: dense [..., C], a torch sparse tensor [N, C], or SparseTargets of N rows.
            sample_weight: [...], multiplies the loss of each sample.
            label_mask: bool [C] or [..., C]; False leaves an element out.
            ignore_index: a number other than 0 and 1; dense targets equal to it are left out.

        Returns:
            float32 (float64 for float64 features), no dimensions.

        Raises:
            TypeError, ValueError, RuntimeError: as :func:`linear_balanced_loss`, where each argument is described in
                full.
        """
        return linear_balanced_loss(
            features,
            self.weight,
            self.bias,
            targets,
            self.spec,
            self.statistics,
            class_weight=self.class_weight,
            pos_weight=self.pos_weight,
            reduction=self.reduction,
            sample_weight=sample_weight,
            label_mask=label_mask,
            ignore_index=ignore_index,
            chunk_size=self.chunk_size,
            impl=self.impl,
            gradient=self.gradient,
            update=self.update if self.training and torch.is_grad_enabled() else None,
        )

    def logits(self, features: Tensor) -> Tensor:
        """Logits [..., C], whole."""
        return nn.functional.linear(features, self.weight, self.bias)

    def predict_topk(self, features: Tensor, k: int) -> TopLabels:
        """The ``k`` labels with the largest logits of each sample; see
        :func:`~fused_balanced_loss.classifier.prediction.predict_topk`."""
        return predict_topk(features, self.weight, self.bias, k, chunk_size=self.chunk_size)

    def predict_above(self, features: Tensor, threshold: float) -> LabelsAbove:
        """The labels whose probability is above ``threshold``; see
        :func:`~fused_balanced_loss.classifier.prediction.predict_above`."""
        return predict_above(features, self.weight, self.bias, threshold, chunk_size=self.chunk_size)

    def extra_repr(self) -> str:
        rows, columns = self.weight.shape
        return f"num_features={columns}, num_labels={rows}, bias={self.bias is not None}, spec={self.spec}"
