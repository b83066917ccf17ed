"""A network with one hidden layer over TF-IDF features, and its training with one of the losses."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from evaluation import Scores, choose_threshold, f1_by_group
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from tfidf_features import Dataset
from torch import Tensor, nn

from fused_balanced_loss import BalancedLoss, LossSpec


@dataclass(frozen=True)
class TrainingSettings:
    """Network and training, the same for every loss."""

    hidden: int = 256
    dropout: float = 0.5
    initial_std: float = 0.02
    learning_rate: float = 1e-2
    weight_decay: float = 0.0
    batch_size: int = 64
    epochs: int = 20


@dataclass(frozen=True)
class Epoch:
    """Progress after an epoch: mean training loss, validation micro-F1 at the best threshold."""

    number: int
    loss: float
    micro_f1: float
    threshold: float


@dataclass(frozen=True)
class TrainingResult:
    """Scores of the epoch with the best validation micro-F1, and all epochs."""

    best_epoch: int
    threshold: float
    validation: Scores
    test: Scores
    epochs: list[Epoch]
    seconds: float


class TfidfNetwork(nn.Module):
    """Logits [N, C] from sparse features [N, V]; the hidden layer reads the nonzero features alone."""

    def __init__(self, num_features: int, num_labels: int, settings: TrainingSettings) -> None:
        super().__init__()
        self.hidden = nn.EmbeddingBag(num_features, settings.hidden, mode="sum")
        # PyTorch's standard deviation of 1 drowns what rare words learn.
        nn.init.normal_(self.hidden.weight, std=settings.initial_std)
        self.bias = nn.Parameter(torch.zeros(settings.hidden))
        self.dropout = nn.Dropout(settings.dropout)
        self.output = nn.Linear(settings.hidden, num_labels)

    def forward(self, features: csr_matrix) -> Tensor:
        device = self.bias.device
        columns = torch.from_numpy(features.indices).to(device)
        offsets = torch.from_numpy(features.indptr[:-1]).to(device)
        values = torch.from_numpy(features.data).to(device)
        hidden = torch.relu(self.hidden(columns, offsets, per_sample_weights=values) + self.bias)
        logits: Tensor = self.output(self.dropout(hidden))
        return logits


def rate_share(step: int, steps: int) -> float:
    """Share of the peak learning rate: rises over the first tenth of the steps, then falls by half a cosine to 0."""
    rise = max(1, steps // 10)
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


def train(
    dataset: Dataset,
    spec: LossSpec,
    settings: TrainingSettings,
    seed: int,
    report: Callable[[Epoch], None] = lambda epoch: None,
) -> TrainingResult:
    """Trains for all epochs; keeps the one with the best validation micro-F1."""
    start = time.perf_counter()
    torch.manual_seed(seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = TfidfNetwork(dataset.train.features.shape[1], dataset.statistics.num_labels, settings).to(device)
    loss = BalancedLoss(spec, dataset.statistics).to(device)
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True
    )
    steps = settings.epochs * -(-len(dataset.train.targets) // settings.batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_share(step, steps))
    epochs: list[Epoch] = []
    best: Epoch | None = None
    validation = test = np.empty(0, np.float32)
    for number in range(1, settings.epochs + 1):
        mean_loss = _train_epoch(network, loss, optimizer, schedule, dataset, settings.batch_size, device)
        scores = predict(network, dataset.validation.features)
        threshold, micro = choose_threshold(dataset.validation.dense, scores)
        epochs.append(Epoch(number, mean_loss, micro, threshold))
        if best is None or micro > best.micro_f1:
            best, validation, test = epochs[-1], scores, predict(network, dataset.test.features)
        report(epochs[-1])
    assert best is not None
    return TrainingResult(
        best_epoch=best.number,
        threshold=best.threshold,
        validation=f1_by_group(dataset.validation.dense, validation > best.threshold, dataset.groups),
        test=f1_by_group(dataset.test.dense, test > best.threshold, dataset.groups),
        epochs=epochs,
        seconds=time.perf_counter() - start,
    )


def _train_epoch(
    network: TfidfNetwork,
    loss: BalancedLoss,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    dataset: Dataset,
    batch_size: int,
    device: torch.device,
) -> float:
    """One pass in random order; the mean loss of its batches."""
    network.train()
    order = torch.randperm(len(dataset.train.targets))
    batches = torch.split(order, batch_size)
    total = torch.zeros((), device=device)
    for batch in batches:
        logits = network(dataset.train.features[batch.numpy()])
        value = loss(logits, dataset.train.targets[batch].to(device))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        schedule.step()
        total += value.detach()
    return float(total) / len(batches)


@torch.inference_mode()
def predict(network: TfidfNetwork, features: csr_matrix) -> NDArray[np.float32]:
    """Probabilities [N, C]: sigmoid of the raw logits, without the loss's bias or slope."""
    network.eval()
    probabilities: NDArray[np.float32] = network(features).sigmoid().cpu().numpy()
    return probabilities
