"""Balanced losses for long-tailed multi-label classification, fused into one pass over the logits."""

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

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

if TYPE_CHECKING:
    # Without these imports mypy takes the attributes for Any.
    from . import integrations, label_parallel, metrics  # noqa: F401

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

# These are imported when they are first asked for, so that the import of the package takes no longer.
_SUBMODULES = ("integrations", "label_parallel", "metrics")


def __getattr__(name: str) -> ModuleType:
    if name in _SUBMODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *_SUBMODULES]
