"""In-place updates of a classifier's shard: steps that all ranks agree on, and the state as DTensors."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from ..optim.base import ClassifierUpdate
from ..optim.rule import GradientConsumer
from .collectives import averaged
from .shards import sharded


class ShardUpdate:
    """One call's steps: skipped by all ranks or by none, on gradients averaged over the data-parallel group.

    loss: of all shards; set before the backward.
    """

    loss: Tensor

    def __init__(self, update: ClassifierUpdate, data_group: dist.ProcessGroup | None) -> None:
        self._update, self._data_group = update, data_group

    def expect_backward(self, node: Any) -> None:
        """As :meth:`ClassifierUpdate.expect_backward`."""
        self._update.expect_backward(node)

    def step(self, weight: Tensor, bias: Tensor | None, factor: Tensor, finite: Tensor) -> GradientConsumer:
        """As :meth:`ClassifierUpdate.step`."""
        finite = finite & torch.isfinite(self.loss)
        group = self._data_group
        if group is None:
            return self._update.step(weight, bias, factor, finite)
        everywhere = finite.to(torch.uint8)
        dist.all_reduce(everywhere, dist.ReduceOp.MIN, group=group)
        take_gradients = self._update.step(weight, bias, torch.ones_like(factor), everywhere.bool())

        def take_averaged(rows: slice, d_weight: Tensor, d_bias: Tensor) -> None:
            # The ranks' factors differ where their batches do.
            take_gradients(rows, averaged(d_weight * factor, group), averaged(d_bias * factor, group))

        return take_averaged


def shard_state(
    update: ClassifierUpdate, state: dict[str, Any], prefix: str, mesh: DeviceMesh, num_labels: int
) -> None:
    """Makes DTensors of what ``update`` keeps for each label, in ``state``, under names that begin with ``prefix``."""
    for name in _label_state(update):
        state[prefix + name] = sharded(state[prefix + name], mesh, num_labels)


def localize_state(update: ClassifierUpdate, state: dict[str, Any], prefix: str) -> None:
    """The inverse of :func:`shard_state`."""
    for name in _label_state(update):
        value = state.get(prefix + name)
        if isinstance(value, DTensor):
            state[prefix + name] = value.to_local()


def _label_state(update: ClassifierUpdate) -> list[str]:
    """Names of the buffers whose first dimension is the labels; counters and seed have no dimensions."""
    return [name for name, buffer in update.named_buffers() if buffer.dim()]
