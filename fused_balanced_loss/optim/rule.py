"""What an in-place optimizer of a linear classifier says to the implementations of its step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

from torch import Tensor

# Which tensor the random bits of a stochastic rounding are for.
WEIGHT, FIRST, SECOND, BIAS = range(4)


class Rule(NamedTuple):
    """The optimizer's settings. momentum: of SGD; betas, eps: of AdamW; weight_decay: of SGD, an L2 penalty's."""

    kind: Literal["sgd", "adamw"]
    momentum: float
    betas: tuple[float, float]
    eps: float
    weight_decay: float
    max_row_norm: float | None
    stochastic: bool


class Step(NamedTuple):
    """One step of the optimizer, on the device of the weight.

    numbers: float64 [4]: what gradients are multiplied by; learning rate (AdamW: over the first moment's bias
        correction); what weights are multiplied by before (AdamW); root of the second moment's bias correction (AdamW).
    finite: bool, no dimensions; False makes the step change nothing.
    seed, number: int64, no dimensions; they and an element's place make its random bits.
    """

    rule: Rule
    numbers: Tensor
    finite: Tensor
    seed: Tensor
    number: Tensor


class Rows(NamedTuple):
    """Rows of the weight [b, D], or of the bias [b, 1], and of their moments; None where the rule keeps none.

    value: float32 or bfloat16, as ``first`` [b, D]. second: [b, D], or float32 [b, 1], one for all of a row.
    """

    value: Tensor
    first: Tensor | None
    second: Tensor | None


# Gradients of weight [b, D] and bias [b, 1], float32, unscaled, not kept; weight; bias; label of the first row.
ChunkUpdate = Callable[[Tensor, Tensor, Rows, Rows | None, int], None]

# What to do with one chunk's unscaled gradients: its rows, of the weight (float32 or the weight's dtype) and the bias.
# The next chunk overwrites them.
Sink = Callable[[slice, Tensor, Tensor], None]
