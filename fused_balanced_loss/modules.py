"""The losses as modules, under the paper's names."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .arguments import GradientMode, Reduction, check_settings
from .backends.select import Impl
from .label_statistics import LabelStatistics
from .logits_loss import balanced_loss
from .spec import PAPER_MU, LossSpec
from .targets import SparseTargets
from .terms import label_terms


class BalancedLoss(nn.Module):
    """Any loss of the family as a module.

    The label counts are buffers: ``state_dict``, ``.to()`` and ``copy.deepcopy`` carry them, and loading a state dict
    replaces the statistics.

    Args:
        spec: which loss, for example ``LossSpec.preset("DB")``.
        statistics: label counts of the training set; may be None where the spec needs none (BCE, FL, ASL).
        reduction, impl, gradient: as for :func:`balanced_loss`.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
    """

    counts: Tensor | None
    num_samples: Tensor | None

    def __init__(
        self,
        spec: LossSpec,
        statistics: LabelStatistics | None = None,
        *,
        reduction: Reduction = "mean",
        impl: Impl = "auto",
        gradient: GradientMode = "auto",
    ) -> None:
        super().__init__()
        check_settings(spec, statistics, reduction, impl, gradient)
        self.spec = spec
        self.reduction: Reduction = reduction
        self.impl: Impl = impl
        self.gradient: GradientMode = gradient
        self.statistics = statistics
        device = None if statistics is None else torch.get_default_device()
        self.register_buffer("counts", None if statistics is None else statistics.counts.to(device, copy=True))
        self.register_buffer(
            "num_samples", None if statistics is None else torch.tensor(statistics.num_samples, device=device)
        )
        self._prepare()

    def forward(
        self,
        logits: Tensor,
        targets: Tensor | SparseTargets,
        sample_weight: Tensor | None = None,
        label_mask: Tensor | None = None,
    ) -> Tensor:
        """Loss of logits [..., C]; arguments, result and errors as for :func:`balanced_loss`."""
        return balanced_loss(
            logits,
            targets,
            self.statistics,
            self.spec,
            reduction=self.reduction,
            sample_weight=sample_weight,
            label_mask=label_mask,
            impl=self.impl,
            gradient=self.gradient,
        )

    def extra_repr(self) -> str:
        fields = (f"{name}={value!r}" for name, value in vars(self.spec).items())
        return ", ".join(
            (*fields, f"statistics={self.statistics}", f"reduction={self.reduction!r}", f"impl={self.impl!r}")
        )

    def _prepare(self) -> None:
        """Has the constants at hand before the first call, which may be traced or captured."""
        if self.counts is not None and self.counts.device.type != "meta":
            label_terms(self.statistics, self.spec, torch.float32, self.counts.device)

    def _apply(self, fn: Any, recurse: bool = True) -> BalancedLoss:
        super()._apply(fn, recurse)
        self._prepare()
        return self

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        before = len(error_msgs)
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        if len(error_msgs) > before or self.counts is None or self.num_samples is None:
            return
        if self.counts.device.type != "meta":
            self.statistics = LabelStatistics.from_counts(self.counts, int(self.num_samples), degenerate="ignore")
            self._prepare()


class DistributionBalancedLoss(BalancedLoss):
    """DB: rebalanced weight, negative-tolerant margin and focal modulation (Huang et al., 2021, section 3.3).

    ``gamma=0`` is the paper's DB-0FL. ``mu`` suits a corpus when taken from :meth:`LabelStatistics.suggest_mu`; the
    paper has 0.9 for Reuters, 0.05 for PubMed.

    Args:
        statistics: label counts of the training set.
        gamma: focusing parameter.
        alpha, beta, mu: floor, slope and midpoint of the rebalanced weight.
        kappa, lam: scale of the negative-tolerant bias, slope of the negatives' margin.
        reduction, impl, gradient: as for :func:`balanced_loss`.
    """

    def __init__(
        self,
        statistics: LabelStatistics,
        *,
        gamma: float = 2.0,
        alpha: float = 0.1,
        beta: float = 10.0,
        mu: float = PAPER_MU["reuters"],
        kappa: float = 0.05,
        lam: float = 2.0,
        **options: Any,
    ) -> None:
        spec = LossSpec(gamma=gamma, weighting="rebalanced", alpha=alpha, beta=beta, mu=mu, kappa=kappa, lam=lam)
        super().__init__(spec, statistics, **options)


class RebalancedFocalLoss(BalancedLoss):
    """R-FL: focal loss with the rebalanced weight (Huang et al., 2021, section 3.2).

    Args: as for :class:`DistributionBalancedLoss`, without kappa and lam.
    """

    def __init__(
        self,
        statistics: LabelStatistics,
        *,
        gamma: float = 2.0,
        alpha: float = 0.1,
        beta: float = 10.0,
        mu: float = PAPER_MU["reuters"],
        **options: Any,
    ) -> None:
        spec = LossSpec(gamma=gamma, weighting="rebalanced", alpha=alpha, beta=beta, mu=mu)
        super().__init__(spec, statistics, **options)


class ClassBalancedFocalLoss(BalancedLoss):
    """CB: focal loss with the class-balanced weight (Cui et al., CVPR 2019; Huang et al., 2021, section 3.2).

    Args:
        statistics: label counts of the training set.
        gamma: focusing parameter.
        beta_cb: class-balanced beta, in [0, 1).
        reduction, impl, gradient: as for :func:`balanced_loss`.
    """

    def __init__(
        self, statistics: LabelStatistics, *, gamma: float = 2.0, beta_cb: float = 0.9, **options: Any
    ) -> None:
        super().__init__(LossSpec(gamma=gamma, weighting="class_balanced", beta_cb=beta_cb), statistics, **options)


class NegativeTolerantFocalLoss(BalancedLoss):
    """NTR-FL: focal loss with the negative-tolerant margin (Huang et al., 2021, section 3.3).

    Args:
        statistics: label counts of the training set.
        gamma: focusing parameter.
        kappa, lam: scale of the negative-tolerant bias, slope of the negatives' margin.
        reduction, impl, gradient: as for :func:`balanced_loss`.
    """

    def __init__(
        self, statistics: LabelStatistics, *, gamma: float = 2.0, kappa: float = 0.05, lam: float = 2.0, **options: Any
    ) -> None:
        super().__init__(LossSpec(gamma=gamma, kappa=kappa, lam=lam), statistics, **options)


class ClassBalancedNTRLoss(BalancedLoss):
    """CB-NTR: class-balanced weight, negative-tolerant margin and focal modulation (Huang et al., 2021, section 3.3).

    Args: those of :class:`ClassBalancedFocalLoss` and :class:`NegativeTolerantFocalLoss`.
    """

    def __init__(
        self,
        statistics: LabelStatistics,
        *,
        gamma: float = 2.0,
        beta_cb: float = 0.9,
        kappa: float = 0.05,
        lam: float = 2.0,
        **options: Any,
    ) -> None:
        spec = LossSpec(gamma=gamma, weighting="class_balanced", beta_cb=beta_cb, kappa=kappa, lam=lam)
        super().__init__(spec, statistics, **options)


class FocalLoss(BalancedLoss):
    """FL: focal loss without class weights (Lin et al., ICCV 2017; Huang et al., 2021, section 3.1).

    Args:
        statistics: not needed; taken so that the losses are interchangeable.
        gamma: focusing parameter; 0 is binary cross entropy.
        reduction, impl, gradient: as for :func:`balanced_loss`.
    """

    def __init__(self, statistics: LabelStatistics | None = None, *, gamma: float = 2.0, **options: Any) -> None:
        super().__init__(LossSpec(gamma=gamma), statistics, **options)
