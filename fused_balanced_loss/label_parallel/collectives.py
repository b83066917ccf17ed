"""Collective operations of the ranks that hold the shards of one classifier: sums, gathers and comparisons."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..targets import SparseTargets

Group = dist.ProcessGroup
Function = Callable[[Tensor], Tensor]


class _Exchange(torch.autograd.Function):
    """``forward`` of a tensor, whose upstream gradient goes through ``backward``."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, forward: Function | None, backward: Function | None) -> Tensor:
        ctx.back = backward
        result = tensor if forward is None else forward(tensor)
        return result.view_as(result)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        return upstream if ctx.back is None else ctx.back(upstream), None, None


def exchange(tensor: Tensor, forward: Function | None = None, backward: Function | None = None) -> Tensor:
    """``forward`` of the tensor, whose gradient is ``backward`` of the upstream gradient; None leaves either alone."""
    result: Tensor = _Exchange.apply(tensor, forward, backward)
    return result


def summed(tensor: Tensor, group: Group) -> Tensor:
    """A new tensor, the sum over the ranks; ``tensor`` stays what it is."""
    total = tensor.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total, group=group)
    return total


def averaged(tensor: Tensor, group: Group) -> Tensor:
    """A new tensor, the mean over the ranks."""
    return summed(tensor, group).div_(group.size())


def gather(tensor: Tensor, group: Group) -> list[Tensor]:
    """Each rank's tensor, by rank; all have one shape."""
    parts = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(group.size())]
    dist.all_gather(parts, tensor.contiguous(), group=group)
    return parts


def gather_columns(tensor: Tensor, widths: Sequence[int], group: Group) -> Tensor:
    """[N, sum of widths], the first columns of each rank's tensor, by rank: as many as ``widths`` has for it."""
    own = widths[dist.get_rank(group)]
    padded = tensor.new_zeros(len(tensor), max(widths))
    padded[:, :own] = tensor[:, :own]
    return torch.cat([part[:, :width] for part, width in zip(gather(padded, group), widths, strict=True)], 1)


def common_seed(groups: Sequence[Group]) -> int:
    """A seed that the first rank draws from its default generator, the same on all ranks."""
    seeds = [int(torch.randint(1 << 48, ()))]
    for group in groups:
        dist.broadcast_object_list(seeds, group=group, group_src=0)
    return seeds[0]


def check_agreement(values: dict[str, bytes], group: Group) -> None:
    """Raises ValueError on all ranks, naming the first of ``values`` that is not the same on all; digests are sent."""
    everyone: list[Any] = [None] * group.size()
    dist.all_gather_object(everyone, {name: hashlib.sha256(value).digest() for name, value in values.items()}, group)
    for name in values:
        other = [rank for rank, digests in enumerate(everyone) if digests[name] != everyone[0][name]]
        if other:
            raise ValueError(
                f"{name}: expected the same on all {group.size()} ranks of the mesh, got others than rank 0's on ranks "
                f"{other}"
            )


def check_batch(
    features: Tensor,
    targets: Tensor | SparseTargets,
    sample_weight: Tensor | None,
    label_mask: Tensor | None,
    group: Group,
) -> None:
    """Raises ValueError on all ranks unless they share a batch.

    Features [N, D] may differ by rounding. Targets, sample weights [N] and label mask [N, C], where there are any,
    have to be the same in dtype, shape and every value.
    """
    ids = (targets.crow, targets.col) if isinstance(targets, SparseTargets) else (targets,)
    values = {
        "shape of the features": repr((features.shape, features.dtype)).encode(),
        "targets": tensor_bytes(*ids),
        "sample_weight": tensor_bytes(sample_weight),
        "label_mask": tensor_bytes(label_mask),
    }
    check_agreement(values, group)
    own = features.detach().float()
    first = own.clone(memory_format=torch.contiguous_format)
    dist.broadcast(first, group=group, group_src=0)
    # NaN and infinities do not count as far: the loss shows them.
    far = (own - first).abs() > 0.05 * first.abs().max()
    if int(summed(far.sum(), group)):
        raise ValueError(
            "features: expected the same on all ranks of the mesh, got others than rank 0's; the ranks share a batch, "
            "the encoder's weights and the seed of its dropout"
        )


def tensor_bytes(*tensors: Tensor | None) -> bytes:
    """The tensors' dtypes, shapes and values: the same values can be those of several kinds of tensors."""
    parts = [part.detach().resolve_neg().contiguous().cpu() for part in tensors if part is not None]
    kinds = repr([(part.dtype, part.shape) for part in parts]).encode()
    return kinds + b"".join(part.view(torch.uint8).numpy().tobytes() for part in parts)
