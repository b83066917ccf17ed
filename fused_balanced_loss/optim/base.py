"""In-place optimization of a linear classifier, a chunk of rows at a time, while that chunk's gradient is at hand."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from ..input_values import as_integer
from ..spec import check_choice
from .checks import StateForm, check_apart, check_classifier, check_number, check_number_or_tensor, check_state
from .rule import CONSTANTS, GradientConsumer, Rows, Step
from .select import select_update

Rounding = Literal["stochastic", "nearest"]

_COUNTERS: StateForm = dict.fromkeys(("steps", "skipped", "seed"), ((), torch.int64))


class ClassifierUpdate(nn.Module):
    """Base of :class:`SGDUpdate` and :class:`AdamWUpdate`: what their steps have in common.

    *A step.* Every backward is one step: to accumulate gradients, join the batches. A backward through two calls of the
    classifier raises RuntimeError before anything has changed. Weight and bias have one learning rate and one weight
    decay, as in one parameter group. The classifier is float32 or bfloat16. In data parallelism each replica would step
    by its own gradient alone, and the replicas would diverge.

    *Rounding.* What is kept in bfloat16 is rounded stochastically (Gupta et al., ICML 2015). Rounding to nearest loses
    every step that is smaller than half a unit in the last place; stochastic rounding keeps them on average. The random
    bits are a function of ``seed``, step, tensor, label and column: a restart and another chunk size give the same.

    *Gradient clipping* is by label: ``max_row_norm`` bounds the norm of a label's gradient, of its row of the weight
    and of its bias together, before weight decay. A norm over all labels would need the whole gradient first.

    *Non-finite values.* Where the loss or the upstream gradient is not finite, the step changes nothing (weight, bias,
    state and ``steps``) and ``skipped`` goes up; the device decides, the host does not wait. The features' gradient is
    then not finite either. A gradient that is infinite where the loss is finite shows in the weight.

    *GradScaler.* The upstream gradient is divided by ``loss_scale`` (a number, or a tensor of one element): set
    ``update.loss_scale = scaler.get_scale()`` before each backward.

    *Learning rate.* The step takes ``lr * lr_factor``. Both are a number or a tensor of one element (which a CUDA graph
    reads at each replay) and may be set at any time. ``lr_factor``, 1 at first, is there for schedules: it is the
    present share of the learning rate. Neither is part of ``state_dict``.

    *Checkpoints.* ``state_dict`` holds the moments, ``steps``, ``skipped`` and ``seed``; a run that goes on from it
    gives the bits of one that was never interrupted. Loading converts to the state's own dtypes. A checkpoint of a
    classifier that had no update loads too, and leaves the state as it is. ``.to(dtype)`` leaves the state's dtypes.
    """

    lr: float | Tensor
    lr_factor: float | Tensor
    loss_scale: float | Tensor
    steps: Tensor
    skipped: Tensor
    seed: Tensor

    _adamw = False
    # Names of a subclass's own settings.
    _settings: tuple[str, ...] = ()

    def __init__(
        self, lr: float | Tensor, *, weight_decay: float, max_row_norm: float | None, rounding: str, seed: int
    ) -> None:
        super().__init__()
        check_choice("rounding", rounding, get_args(Rounding))
        self.lr = lr
        self.lr_factor = self.loss_scale = 1.0
        self.weight_decay = check_number("weight_decay", weight_decay)
        self.max_row_norm = None if max_row_norm is None else check_number("max_row_norm", max_row_norm, positive=True)
        self.rounding = rounding
        self._first_seed = as_integer("seed", seed, at_least=0)
        self._form: StateForm | None = None
        self._calls: weakref.WeakSet[Any] = weakref.WeakSet()
        self.first_label = 0
        for name in _COUNTERS:
            value = self._first_seed if name == "seed" else 0
            self.register_buffer(name, torch.tensor(value, dtype=torch.int64, device="cpu"))

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("lr", "lr_factor", "loss_scale"):
            value = check_number_or_tensor(name, value, positive=name == "loss_scale")
        super().__setattr__(name, value)

    def prepare(self, weight: Tensor, bias: Tensor | None, first_label: int = 0) -> None:
        """Makes the state for a classifier's weight [C, D] and bias [C]; their owner calls it once.

        ``first_label`` is the label of the weight's first row, in a shard. Raises RuntimeError where it was called
        before, and TypeError or ValueError for a classifier that cannot be changed in place.
        """
        if self._form is not None:
            raise RuntimeError(
                "update: prepared for a classifier already; each classifier needs an optimizer of its own"
            )
        check_classifier(weight, bias)
        self.first_label, self._form = first_label, self._form_for(weight, bias)
        for name, (shape, dtype) in self._form.items():
            value = self._buffers.get(name)
            zeros = torch.zeros(shape, dtype=dtype, device=weight.device)
            self.register_buffer(name, zeros if value is None else value.to(weight.device))

    def check(self, weight: Tensor, bias: Tensor | None) -> None:
        """Raises unless this is a classifier like the one prepared for, and the state is as ``prepare`` made it.

        That is a RuntimeError before ``prepare``, else a TypeError or ValueError, naming the tensor.
        """
        if self._form is None:
            raise RuntimeError("update: expected prepare(weight, bias) before the first step")
        check_classifier(weight, bias)
        for name, (shape, _) in self._form_for(weight, bias).items():
            if name not in self._form or self._form[name][0] != shape:
                got = list(self._form[name][0]) if name in self._form else "none"
                raise ValueError(
                    f"weight: expected the classifier that update was prepared for; weight {list(weight.shape)} "
                    f"{'without' if bias is None else 'with'} bias needs {name} {list(shape)}, got {got}"
                )
        if torch.compiler.is_compiling():
            # Memory cannot be looked at while a call is traced; the step in the backward looks at it.
            return
        check_state(self._buffers, self._form, weight.device)
        if weight.device.type != "meta":
            check_apart({"weight": weight, "bias": bias} | {name: self._buffers[name] for name in self._form})

    def expect_backward(self, node: Any) -> None:
        """Notes a differentiable call of the classifier by its autograd node, so that ``step`` sees its backward."""
        self._calls.add(node)

    def step(self, weight: Tensor, bias: Tensor | None, factor: Tensor, finite: Tensor) -> GradientConsumer:
        """Begins one step; the result takes each chunk's rows and the gradients of their weight and bias.

        ``factor`` is what the gradients are yet to be multiplied by; ``finite``, bool, makes the step change nothing
        where it is False. Neither has dimensions. Raises as :meth:`check`, and RuntimeError in a backward through
        several calls of the classifier.
        """
        step = self.describe_step(weight, bias, factor, finite)
        return select_update(step)(step)

    def describe_step(self, weight: Tensor, bias: Tensor | None, factor: Tensor, finite: Tensor) -> Step:
        """As :meth:`step`, but for an implementation that the caller chooses."""
        self.check(weight, bias)
        self._check_backward()
        self.steps.add_(finite)
        self.skipped.add_(~finite)
        scale = factor.double() / self._on_device(self.loss_scale)
        return Step(
            adamw=self._adamw,
            constants=dict.fromkeys(CONSTANTS, 0.0) | self._constants(),
            max_row_norm=self.max_row_norm,
            stochastic=self.rounding == "stochastic",
            numbers=torch.stack([scale, *self._numbers(self._on_device(self.lr) * self._on_device(self.lr_factor))]),
            finite=finite,
            seed=self.seed,
            number=self.steps,
            weight=self._rows(weight, ""),
            bias=None if bias is None else self._rows(bias[:, None], "bias_"),
            first_label=self.first_label,
        )

    def extra_repr(self) -> str:
        names = ("lr", "weight_decay", "max_row_norm", "rounding", *self._settings)
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names)

    def _moments(self) -> Mapping[str, tuple[torch.dtype, bool]]:
        """Name and dtype of the weight's first and second moment, and whether it is one number for a whole row."""
        raise NotImplementedError

    def _numbers(self, lr: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``step_size``, ``weight_scale`` and ``root_correction`` of :class:`Step`: float64, no dimensions."""
        raise NotImplementedError

    def _constants(self) -> dict[str, float]:
        """Those of ``CONSTANTS`` that the optimizer has."""
        raise NotImplementedError

    def _form_for(self, weight: Tensor, bias: Tensor | None) -> StateForm:
        form = dict(_COUNTERS)
        for name, (dtype, by_row) in self._moments().items():
            form[name] = tuple(weight.shape[: 1 if by_row else 2]), dtype
            if bias is not None:
                form[f"bias_{name}"] = (len(weight),), torch.float32
        return form

    def _rows(self, value: Tensor, prefix: str) -> Rows:
        moments = (getattr(self, prefix + name) for name in self._moments())
        return Rows(value, *(one[:, None] if one.dim() == 1 else one for one in moments))

    def _on_device(self, value: float | Tensor) -> Tensor:
        device = self.steps.device
        if isinstance(value, Tensor):
            return value.detach().to(device, torch.float64).reshape(())
        return torch.full((), value, dtype=torch.float64, device=device)

    def _check_backward(self) -> None:
        """Raises RuntimeError where the backward that runs now goes through several calls of the classifier."""
        if torch._C._current_graph_task_id() == -1:
            return
        calls = sum(torch._C._will_engine_execute_node(node) for node in self._calls)
        if calls > 1:
            raise RuntimeError(
                f"update: expected one call of the classifier for each backward, which is one step, got {calls}; "
                "nothing was changed; join the batches into one call, or run a backward after each call"
            )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ClassifierUpdate:
        def keep_dtype(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            if moved.dtype != tensor.dtype:
                moved = tensor.to(moved.device)
            # A meta tensor that is given memory: the state begins at zero.
            return moved.zero_() if tensor.is_meta and not moved.is_meta else moved

        was_meta = self.seed.is_meta
        super()._apply(keep_dtype, recurse)
        if was_meta and not self.seed.is_meta:
            self.seed.fill_(self._first_seed)
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        if prefix and not any(key.startswith(prefix) for key in state_dict):
            # A checkpoint of a classifier without update.
            return
        super()._load_from_state_dict(state_dict, prefix, *arguments)
        for name, (_, dtype) in (self._form or {}).items():
            # ``assign=True`` takes the tensors of the checkpoint as they are.
            value = self._buffers[name]
            if isinstance(value, Tensor):
                self._buffers[name] = value.resolve_neg().to(dtype).contiguous()

    def __getstate__(self) -> dict[str, Any]:
        # Calls that wait for their backward belong to this object alone, and can be neither copied nor pickled.
        return {name: value for name, value in self.__dict__.items() if name != "_calls"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._calls = weakref.WeakSet()


def ignore_update_state(module: nn.Module, state_dict: dict[str, Any], prefix: str, *unused: Any) -> None:
    """A pre-hook of ``load_state_dict``: where ``module.update`` is None, what another's update has saved is left out.

    So a classifier that was trained with an update loads strictly into one without.
    """
    if module.update is None:
        for key in [key for key in state_dict if key.startswith(f"{prefix}update.")]:
            del state_dict[key]
