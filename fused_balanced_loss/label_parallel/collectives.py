"""Collective operations of the ranks that hold the shards of one classifier: sums, gathers and comparisons."""

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
    """The features [N, D], the same on all ranks, in the compute dtype; their gradient is summed over the ranks.

    Features in half precision are summed in float32, too: the part of one shard is smaller than the sum, and half
    precision would round it, or in float16 flush it to zero, before it is added.
    """
    copy: Tensor = _ReplicatedFeatures.apply(features, group)
    return copy


def loss_of_shards(loss: Tensor, group: Group) -> Tensor:
    """The sum of the ranks' losses; each rank's loss gets the upstream gradient of the sum."""
    total: Tensor = _LossOfShards.apply(loss, group)
    return total


def averaged_gradient(tensor: Tensor, group: Group | None) -> Tensor:
    """The tensor, whose gradient becomes the mean over the ranks of ``group``; without a group the tensor itself."""
    if group is None:
        return tensor
    same: Tensor = _AveragedGradient.apply(tensor, group)
    return same


def gathered_logits(logits: Tensor, widths: list[int], group: Group) -> Tensor:
    """Logits [N, C] from each rank's [N, width]; a rank's part gets its columns of the upstream gradient."""
    whole: Tensor = _GatheredLogits.apply(logits, widths, group)
    return whole


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


def gather_columns(tensor: Tensor, widths: Sequence[int], group: Group) -> list[Tensor]:
    """Each rank's tensor [N, width], by rank; ``widths`` holds the ranks' widths."""
    padded = tensor.new_zeros(len(tensor), max(widths))
    padded[:, : tensor.shape[1]] = tensor
    return [part[:, :width] for part, width in zip(gather(padded, group), widths, strict=True)]


def common_seed(groups: Sequence[Group], device: torch.device) -> int:
    """A seed that the first rank draws from its default generator, the same on all ranks."""
    seed = torch.randint(1 << 48, (1,)).to(device)
    for group in groups:
        dist.broadcast(seed, group=group, group_src=0)
    return int(seed)


def check_agreement(values: dict[str, bytes], group: Group, device: torch.device) -> None:
    """Raises ValueError on all ranks, naming the first of ``values`` that is not the same on all.

    Args:
        values: by name, what the ranks compare. Digests of it are sent, in one exchange.
        group: the ranks.
        device: where the group's tensors are.
    """
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
    parts: dict[str, tuple[Tensor, ...]] = {
        "targets": (targets.crow, targets.col) if isinstance(targets, SparseTargets) else (targets,),
        "sample_weight": () if sample_weight is None else (sample_weight,),
        "label_mask": () if label_mask is None else (label_mask,),
    }
    values = {"shape of the features": repr((features.shape, features.dtype)).encode()}
    values |= {name: _kinds(*tensors) + tensor_bytes(*tensors) for name, tensors in parts.items()}
    check_agreement(values, group, features.device)
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


def tensor_bytes(*tensors: Tensor) -> bytes:
    """The tensors' values, one after another."""
    return b"".join(
        tensor.detach().resolve_neg().contiguous().view(torch.uint8).cpu().numpy().tobytes() for tensor in tensors
    )


def _kinds(*tensors: Tensor) -> bytes:
    """Dtypes and shapes: the same bytes can be the values of several kinds of tensors."""
    return repr([(tensor.dtype, tensor.shape) for tensor in tensors]).encode()
