"""A classifier's in-place step in PyTorch operators, some rows at a time, so that they stay in cache."""

from __future__ import annotations

import torch
from torch import Tensor

from .rule import BIAS, FIRST_MOMENT, SECOND_MOMENT, WEIGHT, GradientConsumer, Rows, Step, ignore_gradients
from .stochastic_rounding import column_keys, round_stochastically, row_keys, step_key

# Elements for each thread: 1 MB of float32. Smaller parts would fit a nearer cache, but on a shared machine each
# operator waits for its slowest thread, so that many operators cost more than the cache gains.
_ELEMENTS_A_THREAD = 1 << 18


def begin(step: Step) -> GradientConsumer:
    """Begins a step; reads its numbers on the host."""
    return _GradientConsumer(step) if bool(step.finite) else ignore_gradients


class _GradientConsumer:
    def __init__(self, step: Step) -> None:
        self._step = step
        self._gradient_scale, self._step_size, self._weight_scale, self._root_correction = step.numbers.tolist()
        self._buffers: dict[str, Tensor] = {}
        self._keys: dict[int, Tensor] = {}

    def __call__(self, rows: slice, weight_gradient: Tensor, bias_gradient: Tensor) -> None:
        step = self._step
        size = max(1, _ELEMENTS_A_THREAD * torch.get_num_threads() // weight_gradient.shape[1])
        for start in range(rows.start, rows.stop, size):
            part = slice(start, min(start + size, rows.stop))
            own = slice(part.start - rows.start, part.stop - rows.start)
            bias = None if step.bias is None else step.bias.cut(part)
            first_label = step.first_label + start
            self._update(weight_gradient[own], bias_gradient[own, None], step.weight.cut(part), bias, first_label)

    def _update(
        self, weight_gradient: Tensor, bias_gradient: Tensor, weight: Rows, bias: Rows | None, first_label: int
    ) -> None:
        weight_gradient.mul_(self._gradient_scale)
        if bias is not None:
            bias_gradient = bias_gradient * self._gradient_scale
        limit = self._step.max_row_norm
        if limit is not None:
            norm = torch.linalg.vector_norm(weight_gradient, dim=1, keepdim=True)
            if bias is not None:
                norm = torch.hypot(norm, bias_gradient)
            shrink = limit / norm.clamp_(min=limit)
            weight_gradient.mul_(shrink)
            bias_gradient = bias_gradient * shrink
        self._update_tensor(weight_gradient, weight, WEIGHT, first_label)
        if bias is not None:
            self._update_tensor(bias_gradient, bias, BIAS, first_label)

    def _update_tensor(self, gradient: Tensor, rows: Rows, which: int, first_label: int) -> None:
        value = self._load("value", rows.value)
        first = None if rows.first_moment is None else self._load("first_moment", rows.first_moment)
        second = None if rows.second_moment is None else self._load("second_moment", rows.second_moment)
        constants = self._step.constants
        if not self._step.adamw:
            if constants["l2_penalty"]:
                gradient.add_(value, alpha=constants["l2_penalty"])
            direction = gradient if first is None else first.mul_(constants["momentum"]).add_(gradient)
            value.add_(direction, alpha=-self._step_size)
        else:
            assert first is not None and second is not None
            beta2, one_minus_beta2 = constants["beta2"], constants["one_minus_beta2"]
            first.lerp_(gradient, constants["one_minus_beta1"])
            if second.shape == gradient.shape:
                second.mul_(beta2).addcmul_(gradient, gradient, value=one_minus_beta2)
                # Reuse the gradient's memory: the gradient is not needed any more.
                denominator = torch.sqrt(second, out=gradient)
            else:
                norm = torch.linalg.vector_norm(gradient, dim=1, keepdim=True)
                second.mul_(beta2).add_(norm.square_().div_(gradient.shape[1]), alpha=one_minus_beta2)
                denominator = second.sqrt()
            denominator.div_(self._root_correction).add_(constants["eps"])
            value.mul_(self._weight_scale).addcdiv_(first, denominator, value=-self._step_size)
        self._store(rows.value, value, which, first_label)
        self._store(rows.first_moment, first, FIRST_MOMENT, first_label)
        self._store(rows.second_moment, second, SECOND_MOMENT, first_label)

    def _load(self, name: str, tensor: Tensor) -> Tensor:
        """The tensor as float32: itself if it is float32, else a copy in a buffer."""
        return tensor if tensor.dtype == torch.float32 else self._buffer(name, tensor, torch.float32).copy_(tensor)

    def _store(self, out: Tensor | None, value: Tensor | None, which: int, first_label: int) -> None:
        if out is None or value is None or out is value:
            return
        if not self._step.stochastic:
            out.copy_(value)
            return
        if which not in self._keys:
            self._keys[which] = step_key(self._step.seed, self._step.number, which)
        rows = row_keys(self._keys[which], first_label, len(out))
        columns = column_keys(out.shape[1], out.device)
        bits, spare = (self._buffer(name, out, torch.int32) for name in ("bits", "spare"))
        round_stochastically(out, value, rows, columns, bits, spare)

    def _buffer(self, name: str, like: Tensor, dtype: torch.dtype) -> Tensor:
        """Memory of the shape of ``like``; one name has the same memory at each call."""
        if name not in self._buffers or self._buffers[name].numel() < like.numel():
            self._buffers[name] = torch.empty(like.numel(), dtype=dtype, device=like.device)
        return self._buffers[name][: like.numel()].view(like.shape)
