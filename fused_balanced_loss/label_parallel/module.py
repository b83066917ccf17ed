"""The classifier sharded over ranks along the labels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Shard, distribute_tensor

from ..arguments import Reduction
from ..backends.select import Impl
from ..classifier.arguments import LinearGradientMode, check_classifier, check_linear
from ..classifier.functional import LinearSettings, run
from ..classifier.label_chunks import default_chunk_size
from ..classifier.module import LinearBalancedLoss
from ..classifier.prediction import LabelsAbove, TopLabels
from ..label_statistics import LabelStatistics
from ..label_weights import Weight
from ..optim.base import ClassifierUpdate
from ..spec import LossSpec
from ..targets import SparseTargets
from .collectives import averaged, check_agreement, common_seed, exchange, tensor_bytes
from .label_shard import LabelShard
from .shards import checked_mesh, fill_uniform, local, register_state_hooks, shard_sizes, sharded


class LabelParallelLinearLoss(LinearBalancedLoss):
    """:class:`LinearBalancedLoss` whose weight and bias are DTensors, ``Shard(0)`` over a mesh of ranks.

    The ranks of ``mesh`` share a batch: features, targets (of all C labels, as are statistics and mask), sample weights
    and, where the encoder has dropout, the seed; the first training call compares all but the seed. A step sends the
    loss, one number, and the gradient of the features, [N, D] in float32, summed over the ranks. Loss and features'
    gradient are then those of the whole classifier on every rank.

    *Data parallelism.* In a mesh (data, label), give ``mesh["label"]`` here and ``mesh["data"]`` as ``data_mesh``: the
    classifier's gradients are averaged over it, each backward, and, with ``update``, chunk by chunk. Wrap the encoder
    alone: ``DistributedDataParallel(encoder, process_group=mesh["data"].get_group())``, or ``fully_shard(encoder,
    mesh=mesh["data"])``. The loss stays that of the rank's own batch. Without ``update``, ``fully_shard`` over
    ``mesh["data"]`` may take this module instead of ``data_mesh``, and shards its state too.

    *Optimizers* take the parameters as any other; where other parameters are no DTensors of the same mesh, give these a
    parameter group of their own: PyTorch's foreach operators do not mix them.

    *Checkpoints.* ``torch.distributed.checkpoint`` saves ``state_dict()``, with the state of ``update``, and loads it
    with any number of ranks.

    *Failures.* A rank that dies ends the others with an error: under gloo when its connections close; under NCCL, or
    where a rank hangs, after the process group's timeout (``init_process_group(timeout=...)``; the groups of a mesh of
    two dimensions have the backend's default, 10 minutes for NCCL and 30 for gloo, unless ``init_device_mesh`` is given
    ``backend_override`` options with another).

    Args:
        spec, statistics, num_features, num_labels, bias, reduction, chunk_size, impl, gradient, update, dtype: as for
            :class:`LinearBalancedLoss`; the same on all ranks. Initial values do not depend on the number of ranks:
            they are a function of the first rank's default generator.
        class_weight, pos_weight: as for :class:`LinearBalancedLoss`, of all C labels; the same on all ranks.
        mesh: a one-dimensional DeviceMesh, or a process group.
        data_mesh: a one-dimensional DeviceMesh, or a process group, of ranks that hold the same labels and have
            batches of their own.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came; also where the ranks disagree.
    """

    def __init__(
        self,
        spec: LossSpec,
        statistics: LabelStatistics | None,
        num_features: int,
        mesh: DeviceMesh | dist.ProcessGroup,
        *,
        data_mesh: DeviceMesh | dist.ProcessGroup | None = None,
        num_labels: int | None = None,
        bias: bool = True,
        class_weight: Weight | None = None,
        pos_weight: Weight | None = None,
        reduction: Reduction = "mean",
        chunk_size: int | None = None,
        impl: Impl = "auto",
        gradient: LinearGradientMode = "auto",
        update: ClassifierUpdate | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        mesh = checked_mesh("mesh", mesh)
        device = torch.device(mesh.device_type)
        if device.type != "cpu":
            device = torch.device(device.type, torch.accelerator.current_device_index())
        # The buffers of the statistics go to the default device.
        with device:
            super().__init__(
                spec,
                statistics,
                num_features,
                num_labels=num_labels,
                bias=bias,
                reduction=reduction,
                chunk_size=chunk_size,
                impl=impl,
                gradient=gradient,
                device="meta",
                dtype=dtype,
            )
            self.keep_label_weights(len(self.weight), device, class_weight=class_weight, pos_weight=pos_weight)
        if update is not None and not isinstance(update, ClassifierUpdate):
            raise TypeError(f"update: expected a ClassifierUpdate, got {type(update).__name__}")
        if update is not None and impl == "reference":
            raise ValueError("impl: expected another than 'reference', which has no update in place")
        labels = len(self.weight)
        if mesh.size() > labels:
            raise ValueError(f"mesh: expected no more ranks than labels, {labels}, got {mesh.size()}")
        self.mesh = mesh
        self.data_mesh = None if data_mesh is None else checked_mesh("data_mesh", data_mesh)
        self._sizes = shard_sizes(labels, mesh.size())
        self.first_label = sum(self._sizes[: mesh.get_local_rank()])
        seed = None if update is None else int(update.seed)
        settings = (spec, num_features, labels, bias, reduction, chunk_size, gradient, dtype, update, seed)
        counts = b""
        if statistics is not None:
            counts = tensor_bytes(statistics.counts) + f" {statistics.num_samples} {statistics.mu!r}".encode()
        weights = [_as_bytes(value) for value in (class_weight, pos_weight)]
        agreed = {"statistics": counts, "settings": repr(settings).encode()}
        agreed |= dict(zip(("class_weight", "pos_weight"), weights, strict=True))
        for group in self._groups:
            check_agreement(agreed, group)
        own = torch.empty(self._rows, num_features, device=device, dtype=dtype)
        own_bias = own.new_empty(self._rows) if bias else None
        self.weight = nn.Parameter(sharded(own, mesh, labels))
        self.bias = None if own_bias is None else nn.Parameter(sharded(own_bias, mesh, labels))
        self.reset_parameters()
        self.update = update
        if update is not None:
            update.prepare(own, own_bias, first_label=self.first_label)
        self._updated = (self.weight,)
        self._batch_checked = False
        register_state_hooks(self)

    @classmethod
    def from_linear(  # type: ignore[override]
        cls,
        linear: nn.Linear,
        spec: LossSpec,
        statistics: LabelStatistics | None,
        mesh: DeviceMesh | dist.ProcessGroup,
        *,
        data_mesh: DeviceMesh | dist.ProcessGroup | None = None,
        class_weight: Weight | None = None,
        pos_weight: Weight | None = None,
        reduction: Reduction = "mean",
        chunk_size: int | None = None,
        impl: Impl = "auto",
        gradient: LinearGradientMode = "auto",
        update: ClassifierUpdate | None = None,
        dtype: torch.dtype | None = None,
    ) -> LabelParallelLinearLoss:
        """Each rank takes its rows of a copy of the first rank's classifier, which may be on another device.

        Args:
            linear: the classifier, with one output a label.
            dtype: of the copy; None keeps that of ``linear``.
            spec, statistics, mesh, data_mesh, class_weight, pos_weight, reduction, chunk_size, impl, gradient, update:
                see :class:`LabelParallelLinearLoss`.
        """
        check_linear(linear, statistics)
        module = cls(
            spec,
            statistics,
            linear.in_features,
            mesh,
            data_mesh=data_mesh,
            num_labels=linear.out_features,
            bias=linear.bias is not None,
            class_weight=class_weight,
            pos_weight=pos_weight,
            reduction=reduction,
            chunk_size=chunk_size,
            impl=impl,
            gradient=gradient,
            update=update,
            dtype=dtype or linear.weight.dtype,
        )
        with torch.no_grad():
            for name in ("weight", "bias"):
                whole = getattr(linear, name)
                if whole is None:
                    continue
                own = local(getattr(module, name))
                whole = whole.detach().to(own.device, own.dtype)
                own.copy_(local(distribute_tensor(whole, module.mesh, [Shard(0)])))
                if module.data_mesh is not None:
                    dist.broadcast(own, group=module.data_mesh.get_group(), group_src=0)
        return module

    @property
    def _groups(self) -> Sequence[dist.ProcessGroup]:
        # Over the data first: then what begins at the first of them reaches all.
        meshes = (self.mesh,) if self.data_mesh is None else (self.data_mesh, self.mesh)
        return [mesh.get_group() for mesh in meshes]

    def reset_parameters(self) -> None:
        """The distribution of ``nn.Linear``: uniform within 1 / sqrt(D)."""
        if self.weight.device.type == "meta":
            return
        own = [local(part).detach() for part in (self.weight, self.bias) if part is not None]
        fill_uniform(own, self.first_label, common_seed(self._groups))

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def forward(
        self,
        features: Tensor,
        targets: Tensor | SparseTargets,
        sample_weight: Tensor | None = None,
        label_mask: Tensor | None = None,
        ignore_index: float | None = None,
    ) -> Tensor:
        """Loss of features [..., D]; arguments, result and errors as for :func:`linear_balanced_loss`.

        Under torch.compile the graph breaks here.
        """
        check_classifier(features, self.weight, self.bias, self.statistics if self.spec.needs_statistics else None)
        training = self.training and torch.is_grad_enabled()
        update = self.update if training else None
        chunk_size = self.chunk_size
        if update is not None and self.data_mesh is not None:
            if features.shape[:-1].numel() == 0:
                raise ValueError("features: expected at least one sample on each rank of data_mesh, got none")
            if chunk_size is None:
                # The ranks' batches may be of different sizes, their messages not.
                width = features.shape[-1]
                chunk_size = default_chunk_size(width, width, features.dtype, features.device, update=True)
        weight, bias = self._classifier()
        shard = self._shard(update, check=training and not self._batch_checked)
        if update is not None:
            # Older versions of PyTorch make zeros of a gradient that is None, on its way to the DTensor.
            weight = weight.detach().requires_grad_(weight.requires_grad)
            bias = None if bias is None else bias.detach().requires_grad_(bias.requires_grad)
            self._check_update(update, weight, bias)
        settings = LinearSettings(
            self.spec,
            self.statistics,
            self.class_weight,
            self.pos_weight,
            self.reduction,
            chunk_size,
            self.impl,
            self.gradient,
        )
        step = None if update is None else shard
        loss = run(settings, features, weight, bias, targets, sample_weight, label_mask, ignore_index, step, shard)
        self._batch_checked |= training and features.shape[:-1].numel() > 0
        return loss

    def logits(self, features: Tensor) -> Tensor:
        """Logits [..., C], whole, on every rank; all ranks differentiate them alike."""
        logits = self._shard().logits(features.reshape(-1, features.shape[-1]), *self._classifier())
        return logits.view(*features.shape[:-1], -1)

    def predict_topk(self, features: Tensor, k: int) -> TopLabels:
        """As :func:`predict_topk`, of all labels, on every rank."""
        return self._shard().predict_topk(features, *self._classifier(), k, self.chunk_size)

    def predict_above(self, features: Tensor, threshold: float) -> LabelsAbove:
        """As :func:`predict_above`, of all labels, on every rank."""
        return self._shard().predict_above(features, *self._classifier(), threshold, self.chunk_size)

    def extra_repr(self) -> str:
        last = self.first_label + self._rows
        rank = f"rank {self.mesh.get_local_rank()} of {self.mesh.size()}"
        return f"{super().extra_repr()}, labels {self.first_label} to {last - 1} ({rank})"

    @property
    def _rows(self) -> int:
        return self._sizes[self.mesh.get_local_rank()]

    @property
    def _data_group(self) -> dist.ProcessGroup | None:
        return None if self.data_mesh is None else self.data_mesh.get_group()

    def _classifier(self) -> tuple[Tensor, Tensor | None]:
        """This rank's rows of weight and bias; their gradient becomes the mean over ``data_mesh``."""
        group = self._data_group

        def own(part: Tensor) -> Tensor:
            rows = local(part)
            return rows if group is None else exchange(rows, backward=lambda upstream: averaged(upstream, group))

        return own(self.weight), None if self.bias is None else own(self.bias)

    def _shard(self, update: ClassifierUpdate | None = None, *, check: bool = False) -> LabelShard:
        return LabelShard(self.first_label, self._sizes, self.mesh.get_group(), update, self._data_group, check=check)

    def _check_update(self, update: ClassifierUpdate, weight: Tensor, bias: Tensor | None) -> None:
        """Raises unless what the update changes is what this module keeps."""
        if self.weight is not self._updated[0] and getattr(self, "_is_fsdp_managed_module", False):
            raise RuntimeError(
                "update: expected a classifier that fully_shard leaves alone, as it drops what is changed in place; "
                "call it on the encoder, or with ignored_params=set(classifier.parameters())"
            )
        update.check(weight, bias)


def _as_bytes(value: Weight | None) -> bytes:
    return tensor_bytes(value.reshape(-1)) if isinstance(value, Tensor) else repr(value).encode()
