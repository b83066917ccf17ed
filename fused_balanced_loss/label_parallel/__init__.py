"""The classifier sharded over ranks along the labels."""

from .module import LabelParallelLinearLoss

__all__ = ["LabelParallelLinearLoss"]
