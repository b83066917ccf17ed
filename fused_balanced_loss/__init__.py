"""Balanced losses for long-tailed multi-label classification, fused into one pass over the logits."""

from .label_statistics import FrequencyGroups, LabelStatistics
from .logits_loss import balanced_loss
from .modules import (
    BalancedLoss,
    ClassBalancedFocalLoss,
    ClassBalancedNTRLoss,
    DistributionBalancedLoss,
    FocalLoss,
    NegativeTolerantFocalLoss,
    RebalancedFocalLoss,
)
from .spec import LossSpec
from .targets import SparseTargets, SparseTargetsCollator

__version__ = "0.1.0"

__all__ = [
    "BalancedLoss",
    "ClassBalancedFocalLoss",
    "ClassBalancedNTRLoss",
    "DistributionBalancedLoss",
    "FocalLoss",
    "FrequencyGroups",
    "LabelStatistics",
    "LossSpec",
    "NegativeTolerantFocalLoss",
    "RebalancedFocalLoss",
    "SparseTargets",
    "SparseTargetsCollator",
    "balanced_loss",
]
