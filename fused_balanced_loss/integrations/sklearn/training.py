"""The training of BalancedClassifier: an epoch, and the score and threshold on its validation part."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ...label_statistics import LabelStatistics
from ...metrics import ThresholdedF1
from ...spec import LossSpec
from ...targets import SparseTargets
from .network import Network
from .targets import Labels

# Probabilities of the logits -6 to 6 by 0.1.
_THRESHOLDS = 1 / (1 + np.exp(-np.arange(-60, 61) / 10))

# Few samples are few steps an epoch, so that some epochs without a better score say little.
_PATIENT_STEPS = 500

Rows = NDArray[np.int64]


class Samples:
    """Samples to train with: features [n, F], targets [n, C], and weights [n] or None."""

    def __init__(self, features: Any, targets: SparseTargets, weight: NDArray[np.float64] | None) -> None:
        self.features, self.targets, self.weight = features, targets, weight

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, rows: Rows) -> Samples:
        return Samples(self.features[rows], self.targets[rows], None if self.weight is None else self.weight[rows])


def loss_spec(
    loss: str | LossSpec, statistics: LabelStatistics, targets: SparseTargets, before: tuple[float, int] | None
) -> LossSpec:
    """The loss, of which a preset takes ``mu`` from the targets.

    ``before``: the mu of earlier targets, and how many labels they have; the result is the mean over all.

    Raises:
        ValueError: where there has been no label yet.
    """
    spec = loss if isinstance(loss, LossSpec) else LossSpec.preset(loss)
    if spec.weighting != "rebalanced" or not (isinstance(loss, str) or spec.mu is None):
        return spec
    mu, weight = before or (0.0, 0)
    number = len(targets.col)
    if not number + weight:
        raise ValueError("y: expected at least one label, from which the loss takes mu, got none")
    if number:
        mu = (mu * weight + statistics.suggest_mu(targets) * number) / (weight + number)
    return spec.replace(mu=mu)


def check_classes(targets: SparseTargets, labels: Labels) -> None:
    """Raises ValueError where there is one class a sample, and all samples have the same."""
    if not labels.multilabel and len(np.unique(classes_of(targets, labels))) < 2:
        raise ValueError("y: expected samples of at least 2 classes to train with, got 1 class")


def split(
    samples: Samples, fraction: float, random: np.random.RandomState, at_least: int = 2
) -> tuple[Rows, Samples | None]:
    """The rows to train with, and the share ``fraction`` of the samples that is left out; samples of weight 0 are in
    neither.

    Raises:
        ValueError: where fewer than ``at_least`` samples are left to train with.
    """
    rows: Rows = np.arange(len(samples))
    if samples.weight is not None:
        rows = np.flatnonzero(samples.weight)
        if not len(rows):
            raise ValueError("sample_weight: expected some weights above zero, got zero for all samples")
    number = max(1, round(fraction * len(rows))) if fraction else 0
    if len(rows) - number < at_least:
        raise ValueError(
            f"X: expected at least {at_least + number} samples ({number} of them for validation), got "
            f"n_samples={len(rows)}"
        )
    if not number:
        return rows, None
    drawn = random.permutation(rows)
    return np.sort(drawn[number:]), samples[np.sort(drawn[:number])]


class Progress:
    """The epochs of a training so far, and the best of them.

    Args:
        network: what is trained.
        early_stopping: whether the weights of the best epoch are kept.
        patience: epochs without a better score until it is over.
    """

    def __init__(self, network: Network, early_stopping: bool, patience: int) -> None:
        self.losses: list[float] = []
        self.scores: list[float] = []
        self.threshold: float | None = None
        self._network, self._early_stopping, self._patience = network, early_stopping, patience
        self._kept: list[torch.Tensor] | None = None
        self._stale = 0

    def loss(self, loss: float) -> None:
        """Notes an epoch; raises ValueError where it has diverged."""
        if not math.isfinite(loss):
            raise ValueError(
                f"learning_rate: expected one at which training converges; the loss of epoch {len(self.losses) + 1} "
                f"is {loss}"
            )
        self.losses.append(loss)

    def score(self, score: float, threshold: float) -> None:
        """Notes the score of the last epoch on the validation part. Of equally good epochs the last is the best."""
        before = max(self.scores, default=-1.0)
        self.scores.append(score)
        self._stale = 0 if score > before else self._stale + 1
        if score >= before:
            self.threshold = threshold
            if self._early_stopping:
                self._kept = self._network.snapshot()

    @property
    def is_over(self) -> bool:
        return self._early_stopping and self._stale >= self._patience

    def take_best(self) -> None:
        """Takes back the weights of the best epoch."""
        if self._kept is not None:
            self._network.restore(self._kept)

    def __str__(self) -> str:
        score = f", validation score {self.scores[-1]:.4f}" if self.scores else ""
        return f"epoch {len(self.losses)}: loss {self.losses[-1]:.6g}{score}"


def train(
    network: Network,
    samples: Samples,
    rows: Rows,
    held_out: Samples | None,
    labels: Labels,
    settings: Any,
    random: np.random.RandomState,
) -> Progress:
    """Trains as the parameters of BalancedClassifier in ``settings`` say; leaves the best weights in the network."""
    size = resolved_batch_size(settings.batch_size, len(rows))
    patience = max(settings.n_iter_no_change, -(-_PATIENT_STEPS * size // len(rows)))
    progress = Progress(network, settings.early_stopping, patience)
    for epoch in range(1, settings.max_iter + 1):
        progress.loss(train_epoch(network, samples, random.permutation(rows), size))
        if held_out is not None and (settings.early_stopping or epoch == settings.max_iter):
            progress.score(*validate(network, held_out, labels, settings.threshold))
        if settings.verbose:
            print(progress)
        if progress.is_over:
            break
    progress.take_best()
    return progress


def resolved_batch_size(batch_size: int | str, num_samples: int) -> int:
    """Samples a step; "auto" takes a hundredth of all, in [8, 64]."""
    return min(64, max(8, num_samples // 100)) if isinstance(batch_size, str) else batch_size


def train_epoch(network: Network, samples: Samples, rows: Rows, batch_size: int) -> float:
    """Trains once with each of the ``rows``, in their order; the mean loss of the samples."""
    total = torch.zeros((), dtype=torch.float64, device=network.device)
    for start in range(0, len(rows), batch_size):
        batch = samples[rows[start : start + batch_size]]
        weight = None if batch.weight is None else torch.from_numpy(batch.weight).to(network.device, torch.float32)
        total += network.step(batch.features, batch.targets, weight) * len(batch)
    return float(total) / len(rows)


def validate(network: Network, samples: Samples, labels: Labels, threshold: float | str) -> tuple[float, float]:
    """Score and threshold: accuracy and 0.5 for one class a sample, else micro-F1 at ``threshold``, or the threshold of
    the best micro-F1 (of equals the one in the middle) and that."""
    if not labels.multilabel:
        right = sum(
            int((best_class(logits) == classes_of(samples.targets[rows], labels)).sum())
            for rows, logits in network.logits(samples.features)
        )
        return right / len(samples), 0.5
    metric = ThresholdedF1(network.num_labels, _THRESHOLDS if isinstance(threshold, str) else [threshold])
    for rows, logits in network.logits(samples.features):
        metric.update(logits.nan_to_num(nan=-np.inf), samples.targets[rows])
    micro = metric.micro()
    best = np.flatnonzero(micro == micro.max())
    # Where no threshold finds a label, none is better than another.
    chosen = metric.thresholds[best[len(best) // 2]] if micro.max() > 0 or len(micro) == 1 else 0.5
    return float(micro.max()), float(chosen)


def best_class(logits: torch.Tensor) -> NDArray[np.int64]:
    """The number of the class of each row of logits [n, C], where one column stands for two classes."""
    chosen = logits[:, 0] > 0 if logits.shape[1] == 1 else logits.argmax(1)
    return chosen.to(torch.int64).cpu().numpy()


def classes_of(targets: SparseTargets, labels: Labels) -> NDArray[np.int64]:
    """The number of the class of each sample."""
    return targets.crow.diff().numpy() if labels.num_columns == 1 else targets.col.numpy()
