"""In-place optimization of a linear classifier, a chunk of rows at a time, while that chunk's gradient is at hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from .rule import Rows, Rule, Sink, Step
from .select import select_update

Rounding = Literal["stochastic", "nearest"]
# Shape and dtype of each of a state's buffers.
State = dict[str, tuple[tuple[int, ...], torch.dtype]]

_WEIGHT_DTYPES = (torch.float32, torch.bfloat16)


class ClassifierUpdate(nn.Module):
    """Base of :class:`SGDUpdate` and :class:`AdamWUpdate`: what their steps have in common.

    *A step.* Every backward is one step: to accumulate gradients, join the batches. Weight and bias have one learning
    rate and one weight decay, as in one parameter group. The classifier is float32 or bfloat16. In data parallelism
    each replica would step by its own gradient alone.

    *Rounding.* What is kept in bfloat16 is rounded stochastically (Gupta et al., ICML 2015): small steps are lost on
    average by none, where rounding to nearest loses each of them. The random bits are a function of ``seed``, step,
    tensor, label and column: the same again after a restart, and whatever the chunk size.

    *Gradient clipping* is by label: ``max_row_norm`` bounds the norm of a label's gradient, of its row of the weight
    and of its bias together, before weight decay. A norm over all labels would need the whole gradient first.

    *Non-finite values.* Where the loss or the upstream gradient is not finite, the step changes nothing (weight, bias,
    state and ``steps``) and ``skipped`` goes up; the device decides, the host does not wait. The features' gradient is
    then not finite either. A gradient that is infinite where the loss is finite shows in the weight.

    *GradScaler.* The upstream gradient is divided by ``loss_scale`` (a number, or a tensor of one element): before each
    backward ``update.loss_scale = scaler.get_scale()``.

    *Learning rate.* ``lr`` is a number or a tensor of one element (which a CUDA graph reads at each replay) and may be
    set at any time; with a scheduler of the encoder's optimizer ``update.lr = scheduler.get_last_lr()[0]``.

    ``state_dict`` holds the state, ``steps``, ``skipped`` and ``seed``, and a run that goes on from it gives the bits
    of one never interrupted. ``.to(dtype)`` leaves the state's dtypes.
    """

    steps: Tensor
    skipped: Tensor
    seed: Tensor
    # Names of the buffers whose first dimension is the weight's rows.
    row_state: tuple[str, ...] = ()

    def __init__(
        self,
        lr: float | Tensor,
        *,
        weight_decay: float,
        max_row_norm: float | None,
        rounding: str,
        seed: int,
    ) -> None:
        super().__init__()
        if rounding not in get_args(Rounding):
            raise ValueError(f"rounding: expected 'stochastic' or 'nearest', got {rounding!r}")
        if isinstance(seed, bool) or not isinstance(seed, int):
            raise TypeError(f"seed: expected an integer, got {type(seed).__name__}")
        if not 0 <= seed < 1 << 63:
            raise ValueError(f"seed: expected an integer of at least 0 and below 2**63, got {seed}")
        self.lr = lr
        self.loss_scale = 1.0
        self.weight_decay = check_number("weight_decay", weight_decay)
        self.max_row_norm = None if max_row_norm is None else check_number("max_row_norm", max_row_norm, positive=True)
        self.rounding = rounding
        self._first_seed = seed
        self.first_row = 0
        self._prepared = False
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("skipped", torch.zeros((), dtype=torch.int64))
        self.register_buffer("seed", torch.tensor(seed))

    @property
    def lr(self) -> float | Tensor:
        """Learning rate."""
        return self._lr

    @lr.setter
    def lr(self, value: float | Tensor) -> None:
        self._lr = _number_or_tensor("lr", value)

    @property
    def loss_scale(self) -> float | Tensor:
        """What the upstream gradient is divided by."""
        return self._loss_scale

    @loss_scale.setter
    def loss_scale(self, value: float | Tensor) -> None:
        self._loss_scale = _number_or_tensor("loss_scale", value, positive=True)

    def prepare(self, weight: Tensor, bias: Tensor | None, first_row: int = 0) -> None:
        """Makes the state for a classifier's weight [C, D] and bias [C]; called once, by what owns them.

        first_row: the label of the weight's first row, in a shard.
        """
        if self._prepared:
            raise RuntimeError(
                "update: prepared for a classifier already; each classifier needs an optimizer of its own"
            )
        _check_classifier(weight, bias)
        self.first_row = first_row
        state = self._state(weight.shape[0], weight.shape[1], bias is not None)
        self.row_state = tuple(state)
        for name, (shape, dtype) in state.items():
            self.register_buffer(name, torch.zeros(shape, dtype=dtype, device=weight.device))
        for name in ("steps", "skipped", "seed"):
            self.register_buffer(name, getattr(self, name).to(weight.device))
        self._prepared = True

    def check(self, weight: Tensor, bias: Tensor | None) -> None:
        """Raises RuntimeError, TypeError or ValueError unless this is a classifier like the one prepared for."""
        if not self._prepared:
            raise RuntimeError("update: expected prepare(weight, bias) before the first step")
        _check_classifier(weight, bias)
        for name, (shape, _) in self._state(weight.shape[0], weight.shape[1], bias is not None).items():
            state = getattr(self, name, None)
            if state is None or state.shape != shape:
                got = "none" if state is None else list(state.shape)
                raise ValueError(
                    f"weight: expected the classifier that update was prepared for; weight {list(weight.shape)} "
                    f"{'without' if bias is None else 'with'} bias needs {name} {list(shape)}, got {got}"
                )
        if self.steps.device != weight.device:
            raise ValueError(f"update: expected on the device of the weight, {weight.device}, got {self.steps.device}")

    def step(self, weight: Tensor, bias: Tensor | None, factor: Tensor, finite: Tensor) -> Sink:
        """Begins one step; the result takes each chunk's rows and the gradients of their weight and bias.

        Args:
            factor: no dimensions; what the gradients are yet to be multiplied by.
            finite: bool, no dimensions; False makes the step change nothing.
        """
        self.check(weight, bias)
        self.steps.add_(finite)
        self.skipped.add_(~finite)
        factor = factor.double() / self._on_device(self.loss_scale)
        numbers = torch.stack([factor, *self._numbers(self._on_device(self.lr))])
        update = select_update(weight.device)(Step(self._rule(), numbers, finite, self.seed, self.steps))
        value, bias_value = self._rows(weight, ""), None if bias is None else self._rows(bias[:, None], "bias_")

        def sink(rows: slice, d_weight: Tensor, d_bias: Tensor) -> None:
            own_bias = None if bias_value is None else _cut(bias_value, rows)
            update(d_weight, d_bias[:, None], _cut(value, rows), own_bias, self.first_row + rows.start)

        return sink

    def extra_repr(self) -> str:
        names = ("lr", "weight_decay", "max_row_norm", "rounding")
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names)

    def _state(self, num_labels: int, num_features: int, bias: bool) -> State:
        """What the moments of the weight are kept in, and those of the bias."""
        raise NotImplementedError

    def _moments(self) -> tuple[str | None, str | None]:
        """Names of the buffers of first and second moment; None where there is none."""
        raise NotImplementedError

    def _numbers(self, lr: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The last three of :class:`Step`'s numbers, float64, no dimensions."""
        raise NotImplementedError

    def _rule(self) -> Rule:
        raise NotImplementedError

    def _rows(self, value: Tensor, prefix: str) -> Rows:
        moments = (None if name is None else getattr(self, prefix + name) for name in self._moments())
        return Rows(value, *(one[:, None] if one is not None and one.dim() == 1 else one for one in moments))

    def _on_device(self, value: float | Tensor) -> Tensor:
        device = self.steps.device
        if isinstance(value, Tensor):
            return value.detach().to(device, torch.float64).reshape(())
        return torch.full((), value, dtype=torch.float64, device=device)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ClassifierUpdate:
        def keep_dtype(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            if moved.dtype != tensor.dtype:
                moved = tensor.to(moved.device)
            # Memory given to a meta tensor: the state begins at zero.
            return moved.zero_() if tensor.is_meta and not moved.is_meta else moved

        was_meta = self.seed.is_meta
        super()._apply(keep_dtype, recurse)
        if was_meta and not self.seed.is_meta:
            self.seed.fill_(self._first_seed)
        return self


def check_number(name: str, value: Any, *, positive: bool = False, below: float = math.inf) -> float:
    """The number; raises TypeError or ValueError unless it is finite, at least 0 (``positive``: above), and below."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}")
    if not (0 <= value < below) or (positive and value == 0):
        bounds = "above 0" if positive else "of at least 0"
        limit = " and finite" if below == math.inf else f" and below {below:g}"
        raise ValueError(f"{name}: expected a number {bounds}{limit}, got {value}")
    return float(value)


def _number_or_tensor(name: str, value: Any, positive: bool = False) -> float | Tensor:
    if not isinstance(value, Tensor):
        return check_number(name, value, positive=positive)
    if value.numel() != 1 or not value.is_floating_point():
        raise ValueError(
            f"{name}: expected a floating-point tensor of one element, got {value.dtype} of shape {list(value.shape)}"
        )
    return value.detach()


def _check_classifier(weight: Tensor, bias: Tensor | None) -> None:
    for name, value in (("weight", weight), ("bias", bias)):
        if value is not None and value.dtype not in _WEIGHT_DTYPES:
            raise TypeError(f"{name}: expected float32 or bfloat16 for an update in place, got {value.dtype}")
        if value is not None and value.stride(-1) != 1 and value.shape[-1] > 1:
            raise ValueError(f"{name}: expected rows side by side in memory, got strides {list(value.stride())}")


def _cut(rows: Rows, some: slice) -> Rows:
    return Rows(*(None if tensor is None else tensor[some] for tensor in rows))  # type: ignore[arg-type]
