"""What an in-place optimizer of a linear classifier hands to the implementations of its step."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

# Which tensor the random bits of a stochastic rounding belong to.
WEIGHT, FIRST_MOMENT, SECOND_MOMENT, BIAS = range(4)

# Takes one chunk's gradients: the chunk's rows, the gradient of the weight [b, D] (float32 or the weight's dtype) and
# that of the bias [b] (float32). Both are yet to be multiplied by the step's factor. The next chunk overwrites their
# memory.
GradientConsumer = Callable[[slice, Tensor, Tensor], None]


# Constants of the kernels, in their order: momentum and weight decay of SGD, the others of AdamW.
CONSTANTS = ("momentum", "one_minus_beta1", "beta2", "one_minus_beta2", "eps", "l2_penalty")


class Rows(NamedTuple):
    """Rows of the weight [b, D] or of the bias [b, 1], with their moments; None where the rule keeps none.

    value and first_moment are float32 or bfloat16, and so is second_moment; or that is float32 [b, 1], one number for a
    whole row.
    """

    value: Tensor
    first_moment: Tensor | None = None
    second_moment: Tensor | None = None

    def cut(self, rows: slice) -> Rows:
        """Some of the rows, as views."""
        return Rows(self.value[rows], *(None if moment is None else moment[rows] for moment in self[1:]))


class Step(NamedTuple):
    """One step of the optimizer; all tensors are on the device of the weight.

    Args:
        adamw: whether the optimizer is AdamW, and not SGD.
        constants: by :data:`CONSTANTS`, 0 for what the optimizer does not have.
        max_row_norm: the largest norm of a label's gradient, or None.
        stochastic: whether rounding to bfloat16 is stochastic.
        numbers: float64 [4]. ``gradient_scale`` multiplies the gradients. ``step_size`` is the learning rate, for AdamW
            over the bias correction of the first moment. ``weight_scale`` multiplies the old weights (AdamW's decay).
            ``root_correction`` is the root of the bias correction of the second moment (AdamW).
        finite: bool, no dimensions; False makes the step change nothing.
        seed, number: int64, no dimensions; with an element's place they determine its random bits. ``number`` is that
            of the step.
        weight, bias: all their rows; None without a bias.
        first_label: the label of the weight's first row; not 0 in a shard.
    """

    adamw: bool
    constants: dict[str, float]
    max_row_norm: float | None
    stochastic: bool
    numbers: Tensor
    finite: Tensor
    seed: Tensor
    number: Tensor
    weight: Rows
    bias: Rows | None
    first_label: int


def ignore_gradients(rows: slice, weight_gradient: Tensor, bias_gradient: Tensor) -> None:
    """The :data:`GradientConsumer` of a step that changes nothing."""
