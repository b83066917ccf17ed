"""The losses as modules, under the paper's names."""

from __future__ import annotations

from torch import Tensor

from .arguments import GradientMode, Reduction, check_settings
from .backends.select import Impl
from .functional import balanced_loss
from .label_statistics import LabelStatistics
from .label_weights import Weight
from .spec import LossSpec
from .statistics_module import StatisticsModule
from .targets import SparseTargets


class BalancedLoss(StatisticsModule):
    """Any loss of the family as a module.

    The label counts are buffers: ``state_dict``, ``.to()`` and ``copy.deepcopy`` carry them; loading replaces them.

    Args:
        spec: which loss, for example ``LossSpec.preset("DB")``.
        statistics: label counts of the training set; may be None where the spec needs none (BCE, FL, ASL), and where
            ``load_state_dict`` or an assignment to ``statistics`` brings them before the first call.
        weight, pos_weight: a number or [C]; multiply the loss of each label, and the part of target 1 of each label.
            Tensors are buffers, as those of ``torch.nn.BCEWithLogitsLoss``.
        reduction: ``"mean"`` over the N * C elements, ``"batchmean"`` over the N samples, ``"sum"``, or ``"none"`` for
            the loss of each element.
        impl: which implementation computes the loss; see :func:`balanced_loss`.
        gradient: when the gradient is made, and where it is kept; see :func:`balanced_loss`.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
    """

    weight: Weight | None
    pos_weight: Weight | None

    def __init__(
        self,
        spec: LossSpec,
        statistics: LabelStatistics | None = None,
        *,
        weight: Weight | None = None,
        pos_weight: Weight | None = None,
        reduction: Reduction = "mean",
        impl: Impl = "auto",
        gradient: GradientMode = "auto",
    ) -> None:
        super().__init__()
        check_settings(spec, statistics, reduction, impl, gradient, statistics_later=True)
        self.spec = spec
        self.reduction: Reduction = reduction
        self.impl: Impl = impl
        self.gradient: GradientMode = gradient
        num_labels = None if statistics is None else statistics.num_labels
        self.keep_label_weights(num_labels, weight=weight, pos_weight=pos_weight)
        self.keep_statistics(statistics)

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
            targets: dense of the shape of the logits, a torch sparse tensor [N, C], or SparseTargets of N rows.
            sample_weight: [...], multiplies the loss of each sample.
            label_mask: bool [C] or the shape of the logits; False leaves an element out.
            ignore_index: a number other than 0 and 1; dense targets equal to it are left out.

        Returns:
            float32 (float64 for float64 logits): no dimensions, or the shape of the logits for reduction "none".

        Raises:
            TypeError, ValueError, RuntimeError: as :func:`balanced_loss`, where each argument is described in full.
        """
        return balanced_loss(
            logits,
            targets,
            self.spec,
            self.statistics,
            weight=self.weight,
            pos_weight=self.pos_weight,
            reduction=self.reduction,
            sample_weight=sample_weight,
            label_mask=label_mask,
            ignore_index=ignore_index,
            impl=self.impl,
            gradient=self.gradient,
        )

    def extra_repr(self) -> str:
        shown = dict(vars(self.spec))
        for name in ("weight", "pos_weight"):
            value = getattr(self, name)
            if value is not None:
                shown[name] = list(value.shape) if isinstance(value, Tensor) else value
        shown |= {name: getattr(self, name) for name in ("statistics", "reduction", "impl")}
        return ", ".join(f"{name}={value!r}" for name, value in shown.items())


class DistributionBalancedLoss(BalancedLoss):
    """DB: rebalanced weight, negative-tolerant margin and focal modulation (Huang et al., 2021, section 3.3).

    ``gamma=0`` is the paper's DB-0FL. The paper's ``mu`` is 0.9 for Reuters and 0.05 for PubMed.

    Args:
        statistics: label counts of the training set.
        gamma: focusing parameter.
        alpha, beta: floor and slope of the rebalanced weight.
        mu: its midpoint; None takes that of the training targets, which ``LabelStatistics.from_targets`` keeps.
        kappa, lam: scale of the negative-tolerant bias, slope of the negatives' margin.
        weight, pos_weight, reduction, impl, gradient: see :class:`BalancedLoss`.
    """

    def __init__(
        self,
        statistics: LabelStatistics | None,
        *,
        gamma: float = 2.0,
        alpha: float = 0.1,
        beta: float = 10.0,
        mu: float | None = None,
        kappa: float = 0.05,
        lam: float = 2.0,
        weight: Weight | None = None,
        pos_weight: Weight | None = None,
        reduction: Reduction = "mean",
        impl: Impl = "auto",
        gradient: GradientMode = "auto",
    ) -> None:
        spec = LossSpec(gamma=gamma, weighting="rebalanced", alpha=alpha, beta=beta, mu=mu, kappa=kappa, lam=lam)
        super().__init__(
            spec,
            statistics,
            weight=weight,
            pos_weight=pos_weight,
            reduction=reduction,
            impl=impl,
            gradient=gradient,
        )


class RebalancedFocalLoss(BalancedLoss):
    """R-FL: focal loss with the rebalanced weight (Huang et al., 2021, section 3.2).

    Args:
        statistics: label counts of the training set.
        gamma: focusing parameter.
        alpha, beta: floor and slope of the rebalanced weight.
        mu: its midpoint; None takes that of the training targets, which ``LabelStatistics.from_targets`` keeps.
        weight, pos_weight, reduction, impl, gradient: see :class:`BalancedLoss`.
    """

    def __init__(
        self,
        statistics: LabelStatistics | None,
        *,
        gamma: float = 2.0,
        alpha: float = 0.1,
        beta: float = 10.0,
        mu: float | None = None,
        weight: Weight | None = None,
        pos_weight: Weight | None = None,
        reduction: Reduction = "mean",
        impl: Impl = "auto",
        gradient: GradientMode = "auto",
    ) -> None:
        spec = LossSpec(gamma=gamma, weighting="rebalanced", alpha=alpha, beta=beta, mu=mu)
        super().__init__(
            spec,
            statistics,
            weight=weight,
            pos_weight=pos_weight,
            reduction=reduction,
            impl=impl,
            gradient=gradient,
        )


class ClassBalancedFocalLoss(BalancedLoss):
    """CB: focal loss with the class-balanced weight (Cui et al., CVPR 2019; Huang et al., 2021, section 3.2).

    Args:
        statistics: label counts of the training set.
        gamma: focusing parameter.
        beta_cb: class-balanced beta, in [0, 1).
        weight, pos_weight, reduction, impl, gradient: see :class:`BalancedLoss`.
    """

    def __init__(
        self,
        statistics: LabelStatistics | None,
        *,
        gamma: float = 2.0,
        beta_cb: float = 0.9,
        weight: Weight | None = None,
        pos_weight: Weight | None = None,
        reduction: Reduction = "mean",
        impl: Impl = "auto",
        gradient: GradientMode = "auto",
    ) -> None:
        super().__init__(
            LossSpec(gamma=gamma, weighting="class_balanced", beta_cb=beta_cb),
            statistics,
            weight=weight,
            pos_weight=pos_weight,
            reduction=reduction,
            impl=impl,
            gradient=gradient,
        )


class NegativeTolerantFocalLoss(BalancedLoss):
    """NTR-FL: focal loss with the negative-tolerant margin (Huang et al., 2021, section 3.3).

    Args:
        statistics: label counts of the training set.
        gamma: focusing parameter.
        kappa, lam: scale of the negative-tolerant bias, slope of the negatives' margin.
        weight, pos_weight, reduction, impl, gradient: see :class:`BalancedLoss`.
    """

    def __init__(
        self,
        statistics: LabelStatistics | None,
        *,
        gamma: float = 2.0,
        kappa: float = 0.05,
        lam: float = 2.0,
        weight: Weight | None = None,
        pos_weight: Weight | None = None,
        reduction: Reduction = "mean",
        impl: Impl = "auto",
        gradient: GradientMode = "auto",
    ) -> None:
        super().__init__(
            LossSpec(gamma=gamma, kappa=kappa, lam=lam),
            statistics,
            weight=weight,
            pos_weight=pos_weight,
            reduction=reduction,
            impl=impl,
            gradient=gradient,
        )


class ClassBalancedNTRLoss(BalancedLoss):
    """CB-NTR: class-balanced weight, negative-tolerant margin and focal modulation (Huang et al., 2021, section 3.3).

    Args:
        statistics: label counts of the training set.
        gamma: focusing parameter.
        beta_cb: class-balanced beta, in [0, 1).
        kappa, lam: scale of the negative-tolerant bias, slope of the negatives' margin.
        weight, pos_weight, reduction, impl, gradient: see :class:`BalancedLoss`.
    """

    def __init__(
        self,
        statistics: LabelStatistics | None,
        *,
        gamma: float = 2.0,
        beta_cb: float = 0.9,
        kappa: float = 0.05,
        lam: float = 2.0,
        weight: Weight | None = None,
        pos_weight: Weight | None = None,
        reduction: Reduction = "mean",
        impl: Impl = "auto",
        gradient: GradientMode = "auto",
    ) -> None:
        spec = LossSpec(gamma=gamma, weighting="class_balanced", beta_cb=beta_cb, kappa=kappa, lam=lam)
        super().__init__(
            spec,
            statistics,
            weight=weight,
            pos_weight=pos_weight,
            reduction=reduction,
            impl=impl,
            gradient=gradient,
        )


class FocalLoss(BalancedLoss):
    """FL: focal loss without class weights (Lin et al., ICCV 2017; Huang et al., 2021, section 3.1).

    Args:
        statistics: not needed; taken so that the losses are interchangeable.
        gamma: focusing parameter; 0 is binary cross entropy.
        weight, pos_weight, reduction, impl, gradient: see :class:`BalancedLoss`.
    """

    def __init__(
        self,
        statistics: LabelStatistics | None = None,
        *,
        gamma: float = 2.0,
        weight: Weight | None = None,
        pos_weight: Weight | None = None,
        reduction: Reduction = "mean",
        impl: Impl = "auto",
        gradient: GradientMode = "auto",
    ) -> None:
        super().__init__(
            LossSpec(gamma=gamma),
            statistics,
            weight=weight,
            pos_weight=pos_weight,
            reduction=reduction,
            impl=impl,
            gradient=gradient,
        )
