"""Every check of an argument of the classifier's losses."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from ..arguments import check_floating, check_settings
from ..label_statistics import LabelStatistics
from ..spec import LossSpec, check_choice

LinearGradientMode = Literal["auto", "forward", "backward"]
LINEAR_GRADIENT_MODES: tuple[str, ...] = get_args(LinearGradientMode)


def check_linear_settings(
    spec: LossSpec,
    statistics: LabelStatistics | None,
    reduction: str,
    impl: str,
    gradient: str,
    chunk_size: int | None,
    *,
    statistics_later: bool = False,
) -> None:
    """As :func:`~fused_balanced_loss.arguments.check_settings`, for the settings of a classifier's loss."""
    check_settings(spec, statistics, reduction, impl, "auto", statistics_later=statistics_later)
    if reduction == "none":
        raise ValueError("reduction: expected 'mean', 'batchmean' or 'sum', got 'none', which would need the logits")
    check_choice("gradient", gradient, LINEAR_GRADIENT_MODES)
    if chunk_size is not None and (isinstance(chunk_size, bool) or not isinstance(chunk_size, int)):
        raise TypeError(f"chunk_size: expected an integer or None, got {type(chunk_size).__name__}")
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size: expected at least 1, got {chunk_size}")


def check_classifier(features: Tensor, weight: Tensor, bias: Tensor | None, statistics: LabelStatistics | None) -> None:
    """Raises TypeError or ValueError unless features, weight, bias and statistics belong together."""
    given = {"features": features, "weight": weight} | ({} if bias is None else {"bias": bias})
    for name, value in given.items():
        check_floating(name, value)
        if value.device != features.device:
            raise ValueError(f"{name}: expected the device of the features, {features.device}, got {value.device}")
        # Autocast makes one dtype of all but float64.
        mixed = torch.is_autocast_enabled(features.device.type) and torch.float64 not in (value.dtype, features.dtype)
        if value.dtype != features.dtype and not mixed:
            raise TypeError(f"{name}: expected the dtype of the features, {features.dtype}, got {value.dtype}")
    if features.dim() < 2 or features.shape[-1] == 0:
        raise ValueError(f"features: expected [..., D] with at least two dimensions, got shape {list(features.shape)}")
    if weight.dim() != 2 or len(weight) == 0:
        raise ValueError(f"weight: expected [C, {features.shape[-1]}] with C >= 1, got shape {list(weight.shape)}")
    if features.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"features: expected [..., {weight.shape[1]}], as many as the weight's columns, got {list(features.shape)}"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias: expected [{len(weight)}], as the weight's rows, got shape {list(bias.shape)}")
    if statistics is not None and statistics.num_labels != len(weight):
        raise ValueError(
            f"weight: expected {statistics.num_labels} rows, as labels in statistics, got shape {list(weight.shape)}"
        )


def check_linear(linear: nn.Linear, statistics: LabelStatistics | None) -> None:
    """Raises TypeError or ValueError unless ``linear`` is a classifier of the labels in ``statistics``."""
    if not isinstance(linear, nn.Linear):
        raise TypeError(f"linear: expected nn.Linear, got {type(linear).__name__}")
    if statistics is not None and statistics.num_labels != linear.out_features:
        raise ValueError(
            f"linear: expected {statistics.num_labels} outputs, as labels in statistics, got {linear.out_features}"
        )


def check_updatable(weight: Tensor, bias: Tensor | None, impl: str) -> None:
    """Raises ValueError unless weight and bias are parameters, which an update may change in place."""
    if impl == "reference":
        raise ValueError("update: expected None with impl 'reference', which makes logits and whole gradients")
    for name, part in (("weight", weight), ("bias", bias)):
        base = part if part is None or part._base is None else part._base
        if base is not None and not base.is_leaf:
            raise ValueError(
                f"{name}: expected a parameter for update, which changes it in place, got the result of a "
                "computation, such as a parametrization's"
            )


def product_dtype(features: Tensor) -> torch.dtype:
    """The dtype that ``F.linear`` of these features computes in; autocast leaves float64 alone."""
    kind = features.device.type
    if torch.is_autocast_enabled(kind) and features.dtype != torch.float64:
        return torch.get_autocast_dtype(kind)
    return features.dtype
