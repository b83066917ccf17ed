"""Messages between the ranks that hold the shards of one classifier."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..backends.problem import compute_dtype
from ..targets import SparseTargets

Group = dist.ProcessGroup


class _ReplicatedFeatures(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, group: Group) -> Tensor:
        ctx.group, ctx.dtype = group, features.dtype
        copy = features.to(compute_dtype(features.dtype))
        return copy.view_as(copy)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        return summed(upstream, ctx.group).to(ctx.dtype), None


class _LossOfShards(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, loss: Tensor, group: Group) -> Tensor:
        return summed(loss, group)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        return upstream, None


class _AveragedGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return tensor.view_as(tensor)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        return averaged(upstream, ctx.group), None


class _GatheredLogits(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, widths: list[int], group: Group) -> Tensor:
        rank = dist.get_rank(group)
        ctx.start, ctx.stop = sum(widths[:rank]), sum(widths[: rank + 1])
        return torch.cat(gather_columns(logits, widths, group), 1)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        return upstream[:, ctx.start : ctx.stop], None, None


def replicated_features(features: Tensor, group: Group) -> Tensor:
    """The features, the same on all ranks, in the accumulation dtype; their gradient is summed over the ranks.

    The sum is in float32 (float64) also for features in half precision: a shard's part is smaller than the whole, and
    would round, in float16 flush to zero, before it is added.
    """
    copy: Tensor = _ReplicatedFeatures.apply(features, group)
    return copy


def loss_of_shards(loss: Tensor, group: Group) -> Tensor:
    """Sum of the ranks' losses, which all ranks then differentiate alike."""
    total: Tensor = _LossOfShards.apply(loss, group)
    return total


def averaged_gradient(tensor: Tensor, group: Group | None) -> Tensor:
    """The tensor, whose gradient becomes the mean of the ranks'; None leaves it as it is."""
    if group is None:
        return tensor
    same: Tensor = _AveragedGradient.apply(tensor, group)
    return same


def gathered_logits(logits: Tensor, widths: list[int], group: Group) -> Tensor:
    """[N, C] of each rank's [N, width]; all ranks differentiate it alike."""
    whole: Tensor = _GatheredLogits.apply(logits, widths, group)
    return whole


def summed(tensor: Tensor, group: Group) -> Tensor:
    total = tensor.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total, group=group)
    return total


def averaged(tensor: Tensor, group: Group) -> Tensor:
    return summed(tensor, group).div_(group.size())


def gather(tensor: Tensor, group: Group) -> list[Tensor]:
    """Each rank's tensor, all of one shape."""
    parts = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(group.size())]
    dist.all_gather(parts, tensor.contiguous(), group=group)
    return parts


def gather_columns(tensor: Tensor, widths: Sequence[int], group: Group) -> list[Tensor]:
    """Each rank's [N, width]."""
    padded = tensor.new_zeros(len(tensor), max(widths))
    padded[:, : tensor.shape[1]] = tensor
    return [part[:, :width] for part, width in zip(gather(padded, group), widths, strict=True)]


def common_seed(groups: Sequence[Group], device: torch.device) -> int:
    """A seed from the first rank's default generator, the same on all ranks."""
    seed = torch.randint(1 << 48, (1,)).to(device)
    for group in groups:
        dist.broadcast(seed, group=group, group_src=0)
    return int(seed)


def check_agreement(values: dict[str, bytes], group: Group, device: torch.device) -> None:
    """Raises ValueError on all ranks, naming the first of ``values`` that is not the same on all."""
    digests = b"".join(hashlib.sha256(value).digest() for value in values.values())
    own = torch.frombuffer(bytearray(digests), dtype=torch.uint8).view(len(values), -1).to(device)
    everyone = torch.stack(gather(own, group)).cpu()
    for number, name in enumerate(values):
        other = (everyone[:, number] != everyone[0, number]).any(1).nonzero()[:, 0].tolist()
        if other:
            raise ValueError(
                f"{name}: expected the same on all {group.size()} ranks of the mesh, got others than rank 0's on ranks "
                f"{other}"
            )


def check_batch(features: Tensor, targets: Tensor | SparseTargets, group: Group) -> None:
    """Raises ValueError on all ranks without one batch: the same targets, features [N, D] up to rounding."""
    parts = (targets.crow, targets.col) if isinstance(targets, SparseTargets) else (targets,)
    shape = str([features.shape, features.dtype]).encode()
    check_agreement({"shape of the features": shape, "targets": tensor_bytes(*parts)}, group, features.device)
    own = features.detach().float()
    first = own.clone(memory_format=torch.contiguous_format)
    dist.broadcast(first, group=group, group_src=0)
    # NaN and infinities are for the loss to show.
    far = (own - first).abs() > 0.05 * first.abs().max()
    if int(summed(far.sum(), group)):
        raise ValueError(
            "features: expected the same on all ranks of the mesh, got others than rank 0's; the ranks share a batch, "
            "the encoder's weights and the seed of its dropout"
        )


def tensor_bytes(*tensors: Tensor) -> bytes:
    return b"".join(tensor.detach().contiguous().view(torch.uint8).cpu().numpy().tobytes() for tensor in tensors)
