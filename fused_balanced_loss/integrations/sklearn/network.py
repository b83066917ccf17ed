"""The weights of BalancedClassifier: their steps, and the logits they give, for dense and sparse features."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array, issparse
from torch import Tensor, nn

from ...classifier.module import LinearBalancedLoss
from ...functional import balanced_loss
from ...label_statistics import LabelStatistics
from ...optim.base import ClassifierUpdate
from ...optim.some_rows import step_some_rows
from ...optim.update import AdamWUpdate, SGDUpdate
from ...spec import LossSpec
from ...targets import SparseTargets

# Elements that a batch of prediction and a part of an update take at most: 8 MB of float32.
_ELEMENTS = 1 << 21


class Optimizer(NamedTuple):
    """Settings of the in-place optimizers, one for each weight."""

    name: Literal["adamw", "sgd"]
    learning_rate: float
    weight_decay: float
    state: Literal["float32", "bfloat16", "row"]
    seed: int

    def same_state(self, other: Optimizer) -> bool:
        """Whether the state that one keeps is that of the other, too."""
        return (self.name, self.state) == (other.name, other.state)

    def update(self) -> ClassifierUpdate:
        if self.name == "sgd":
            return SGDUpdate(self.learning_rate, weight_decay=self.weight_decay, seed=self.seed)
        return AdamWUpdate(self.learning_rate, weight_decay=self.weight_decay, state=self.state, seed=self.seed)


class SparseRows(NamedTuple):
    """Sparse features [n, F] by row: ``columns`` and ``values`` [nnz], and ``starts`` [n] of the rows in them."""

    columns: Tensor
    values: Tensor
    starts: Tensor

    @classmethod
    def of(cls, features: Any, device: torch.device, dtype: torch.dtype) -> SparseRows:
        """From scipy's compressed rows."""
        columns, starts = (part.astype(np.int64) for part in (features.indices, features.indptr[:-1]))
        values = torch.from_numpy(np.ascontiguousarray(features.data, np.float32))
        return cls(torch.from_numpy(columns).to(device), values.to(device, dtype), torch.from_numpy(starts).to(device))

    def product(self, weight: Tensor) -> Tensor:
        """[n, D], the features times ``weight`` [F, D]."""
        return _weighted_sums(weight, self.columns, self.values, self.starts)

    def gradients(self, upstream: Tensor) -> Iterator[tuple[Tensor, Tensor, int]]:
        """The gradient of the weight for ``upstream`` [n, D], in parts: the numbers of the features [u] that occur,
        their gradients [u, D], and how many features came before."""
        counts = torch.cat([self.starts, self.starts.new_tensor([len(self.columns)])]).diff()
        rows = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)
        columns, order = self.columns.sort(stable=True)
        rows, values = rows[order], self.values[order]
        features, counts = torch.unique_consecutive(columns, return_counts=True)
        ends = counts.cumsum(0)
        size = max(1, _ELEMENTS // upstream.shape[1])
        bounds = [0, *ends.tolist()]
        for start in range(0, len(features), size):
            stop = min(start + size, len(features))
            entries = slice(bounds[start], bounds[stop])
            starts = (ends - counts)[start:stop] - bounds[start]
            yield features[start:stop], _weighted_sums(upstream, rows[entries], values[entries], starts), start


def _weighted_sums(table: Tensor, columns: Tensor, values: Tensor, starts: Tensor) -> Tensor:
    return nn.functional.embedding_bag(columns, table, starts, mode="sum", per_sample_weights=values)


class FirstLayer(nn.Module):
    """A linear layer that changes its weights itself, once for each batch: [n, F] to [n, D].

    For sparse features the weight lies as [F, D], so that a step touches the features of the batch alone; for dense
    ones as [D, F].
    """

    update: ClassifierUpdate | None
    bias_update: ClassifierUpdate | None

    def __init__(self, weight: Tensor, bias: Tensor, sparse: bool) -> None:
        super().__init__()
        self.update = self.bias_update = None
        self.sparse = sparse
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = nn.Parameter(bias, requires_grad=False)

    def forward(self, features: Tensor | SparseRows) -> Tensor:
        if isinstance(features, SparseRows):
            return features.product(self.weight) + self.bias
        return nn.functional.linear(features, self.weight, self.bias)

    def set_optimizer(self, optimizer: Optimizer | None) -> None:
        """New state for another training; None frees it."""
        self.update = self.bias_update = None
        if optimizer is not None:
            self.update, self.bias_update = optimizer.update(), optimizer.update()
            self.update.prepare(self.weight, None)
            self.bias_update.prepare(self.bias[:, None], None)

    def step(self, features: Tensor | SparseRows, upstream: Tensor, finite: Tensor) -> None:
        """One step for the gradient ``upstream`` [n, D]; none where ``finite``, bool [], is False."""
        assert self.update is not None and self.bias_update is not None
        one = torch.ones((), device=upstream.device)
        if isinstance(features, SparseRows):
            step = self.update.describe_step(self.weight, None, one, finite)
            for numbers, gradient, before in features.gradients(upstream):
                step_some_rows(step, numbers, gradient.float(), before)
        else:
            self._step(self.update, self.weight, upstream.t() @ features, finite)
        self._step(self.bias_update, self.bias[:, None], upstream.sum(0, dtype=torch.float32)[:, None], finite)

    def _step(self, update: ClassifierUpdate, weight: Tensor, gradient: Tensor, finite: Tensor) -> None:
        take_gradients = update.step(weight, None, torch.ones((), device=weight.device), finite)
        take_gradients(slice(0, len(weight)), gradient, gradient.new_zeros(len(weight), dtype=torch.float32))


class Network(nn.Module):
    """Logits [n, C] of features [n, F]: a linear layer, or two with ReLU between them.

    A linear layer begins at zero, hidden layers as ``nn.Linear`` does. Each step changes the weights in the backward;
    their gradients never exist whole, but for a hidden layer over dense features.

    Args:
        hidden: units of the hidden layer; None for a linear layer.
        sparse: whether the first layer's weight lies as sparse features need it. Other features are converted batch by
            batch.
        random: draws the first weights.
    """

    first: FirstLayer | None
    head: LinearBalancedLoss | None

    def __init__(
        self,
        num_features: int,
        num_labels: int,
        spec: LossSpec,
        statistics: LabelStatistics,
        *,
        hidden: int | None,
        sparse: bool,
        random: torch.Generator,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self.num_labels, self.sparse = num_labels, sparse
        self.first = self.head = None
        self.optimizer: Optimizer | None = None
        self.spec, self.statistics = spec, statistics
        if hidden is not None or sparse:
            shape = (num_labels if hidden is None else hidden, num_features)
            weight = torch.empty(shape[::-1] if sparse else shape, dtype=dtype)
            self.first = FirstLayer(weight, torch.empty(shape[0], dtype=dtype), sparse)
        if hidden is not None or not sparse:
            width = num_features if hidden is None else hidden
            # PyTorch's own random numbers are left as they are.
            with torch.random.fork_rng(devices=[]):
                self.head = LinearBalancedLoss(spec, statistics, width, reduction="batchmean", dtype=dtype)
        for layer, inputs in ((self.first, num_features), (self.head, hidden)):
            if layer is not None:
                bound = 0.0 if hidden is None or inputs is None else inputs**-0.5
                for part in layer.parameters(recurse=False):
                    part.data.copy_(torch.rand(part.shape, generator=random).mul_(2).sub_(1).mul_(bound))

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def set_loss(self, spec: LossSpec, statistics: LabelStatistics) -> None:
        self.spec, self.statistics = spec, statistics
        if self.head is not None:
            self.head.spec, self.head.statistics = spec, statistics

    def set_optimizer(self, optimizer: Optimizer | None) -> None:
        """Takes these settings, with new state where there is none of this kind; None frees the state."""
        before, self.optimizer = self.optimizer, optimizer
        if before is not None and optimizer is not None and before.same_state(optimizer):
            for update in self._updates():
                update.lr, update.weight_decay = optimizer.learning_rate, optimizer.weight_decay
            return
        if self.first is not None:
            self.first.set_optimizer(optimizer)
        if self.head is not None:
            self.head.update = None if optimizer is None else optimizer.update()
            if self.head.update is not None:
                self.head.update.prepare(self.head.weight, self.head.bias)

    def _updates(self) -> list[ClassifierUpdate]:
        first = [] if self.first is None else [self.first.update, self.first.bias_update]
        head = [] if self.head is None else [self.head.update]
        return [update for update in (*first, *head) if update is not None]

    def step(self, features: Any, targets: SparseTargets, sample_weight: Tensor | None) -> Tensor:
        """Trains with a batch of numpy's or scipy's features [n, F]; its loss, the mean over the samples."""
        inputs = self._inputs(features)
        targets = targets.to(self.device)
        with torch.enable_grad():
            if self.first is None:
                assert self.head is not None
                loss = self.head(inputs, targets, sample_weight)
                loss.backward()
                return loss.detach()
            values = self.first(inputs).requires_grad_()
            if self.head is None:
                loss = balanced_loss(
                    values, targets, self.spec, self.statistics, sample_weight=sample_weight, reduction="batchmean"
                )
            else:
                loss = self.head(torch.relu(values), targets, sample_weight)
            loss.backward()
        assert values.grad is not None
        self.first.step(inputs, values.grad, torch.isfinite(loss.detach()))
        return loss.detach()

    @torch.no_grad()
    def logits(self, features: Any) -> Iterator[tuple[slice, Tensor]]:
        """Batches of rows, and their logits [n, C]."""
        width = max(self.num_labels, 0 if self.sparse else features.shape[1])
        size = max(1, _ELEMENTS // width)
        for start in range(0, features.shape[0], size):
            rows = slice(start, min(start + size, features.shape[0]))
            values: Any = self._inputs(features[rows])
            if self.first is not None:
                values = self.first(values)
            if self.head is not None:
                values = self.head.logits(values if self.first is None else torch.relu(values))
            yield rows, values.float()

    def of_logits(self, features: Any, function: Callable[[Tensor], Tensor], dtype: Any) -> NDArray[Any]:
        """[n, C] of ``dtype``, the function of the logits, which it gets as float64."""
        result = np.empty((features.shape[0], self.num_labels), dtype)
        for rows, logits in self.logits(features):
            result[rows] = function(logits.double()).cpu().numpy()
        return result

    def coefficients(self) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
        """Weight [C, F] and bias [C] of a linear layer, None with a hidden one."""
        if self.first is not None and self.head is not None:
            return None
        layer = self.head if self.first is None else self.first
        assert layer is not None and layer.bias is not None
        weight, bias = (part.detach().float().cpu().numpy() for part in (layer.weight, layer.bias))
        return (weight.T if self.sparse else weight), bias

    def snapshot(self) -> list[Tensor]:
        """A copy of all weights."""
        return [part.detach().clone() for part in self.parameters()]

    def restore(self, snapshot: list[Tensor]) -> None:
        """Takes back the weights of a snapshot."""
        for part, kept in zip(self.parameters(), snapshot, strict=True):
            part.data.copy_(kept)

    def _inputs(self, features: Any) -> Tensor | SparseRows:
        """A batch on the device, in the form of the first layer."""
        if self.sparse:
            rows = features if issparse(features) else csr_array(features)
            return SparseRows.of(rows, self.device, self.dtype)
        dense = features.toarray() if issparse(features) else features
        return torch.from_numpy(np.ascontiguousarray(dense, np.float32)).to(self.device, self.dtype)
