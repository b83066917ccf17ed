"""The labels of each rank, and the DTensors that the ranks' rows make up, in memory and in checkpoints."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

from ..optim.base import ClassifierUpdate

# So many labels are initialised from one seed, whichever ranks hold them.
_BLOCK = 1024


def shard_sizes(num_labels: int, num_ranks: int) -> list[int]:
    """The number of labels of each rank, as by ``Shard(0)`` and ``torch.chunk``: the last ranks may have none."""
    size = -(-num_labels // num_ranks)
    return [max(0, min(size, num_labels - rank * size)) for rank in range(num_ranks)]


def sharded(local: Tensor, mesh: DeviceMesh, num_labels: int) -> DTensor:
    """The DTensor [num_labels, ...] whose rows on this rank are ``local``, [rows, ...]."""
    shape = torch.Size([num_labels, *local.shape[1:]])
    stride = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(local, mesh, [Shard(0)], shape=shape, stride=stride)


def local(part: Tensor) -> Tensor:
    """This rank's rows of a DTensor; differentiable."""
    assert isinstance(part, DTensor)
    return part.to_local()


def fill_uniform(parts: Sequence[Tensor], first_label: int, seed: int) -> None:
    """Fills a shard's weight [rows, D] and bias [rows] uniformly within 1 / sqrt(D).

    The values of a label depend on the seed and on the label, not on the number of shards.
    """
    rows, num_features = parts[0].shape
    bound = 1 / math.sqrt(num_features)
    generator = torch.Generator(parts[0].device)
    last = first_label + rows
    for start in range(first_label // _BLOCK * _BLOCK, last, _BLOCK):
        generator.manual_seed(seed + start // _BLOCK)
        low, high = max(start, first_label), min(start + _BLOCK, last)
        for part in parts:
            block = part.new_empty(_BLOCK, *part.shape[1:]).uniform_(-bound, bound, generator=generator)
            part[low - first_label : high - first_label] = block[low - start : high - start]


def checked_mesh(name: str, mesh: DeviceMesh | dist.ProcessGroup) -> DeviceMesh:
    """A one-dimensional mesh of which this rank is part, also from a process group; raises TypeError or ValueError."""
    if isinstance(mesh, dist.ProcessGroup):
        backend = dist.get_backend(mesh)
        return DeviceMesh.from_group(mesh, "cuda" if "nccl" in backend else "cpu")
    if not isinstance(mesh, DeviceMesh):
        raise TypeError(f"{name}: expected a DeviceMesh or a process group, got {type(mesh).__name__}")
    if mesh.ndim != 1:
        names = f" {mesh.mesh_dim_names}" if mesh.mesh_dim_names else ""
        raise ValueError(
            f"{name}: expected one dimension, got {list(mesh.shape)}{names}; mesh['label'] is one of a mesh of several"
        )
    if mesh.get_coordinate() is None:
        raise ValueError(f"{name}: expected a mesh that this rank, {dist.get_rank()}, is part of, got {mesh}")
    return mesh


def register_state_hooks(module: nn.Module) -> None:
    """In a checkpoint what ``module.update`` keeps for each label is DTensors, in memory this rank's rows."""
    module.register_state_dict_post_hook(_shard_update_state)
    module.register_load_state_dict_pre_hook(_localize_update_state)


def _shard_update_state(module: Any, state: dict[str, Any], prefix: str, *unused: Any) -> None:
    for name in _label_state(module.update, prefix):
        state[name] = sharded(state[name], module.mesh, sum(module._sizes))


def _localize_update_state(module: Any, state: dict[str, Any], prefix: str, *unused: Any) -> None:
    for name in _label_state(module.update, prefix):
        if isinstance(state.get(name), DTensor):
            state[name] = state[name].to_local()


def _label_state(update: ClassifierUpdate | None, prefix: str) -> list[str]:
    """Names of the buffers whose first dimension is the labels; counters and seed have no dimensions."""
    buffers = () if update is None else update.named_buffers()
    return [f"{prefix}update.{name}" for name, buffer in buffers if buffer.dim()]
