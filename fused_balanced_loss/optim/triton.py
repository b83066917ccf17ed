"""Launches of the Triton kernel of a classifier's in-place step."""

from __future__ import annotations

import functools

from torch import Tensor

from ..kernels.classifier_update import classifier_update_kernel
from .rule import ChunkUpdate, Rows, Rule, Step

_TILE = 1024
_WIDEST = 256
NUM_WARPS = 4


def begin(step: Step) -> ChunkUpdate:
    """What takes one chunk after another, each in one launch; the host looks at nothing."""
    return functools.partial(_update, step)


def layout(num_features: int) -> tuple[int, int]:
    """Rows of a program, and the columns it takes at once."""
    block = min(_WIDEST, max(16, 1 << (num_features - 1).bit_length()))
    return _TILE // block, block


def kernel_spec(rule: Rule) -> tuple[float, ...]:
    """The settings that the kernel takes, in its order."""
    beta1, beta2 = rule.betas
    return (rule.momentum, 1 - beta1, beta2, 1 - beta2, rule.eps, rule.weight_decay)


def _update(
    step: Step, gradient: Tensor, bias_gradient: Tensor, weight: Rows, bias: Rows | None, first_row: int
) -> None:
    rule = step.rule
    num_rows, num_features = gradient.shape
    rows, block = layout(num_features)
    classifier_update_kernel[(-(-num_rows // rows),)](
        gradient.contiguous(),
        bias_gradient.contiguous(),
        weight.value,
        weight.first,
        weight.second,
        None if bias is None else bias.value,
        None if bias is None else bias.first,
        None if bias is None else bias.second,
        step.numbers,
        step.finite,
        step.seed,
        step.number,
        num_rows,
        num_features,
        first_row,
        weight.value.stride(0),
        rule.max_row_norm or 0.0,
        SPEC=kernel_spec(rule),
        ADAMW=rule.kind == "adamw",
        MOMENTUM=weight.first is not None,
        ROW_SECOND=weight.second is not None and weight.second.shape[1] != num_features,
        HAS_BIAS=bias is not None,
        CLIP=rule.max_row_norm is not None,
        STOCHASTIC=rule.stochastic,
        ROWS=rows,
        BLOCK=block,
        num_warps=NUM_WARPS,
    )
