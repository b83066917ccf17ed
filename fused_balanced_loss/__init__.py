"""Balanced losses for long-tailed multi-label classification, fused into one pass over the logits."""

from .classifier_optimizers import AdamWUpdate, SGDUpdate
from .label_statistics import FrequencyGroups, LabelStatistics
from .linear_loss import linear_balanced_loss
from .linear_module import LinearBalancedLoss
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
    "AdamWUpdate",
    "BalancedLoss",
    "ClassBalancedFocalLoss",
    "ClassBalancedNTRLoss",
    "DistributionBalancedLoss",
    "FocalLoss",
    "FrequencyGroups",
    "LabelStatistics",
    "LinearBalancedLoss",
    "LossSpec",
    "NegativeTolerantFocalLoss",
    "RebalancedFocalLoss",
    "SGDUpdate",
    "SparseTargets",
    "SparseTargetsCollator",
    "balanced_loss",
    "linear_balanced_loss",
]
