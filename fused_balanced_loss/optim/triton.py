"""Launches of the Triton kernel of a classifier's in-place step."""

from __future__ import annotations

import functools

from torch import Tensor

from ..kernels.classifier_update import classifier_update_kernel
from .rule import GradientConsumer, Step

_ELEMENTS_A_PROGRAM = 1024
_WIDEST = 256
NUM_WARPS = 4


def begin(step: Step) -> GradientConsumer:
    """Begins a step; each chunk is one launch, and the host reads nothing from the device."""
    return functools.partial(_update, step)


def layout(num_features: int) -> tuple[int, int]:
    """Rows of one program, and the columns that it takes at once."""
    columns = min(_WIDEST, max(16, 1 << (num_features - 1).bit_length()))
    return _ELEMENTS_A_PROGRAM // columns, columns


def _update(step: Step, rows: slice, weight_gradient: Tensor, bias_gradient: Tensor) -> None:
    weight = step.weight.cut(rows)
    bias = (None,) * 3 if step.bias is None else step.bias.cut(rows)
    num_rows, num_features = weight_gradient.shape
    rows_a_program, columns_at_once = layout(num_features)
    second_moment = weight.second_moment
    classifier_update_kernel[(-(-num_rows // rows_a_program),)](
        weight_gradient.contiguous(),
        bias_gradient.contiguous(),
        *weight,
        *bias,
        step.numbers,
        step.finite,
        step.seed,
        step.number,
        num_rows,
        num_features,
        step.first_label + rows.start,
        weight.value.stride(0),
        step.max_row_norm or 0.0,
        **{name.upper(): value for name, value in step.constants.items()},
        ADAMW=step.adamw,
        HAS_FIRST_MOMENT=weight.first_moment is not None,
        SECOND_MOMENT_A_ROW=second_moment is not None and second_moment.shape[1] != num_features,
        HAS_BIAS=step.bias is not None,
        CLIP=step.max_row_norm is not None,
        STOCHASTIC=step.stochastic,
        ROWS=rows_a_program,
        COLUMNS=columns_at_once,
        num_warps=NUM_WARPS,
        # Without it, as Triton will have it by default, each product and sum is an instruction of its own.
        enable_fp_fusion=True,
    )
