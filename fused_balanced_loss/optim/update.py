"""SGD and AdamW of a linear classifier, in place, chunk by chunk."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from ..spec import check_choice
from .base import ClassifierUpdate, Rounding
from .checks import check_number

MomentumState = Literal["float32", "bfloat16"]
AdamWState = Literal["float32", "bfloat16", "row"]


class SGDUpdate(ClassifierUpdate):
    """``torch.optim.SGD`` in place, chunk by chunk; see :class:`ClassifierUpdate` for what a step is.

    Args:
        lr: learning rate.
        momentum: in [0, 1).
        weight_decay: an L2 penalty's, added to the gradient.
        state: dtype of the weight's momentum; that of the bias is float32.
        max_row_norm: largest norm of a label's gradient; None for no limit.
        rounding: to bfloat16; ``"nearest"`` is there for comparison.
        seed: of the stochastic rounding.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
    """

    _settings = ("momentum", "state")

    def __init__(
        self,
        lr: float | Tensor,
        *,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        state: MomentumState = "float32",
        max_row_norm: float | None = None,
        rounding: Rounding = "stochastic",
        seed: int = 0,
    ) -> None:
        super().__init__(lr, weight_decay=weight_decay, max_row_norm=max_row_norm, rounding=rounding, seed=seed)
        self.momentum = check_number("momentum", momentum, below=1.0)
        check_choice("state", state, get_args(MomentumState))
        self.state = state

    def _moments(self) -> dict[str, tuple[torch.dtype, bool]]:
        return {"momentum_buffer": (getattr(torch, self.state), False)} if self.momentum else {}

    def _numbers(self, lr: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        one = torch.ones_like(lr)
        return lr, one, one

    def _constants(self) -> dict[str, float]:
        return {"momentum": self.momentum, "l2_penalty": self.weight_decay}


class AdamWUpdate(ClassifierUpdate):
    """``torch.optim.AdamW`` in place, chunk by chunk; see :class:`ClassifierUpdate` for what a step is.

    Args:
        lr: learning rate.
        betas: decay rates of first and second moment, in [0, 1).
        eps: added to the root of the second moment.
        weight_decay: decoupled: weight and bias are multiplied by 1 - lr * weight_decay.
        state: the weight's moments. ``"float32"``: as ``torch.optim.AdamW``, 8 bytes a weight. ``"bfloat16"``: both in
            bfloat16, 4 bytes. ``"row"``: the first in bfloat16, and of the second one float32 number a label, which
            averages the squares of the label's whole gradient row: 2 bytes a weight. So does Adam-mini (Zhang et al.,
            2024) with blocks of parameters. The bias has two float32 numbers a label in each.
        max_row_norm, rounding, seed: as for :class:`SGDUpdate`.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
    """

    _adamw = True
    _settings = ("betas", "eps", "state")

    def __init__(
        self,
        lr: float | Tensor,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        state: AdamWState = "float32",
        max_row_norm: float | None = None,
        rounding: Rounding = "stochastic",
        seed: int = 0,
    ) -> None:
        super().__init__(lr, weight_decay=weight_decay, max_row_norm=max_row_norm, rounding=rounding, seed=seed)
        if not isinstance(betas, (tuple, list)) or len(betas) != 2:
            raise TypeError(f"betas: expected two numbers, got {betas!r}")
        self.betas = (check_number("betas", betas[0], below=1.0), check_number("betas", betas[1], below=1.0))
        self.eps = check_number("eps", eps)
        check_choice("state", state, get_args(AdamWState))
        self.state = state

    def _moments(self) -> dict[str, tuple[torch.dtype, bool]]:
        by_row = self.state == "row"
        dtype = torch.float32 if self.state == "float32" else torch.bfloat16
        return {"exp_avg": (dtype, False), "exp_avg_sq": (torch.float32 if by_row else dtype, by_row)}

    def _numbers(self, lr: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        beta1, beta2 = (1 - torch.pow(beta, self.steps.double()) for beta in self.betas)
        return lr / beta1, 1 - lr * self.weight_decay, beta2.sqrt()

    def _constants(self) -> dict[str, float]:
        beta1, beta2 = self.betas
        return {"one_minus_beta1": 1 - beta1, "beta2": beta2, "one_minus_beta2": 1 - beta2, "eps": self.eps}
