"""The factory, and the module that it makes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...arguments import Reduction, from_numpy_or_scipy, not_ignored
from ...backends import device as devices
from ...label_statistics import LabelStatistics
from ...label_weights import Weight
from ...modules import BalancedLoss
from ...spec import LossSpec, check_choice
from ...targets import SparseTargets
from .mixed_targets import mixed_loss

FUSED_LOSSES = ("bce", "asl", "poly", "db")
_COUPLED = {
    "twoway": "timm.loss.TwoWayLoss, which couples the labels of a sample and the samples of a batch",
    "zlpr": "timm.loss.ZlprLoss, which couples the labels of a sample",
}
# Settings of timm's DistributionBalancedLoss that its factory does not offer.
_DB_MU, _DB_FOCAL_FACTOR = 0.2, 2.0


class MultiLabelLoss(BalancedLoss):
    """What :func:`create_classification_loss` makes: a :class:`BalancedLoss` that takes targets as timm's losses do.

    Args:
        spec, statistics, weight, pos_weight, reduction: see :class:`BalancedLoss`.
        target_threshold: targets above it count as 1, all others as 0; None leaves them as they are.
        threshold_smoothing: how far targets are moved towards 1/2 before they are compared with the threshold.
        mixes: whether timm's loss of a target between 0 and 1 is no sum of a loss of 1 and one of 0.
        soft_targets: whether to expect such targets. Else they are an error where ``mixes``.
        factors: of target 1 and of target 0, where one of them is 0, which no spec has; None takes those of the spec.
    """

    def __init__(
        self,
        spec: LossSpec,
        statistics: LabelStatistics | None = None,
        *,
        weight: Weight | None = None,
        pos_weight: Weight | None = None,
        reduction: Reduction = "mean",
        target_threshold: float | None = None,
        threshold_smoothing: float = 0.0,
        mixes: bool = False,
        soft_targets: bool = False,
        factors: tuple[float, float] | None = None,
    ) -> None:
        super().__init__(spec, statistics, weight=weight, pos_weight=pos_weight, reduction=reduction)
        self.target_threshold = target_threshold
        self.threshold_smoothing = threshold_smoothing
        self.mixes = mixes
        self.soft_targets = soft_targets
        self.factors = factors

    def forward(
        self,
        logits: Tensor,
        targets: Tensor | SparseTargets,
        sample_weight: Tensor | None = None,
        label_mask: Tensor | None = None,
        ignore_index: float | None = None,
    ) -> Tensor:
        """Loss of logits [..., C].

        Args:
            logits: [..., C], float16, bfloat16, float32 or float64.
            targets: dense of the shape of the logits, in [0, 1]; or :class:`SparseTargets`, which timm does not take.
            sample_weight, label_mask, ignore_index: as of :class:`BalancedLoss`, but for targets that are
                smoothed or soft where the loss ``mixes``.

        Returns:
            float32 (float64 for float64 logits): no dimensions, or the shape of the logits for reduction "none".

        Raises:
            TypeError, ValueError, RuntimeError: as :func:`balanced_loss`. ValueError also for class indices, and on the
                CPU for soft targets where the loss ``mixes`` and was made without ``soft_targets``; elsewhere they make
                the loss NaN.
        """
        if not isinstance(targets, (Tensor, SparseTargets)):
            targets = from_numpy_or_scipy(targets, logits.device)
        dense = targets if isinstance(targets, Tensor) and targets.layout == torch.strided else None
        if dense is not None and dense.shape != logits.shape:
            raise ValueError(
                f"targets: expected the shape of the logits, {list(logits.shape)}, got {list(dense.shape)}; for indices"
                " of classes take timm.loss.create_classification_loss"
            )
        if dense is not None and ignore_index is not None and (self.mixes or self.target_threshold is not None):
            # What follows changes the targets, and with them those to be ignored.
            kept = not_ignored(dense, ignore_index)
            label_mask, ignore_index = kept if label_mask is None else kept & label_mask, None
            targets = dense = dense.masked_fill(~kept, 0)
        if self.target_threshold is not None:
            targets = self._above_threshold(targets, self.target_threshold)
        elif self.mixes:
            floating = dense is not None and dense.is_floating_point()
            if (self.soft_targets and floating) or self.factors or self.spec.label_smoothing:
                if sample_weight is not None or label_mask is not None or ignore_index is not None:
                    raise ValueError(
                        "sample_weight, label_mask, ignore_index: expected none with targets between 0 and 1 in timm's "
                        "asymmetric or Poly-1 loss"
                    )
                return self._mixed(logits, targets)
            if dense is not None and floating:
                targets = _zeros_and_ones(dense if label_mask is None else torch.where(label_mask, dense, 0.0))
        return super().forward(logits, targets, sample_weight, label_mask, ignore_index)

    def _above_threshold(self, targets: Tensor | SparseTargets, threshold: float) -> Tensor:
        if isinstance(targets, SparseTargets):
            targets = targets.to_dense(torch.float32)
        elif targets.layout != torch.strided:
            targets = targets.to_dense()
        above = targets * (1 - self.threshold_smoothing) + 0.5 * self.threshold_smoothing > threshold
        if not targets.is_floating_point():
            return above
        # A target outside [0, 1] must be found.
        return torch.where((targets >= 0) & (targets <= 1), above.to(targets.dtype), math.nan)

    def _mixed(self, logits: Tensor, targets: Tensor | SparseTargets) -> Tensor:
        return mixed_loss(
            logits,
            targets,
            self.spec,
            weight=self.weight,
            pos_weight=self.pos_weight,
            factors=self.factors or (self.spec.positive_factor, self.spec.negative_factor),
            reduction=self.reduction,
        )


def _zeros_and_ones(targets: Tensor) -> Tensor:
    """Targets of 0 and 1 as integers, whose loss is one part and not two."""
    label = targets == 1
    if devices.kind(targets.device) == "cpu" and not torch.compiler.is_compiling():
        if torch.count_nonzero(targets) != torch.count_nonzero(label):
            raise ValueError(
                "targets: expected 0 and 1, got other numbers; for targets of mixup or distillation make the loss with "
                "soft_targets=True"
            )
        return label
    # A check would wait for the device; a target of 2 makes the loss NaN.
    return label.to(torch.uint8) + 2 * (~label & (targets != 0)).to(torch.uint8)


def create_classification_loss(
    loss_type: str | None = None,
    multi_label: bool = False,
    smoothing: float = 0.0,
    soft_targets: bool = False,
    class_weight: Tensor | float | Sequence[float] | None = None,
    pos_weight: Tensor | float | Sequence[float] | None = None,
    bce_target_thresh: float | None = None,
    bce_sum: bool = False,
    asl_gamma_pos: float = 1.0,
    asl_gamma_neg: float = 4.0,
    asl_clip: float | None = 0.05,
    asl_reduction: Reduction = "batchmean",
    poly_epsilon: float = 2.0,
    poly_gamma: float = 0.0,
    poly_alpha: float | None = None,
    jsd_splits: int = 0,
    twoway_tp: float = 4.0,
    twoway_tn: float = 1.0,
    class_counts: Tensor | Sequence[float] | None = None,
    num_samples: int | None = None,
    db_neg_scale: float = 2.0,
    db_init_bias: float = 0.05,
    db_focal_gamma: float = 2.0,
) -> MultiLabelLoss:
    """The loss that timm's function of this name makes for multi-label targets.

    Args:
        loss_type: ``"bce"``, the default; ``"asl"``, asymmetric loss (Ridnik et al., ICCV 2021); ``"poly"``, Poly-1
            (Leng et al., ICLR 2022); or ``"db"``, distribution-balanced loss in its form for images (Wu et al., ECCV
            2020).
        multi_label: must be True.
        smoothing: how far targets are moved towards 1/2; ignored with ``soft_targets``, which are smoothed already.
        soft_targets: whether targets come from mixup, that is, lie between 0 and 1.
        class_weight, pos_weight: a number or one for each label, finite and >= 0, for ``"bce"`` and ``"asl"``: of the
            loss, and of the part of target 1.
        bce_target_thresh: targets above it count as 1, all others as 0.
        bce_sum: sum over the labels and mean over the samples, instead of the mean over both.
        asl_gamma_pos, asl_gamma_neg, asl_clip: focusing parameters >= 0 and probability margin.
        asl_reduction: ``"batchmean"``, ``"sum"``, ``"mean"`` or ``"none"``.
        poly_epsilon, poly_gamma, poly_alpha: coefficient >= -1, focusing parameter >= 0, and factor in [0, 1] of target
            1, with 1 - poly_alpha for target 0.
        class_counts, num_samples: how many of how many training samples carry each label, whole numbers, for ``"db"``.
        db_neg_scale, db_init_bias, db_focal_gamma: the paper's lambda and kappa, and the focusing parameter.
        jsd_splits, twoway_tp, twoway_tn: of losses that are not here.

    Returns:
        A module that is called with logits [..., C] and targets of the same shape.

    Raises:
        ValueError: naming the argument, what was expected and what came. For losses that are not here it names timm's.
    """
    if not multi_label:
        raise ValueError(
            "multi_label: expected True; for single-label targets take timm.loss.create_classification_loss"
        )
    loss_type = loss_type or "bce"
    if loss_type in _COUPLED:
        raise ValueError(f"loss_type: {loss_type!r} has no fused form; take {_COUPLED[loss_type]}")
    check_choice("loss_type", loss_type, FUSED_LOSSES)
    if loss_type not in ("bce", "asl") and not (class_weight is None and pos_weight is None):
        raise ValueError(
            f"class_weight, pos_weight: expected none for {loss_type!r}, as in timm; BalancedLoss(..., weight=, "
            "pos_weight=) has them for every loss"
        )
    if loss_type != "bce" and (bce_target_thresh is not None or bce_sum):
        raise ValueError(f"bce_target_thresh, bce_sum: expected none for {loss_type!r}")
    if loss_type != "db" and not (class_counts is None and num_samples is None):
        raise ValueError(f"class_counts, num_samples: expected none for {loss_type!r}")
    smoothing = 0.0 if soft_targets else smoothing
    if not 0 <= smoothing < 1:
        raise ValueError(f"smoothing: expected a number in [0, 1), got {smoothing}")
    class_weight, pos_weight = _weight("class_weight", class_weight), _weight("pos_weight", pos_weight)

    if loss_type == "bce":
        thresholded = bce_target_thresh is not None
        return MultiLabelLoss(
            LossSpec(label_smoothing=0.0 if thresholded else smoothing),
            weight=class_weight,
            pos_weight=pos_weight,
            reduction="batchmean" if bce_sum else "mean",
            target_threshold=bce_target_thresh,
            threshold_smoothing=smoothing if thresholded else 0.0,
        )
    if loss_type == "asl":
        spec = _spec(
            {"gamma": "asl_gamma_pos", "gamma_negative": "asl_gamma_neg", "probability_margin": "asl_clip"},
            gamma=asl_gamma_pos,
            gamma_negative=asl_gamma_neg,
            probability_margin=max(asl_clip or 0.0, 0.0),
            label_smoothing=smoothing,
        )
        mixes = spec.gammas != (0.0, 0.0)
        return MultiLabelLoss(
            spec,
            weight=class_weight,
            pos_weight=pos_weight,
            reduction=asl_reduction,
            mixes=mixes,
            soft_targets=soft_targets,
        )
    if loss_type == "poly":
        spec = _spec({"gamma": "poly_gamma"}, gamma=poly_gamma, poly_epsilon=poly_epsilon, label_smoothing=smoothing)
        factors = None
        if poly_alpha is not None:
            if not 0 <= poly_alpha <= 1:
                raise ValueError(f"poly_alpha: expected a number in [0, 1], got {poly_alpha}")
            if 0 < poly_alpha < 1:
                spec = spec.replace(positive_factor=poly_alpha, negative_factor=1 - poly_alpha)
            else:
                factors = (float(poly_alpha), 1.0 - poly_alpha)
        mixes = spec.gamma > 0 or poly_alpha is not None
        return MultiLabelLoss(spec, mixes=mixes, soft_targets=soft_targets, factors=factors)
    if class_counts is None or num_samples is None:
        raise ValueError("class_counts, num_samples: expected both for 'db', how many of how many training samples")
    if not db_neg_scale > 0:
        raise ValueError(f"db_neg_scale: expected a number > 0, got {db_neg_scale}")
    factor = _DB_FOCAL_FACTOR if db_focal_gamma > 0 else 1.0
    spec = _spec(
        {"gamma": "db_focal_gamma", "kappa": "db_init_bias", "lam": "db_neg_scale"},
        gamma=max(db_focal_gamma, 0.0),
        weighting="rebalanced",
        mu=_DB_MU,
        # The image version multiplies the negatives' bias by lambda again.
        kappa=db_init_bias / db_neg_scale,
        lam=db_neg_scale,
        positive_factor=factor,
        negative_factor=factor,
        label_smoothing=smoothing,
    )
    return MultiLabelLoss(spec, LabelStatistics.from_counts(class_counts, num_samples))


def _spec(arguments: dict[str, str], **settings: Any) -> LossSpec:
    """A spec, whose errors name the factory's argument for a setting."""
    try:
        return LossSpec(**settings)
    except (TypeError, ValueError) as error:
        setting, colon, message = str(error).partition(":")
        raise type(error)(f"{arguments.get(setting, setting)}{colon}{message}") from error


def _weight(name: str, value: Tensor | float | Sequence[float] | None) -> Weight | None:
    if value is None or isinstance(value, (int, float)):
        return value
    if isinstance(value, str):
        # timm's training script takes names; its losses take numbers too.
        raise ValueError(
            f"{name}: expected a number or one for each label, got {value!r}; class_weights(statistics, {value!r}) "
            "makes them by name"
        )
    weight = torch.as_tensor(value, dtype=torch.float32)
    # timm lets a single number stand for all labels in any shape.
    return weight.reshape(()) if weight.numel() == 1 else weight
