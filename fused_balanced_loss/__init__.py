"""Balanced losses for long-tailed multi-label classification, fused into one pass over the logits."""

from .class_weights import class_weights
from .classifier.functional import linear_balanced_loss
from .classifier.module import LinearBalancedLoss
from .collate import SparseTargetsCollator
from .functional import balanced_loss
from .label_statistics import FrequencyGroups, LabelStatistics
from .modules import (
    BalancedLoss,
    ClassBalancedFocalLoss,
    ClassBalancedNTRLoss,
    DistributionBalancedLoss,
    FocalLoss,
    NegativeTolerantFocalLoss,
    RebalancedFocalLoss,
)
from .optim.update import AdamWUpdate, SGDUpdate
from .spec import LossSpec
from .targets import SparseTargets

__version__ = "0.2.0"

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
    "class_weights",
    "linear_balanced_loss",
]
