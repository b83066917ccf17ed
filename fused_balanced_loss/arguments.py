"""What callers may pass to the losses, checked and flattened to two dimensions."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from .backends.select import IMPLS
from .label_statistics import LabelStatistics
from .spec import LossSpec
from .targets import SparseTargets, check_binary

Reduction = Literal["none", "sum", "mean"]
GradientMode = Literal["auto", "forward", "backward", "in_place"]
REDUCTIONS: tuple[str, ...] = get_args(Reduction)
GRADIENT_MODES: tuple[str, ...] = get_args(GradientMode)

_LOGITS_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_TARGET_DTYPES = (torch.bool, torch.uint8, *_LOGITS_DTYPES)


def check_settings(
    spec: LossSpec, statistics: LabelStatistics | None, reduction: str, impl: str, gradient: str
) -> None:
    """Raises TypeError or ValueError, naming the setting, unless all fit together."""
    if not isinstance(spec, LossSpec):
        raise TypeError(f"spec: expected a LossSpec, got {type(spec).__name__}")
    if statistics is not None and not isinstance(statistics, LabelStatistics):
        raise TypeError(f"statistics: expected LabelStatistics, got {type(statistics).__name__}")
    if statistics is None and spec.needs_statistics:
        raise ValueError("statistics: expected LabelStatistics, which this spec's weighting or kappa needs; got None")
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction: expected one of {', '.join(map(repr, REDUCTIONS))}; got {reduction!r}")
    if impl not in IMPLS:
        raise ValueError(f"impl: expected one of {', '.join(map(repr, IMPLS))}; got {impl!r}")
    if gradient not in GRADIENT_MODES:
        raise ValueError(f"gradient: expected one of {', '.join(map(repr, GRADIENT_MODES))}; got {gradient!r}")
    if gradient == "in_place" and reduction == "none":
        raise ValueError("gradient: 'in_place' needs reduction 'sum' or 'mean', got reduction 'none'")


def check_logits(logits: Tensor, statistics: LabelStatistics | None) -> None:
    if not isinstance(logits, Tensor):
        raise TypeError(f"logits: expected a tensor, got {type(logits).__name__}")
    if logits.dtype not in _LOGITS_DTYPES:
        raise TypeError(f"logits: expected float16, bfloat16, float32 or float64, got {logits.dtype}")
    if logits.dim() < 2 or logits.shape[-1] == 0:
        raise ValueError(f"logits: expected [..., C] with at least two dimensions and C >= 1, got {list(logits.shape)}")
    if statistics is not None and logits.shape[-1] != statistics.num_labels:
        raise ValueError(
            f"logits: expected {statistics.num_labels} labels in the last dimension, as in statistics, "
            f"got shape {list(logits.shape)}"
        )


def check_writable(logits: Tensor) -> None:
    """Raises ValueError where the gradient cannot be written over the logits."""
    base = logits._base if logits._is_view() else logits
    if logits.requires_grad and (base is None or base.is_leaf):
        raise ValueError("logits: expected the result of a computation for gradient='in_place', got a leaf or its view")
    strides = sorted((stride, size) for stride, size in zip(logits.stride(), logits.shape, strict=True) if size > 1)
    whole, reach = logits.stride(-1) == 1 or logits.shape[-1] == 1, 1
    for stride, size in strides:
        whole &= stride >= reach
        reach = stride * size
    try:
        logits.view(-1, logits.shape[-1])
    except RuntimeError:
        whole = False
    if not whole:
        raise ValueError(
            f"logits: expected rows side by side in memory for gradient='in_place', got shape {list(logits.shape)} "
            f"with strides {list(logits.stride())}"
        )


def _check_device(name: str, value: Tensor | SparseTargets, device: torch.device) -> None:
    if value.device != device:
        raise ValueError(f"{name}: expected the device of the logits, {device}, got {value.device}")


def flat_targets(
    targets: Tensor | SparseTargets, shape: tuple[int, ...], device: torch.device
) -> Tensor | SparseTargets:
    """Targets of logits of ``shape`` [..., C], as [N, C]."""
    num_samples = math.prod(shape[:-1])
    if isinstance(targets, Tensor) and targets.layout != torch.strided:
        targets = SparseTargets.from_torch(targets)
    if isinstance(targets, SparseTargets):
        if targets.shape != (num_samples, shape[-1]):
            raise ValueError(
                f"targets: expected shape {[num_samples, shape[-1]]}, as the logits, got {list(targets.shape)}"
            )
        _check_device("targets", targets, device)
        return targets
    if not isinstance(targets, Tensor):
        raise TypeError(f"targets: expected a tensor or SparseTargets, got {type(targets).__name__}")
    if targets.dtype not in _TARGET_DTYPES:
        raise TypeError(f"targets: expected bool, uint8 or a floating-point dtype, got {targets.dtype}")
    if targets.shape != shape:
        raise ValueError(f"targets: expected shape {list(shape)}, as the logits, got {list(targets.shape)}")
    if targets.requires_grad:
        raise ValueError("targets: expected a tensor without gradient, got one that requires it")
    _check_device("targets", targets, device)
    targets = targets if targets.dim() == 2 else targets.reshape(num_samples, shape[-1])
    return targets if targets.stride(1) == 1 else targets.contiguous()


def flat_sample_weight(sample_weight: Tensor | None, shape: tuple[int, ...], device: torch.device) -> Tensor | None:
    """Sample weights of logits of ``shape`` [..., C], as [N]."""
    if sample_weight is None:
        return None
    if not isinstance(sample_weight, Tensor):
        raise TypeError(f"sample_weight: expected a tensor, got {type(sample_weight).__name__}")
    if sample_weight.shape != shape[:-1]:
        raise ValueError(
            f"sample_weight: expected shape {list(shape[:-1])}, one for each sample, got {list(sample_weight.shape)}"
        )
    if sample_weight.requires_grad:
        raise ValueError("sample_weight: expected a tensor without gradient, got one that requires it")
    _check_device("sample_weight", sample_weight, device)
    return sample_weight.reshape(-1)


def flat_label_mask(label_mask: Tensor | None, shape: tuple[int, ...], device: torch.device) -> Tensor | None:
    """Label mask of logits of ``shape`` [..., C], as [N, C]."""
    if label_mask is None:
        return None
    if not isinstance(label_mask, Tensor) or label_mask.dtype != torch.bool:
        got = label_mask.dtype if isinstance(label_mask, Tensor) else type(label_mask).__name__
        raise TypeError(f"label_mask: expected a bool tensor, got {got}")
    _check_device("label_mask", label_mask, device)
    num_samples = math.prod(shape[:-1])
    if label_mask.shape == shape[-1:]:
        return label_mask.contiguous().expand(num_samples, -1)
    if label_mask.shape != shape:
        raise ValueError(
            f"label_mask: expected shape {list(shape[-1:])} or {list(shape)}, got {list(label_mask.shape)}"
        )
    return label_mask.reshape(num_samples, shape[-1]).contiguous()


def check_targets_of(loss: Tensor, targets: Tensor | SparseTargets) -> None:
    """Raises ValueError where an invalid target has turned the loss into NaN; on a CPU, where looking stalls nothing.

    Looking at the targets only then costs a good call nothing.
    """
    if not isinstance(targets, Tensor) or loss.device.type != "cpu" or torch.compiler.is_compiling():
        return
    if bool(torch.isnan(loss).any()) if loss.dim() else math.isnan(loss.item()):
        check_binary(targets)
