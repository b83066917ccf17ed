"""The state of an in-place update of a classifier's shard: DTensors in a checkpoint, this rank's rows in memory."""

from __future__ import annotations

from typing import Any

from torch.distributed.tensor import DTensor

from ..optim.base import ClassifierUpdate
from .shards import sharded


def shard_update_state(module: Any, state: dict[str, Any], prefix: str, *unused: Any) -> None:
    """A post-hook of ``state_dict``: makes DTensors of what ``module.update`` keeps for each label."""
    for name in _label_state(module.update, prefix):
        state[name] = sharded(state[name], module.mesh, sum(module._sizes))


def localize_update_state(module: Any, state: dict[str, Any], prefix: str, *unused: Any) -> None:
    """A pre-hook of ``load_state_dict``: the inverse of :func:`shard_update_state`."""
    for name in _label_state(module.update, prefix):
        if isinstance(state.get(name), DTensor):
            state[name] = state[name].to_local()


def _label_state(update: ClassifierUpdate | None, prefix: str) -> list[str]:
    """Names of the buffers whose first dimension is the labels; counters and seed have no dimensions."""
    buffers = () if update is None else update.named_buffers()
    return [f"{prefix}update.{name}" for name, buffer in buffers if buffer.dim()]
