"""A classifier's in-place step in PyTorch operators, some rows at a time, so that they stay in cache."""

from __future__ import annotations

import torch
from torch import Tensor

from .rule import BIAS, FIRST, SECOND, WEIGHT, ChunkUpdate, Rows, Step
from .stochastic_rounding import column_keys, round_stochastically, row_keys, step_key

# Elements for each thread: 1 MB of float32. Smaller parts fit a nearer cache, but where the processors are shared each
# operator waits for its slowest thread.
_ELEMENTS_A_THREAD = 1 << 18


def begin(step: Step) -> ChunkUpdate:
    """What takes one chunk after another; looks at the step's numbers on the host."""
    return _ChunkUpdate(step) if bool(step.finite) else _ignore


def _ignore(gradient: Tensor, bias_gradient: Tensor, weight: Rows, bias: Rows | None, first_row: int) -> None:
    pass


class _ChunkUpdate:
    def __init__(self, step: Step) -> None:
        self._step, self._rule = step, step.rule
        self._factor, self._rate, self._keep, self._root = step.numbers.tolist()
        self._buffers: dict[str, Tensor] = {}
        self._keys: dict[int, Tensor] = {}

    def __call__(
        self, gradient: Tensor, bias_gradient: Tensor, weight: Rows, bias: Rows | None, first_row: int
    ) -> None:
        size = max(1, _ELEMENTS_A_THREAD * torch.get_num_threads() // gradient.shape[1])
        for start in range(0, len(gradient), size):
            rows = slice(start, start + size)
            self._rows(
                gradient[rows],
                bias_gradient[rows],
                _cut(weight, rows),
                None if bias is None else _cut(bias, rows),
                first_row + start,
            )

    def _rows(self, gradient: Tensor, bias_gradient: Tensor, weight: Rows, bias: Rows | None, first_row: int) -> None:
        gradient.mul_(self._factor)
        if bias is not None:
            bias_gradient = bias_gradient * self._factor
        limit = self._rule.max_row_norm
        if limit is not None:
            norm = torch.linalg.vector_norm(gradient, dim=1, keepdim=True)
            if bias is not None:
                norm = torch.hypot(norm, bias_gradient)
            shrink = limit / norm.clamp_(min=limit)
            gradient.mul_(shrink)
            bias_gradient = bias_gradient * shrink
        self._update(gradient, weight, WEIGHT, first_row)
        if bias is not None:
            self._update(bias_gradient, bias, BIAS, first_row)

    def _update(self, gradient: Tensor, rows: Rows, which: int, first_row: int) -> None:
        value = self._load("value", rows.value)
        first = None if rows.first is None else self._load("first", rows.first)
        second = None if rows.second is None else self._load("second", rows.second)
        if self._rule.kind == "sgd":
            if self._rule.weight_decay:
                gradient.add_(value, alpha=self._rule.weight_decay)
            direction = gradient if first is None else first.mul_(self._rule.momentum).add_(gradient)
            value.add_(direction, alpha=-self._rate)
        else:
            assert first is not None and second is not None
            beta1, beta2 = self._rule.betas
            first.lerp_(gradient, 1 - beta1)
            if second.shape == gradient.shape:
                second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
                # Over the gradient, which is needed no more.
                denominator = torch.sqrt(second, out=gradient)
            else:
                norm = torch.linalg.vector_norm(gradient, dim=1, keepdim=True)
                second.mul_(beta2).add_(norm.square_().div_(gradient.shape[1]), alpha=1 - beta2)
                denominator = second.sqrt()
            denominator.div_(self._root).add_(self._rule.eps)
            value.mul_(self._keep).addcdiv_(first, denominator, value=-self._rate)
        self._store(rows.value, value, which, first_row)
        self._store(rows.first, first, FIRST, first_row)
        self._store(rows.second, second, SECOND, first_row)

    def _load(self, name: str, tensor: Tensor) -> Tensor:
        """The tensor as float32, itself where it is."""
        return tensor if tensor.dtype == torch.float32 else self._buffer(name, tensor, torch.float32).copy_(tensor)

    def _store(self, out: Tensor | None, value: Tensor | None, which: int, first_row: int) -> None:
        if out is None or value is None or out is value:
            return
        if not self._rule.stochastic:
            out.copy_(value)
            return
        if which not in self._keys:
            self._keys[which] = step_key(self._step.seed, self._step.number, which)
        rows = row_keys(self._keys[which], first_row, len(out))
        columns = column_keys(out.shape[1], out.device)
        bits, spare = (self._buffer(name, out, torch.int32) for name in ("bits", "spare"))
        round_stochastically(out, value, rows, columns, bits, spare)

    def _buffer(self, name: str, like: Tensor, dtype: torch.dtype) -> Tensor:
        """Memory of the shape of ``like``, the same at each call."""
        if name not in self._buffers or self._buffers[name].numel() < like.numel():
            self._buffers[name] = torch.empty(like.numel(), dtype=dtype, device=like.device)
        return self._buffers[name][: like.numel()].view(like.shape)


def _cut(rows: Rows, some: slice) -> Rows:
    return Rows(*(None if tensor is None else tensor[some] for tensor in rows))  # type: ignore[arg-type]
