"""A network with one hidden layer over sparse words, dense features or both, trained from checkpoint to checkpoint."""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from corpora.corpus import Corpus
from files import Json, atomic_file
from machine import peak_memory, resident_memory
from numpy.typing import NDArray
from progress import progress
from scipy.sparse import csr_matrix
from settings import integer, not_negative, number, positive, setting
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from encoders.encoder import Report
from encoders.scoring import score_test, score_validation
from fused_balanced_loss import BalancedLoss, LinearBalancedLoss, LossSpec

CHECKPOINT = "checkpoint.pt"
# Runs of seconds are sooner done again than saved after every epoch.
CHECKPOINT_SECONDS = 30.0
PREDICTION_BATCH = 512


@dataclass(frozen=True)
class HeadSettings:
    """Network and training, the same for every loss."""

    hidden: int = setting(256, integer(1), "units of the hidden layer")
    dropout: float = setting(0.5, number(0, 1, closed=True), "of the hidden layer")
    initial_std: float = 0.02
    learning_rate: float = setting(1e-2, positive, "its peak")
    weight_decay: float = setting(0.0, not_negative, "AdamW's")
    batch_size: int = setting(64, integer(1), "documents a step")
    epochs: int = setting(20, integer(1), "passes over the training documents")


@dataclass(frozen=True)
class Inputs:
    """Sparse features [N, V], dense features [N, D], or both, of the same documents; may lie on disk."""

    words: csr_matrix | None = None
    features: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        present = self.words if self.features is None else self.features
        return int(present.shape[0]) if present is not None else 0

    def __getitem__(self, rows: slice | NDArray[np.int64]) -> "Inputs":
        dense = None if self.features is None else np.require(self.features[rows], requirements=("C", "W"))
        return Inputs(None if self.words is None else self.words[rows], dense)


class Head(nn.Module):
    """Logits [n, C]; of the sparse features the hidden layer reads the nonzero ones alone.

    Args:
        like: the training inputs, whose widths are taken and whose dense features' mean and deviation are brought to 0
            and 1.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, like: Inputs, num_labels: int, settings: HeadSettings) -> None:
        super().__init__()
        self.words: nn.EmbeddingBag | None = None
        self.features: nn.Linear | None = None
        if like.words is not None:
            self.words = nn.EmbeddingBag(like.words.shape[1], settings.hidden, mode="sum")
            # PyTorch's standard deviation of 1 drowns what rare words learn.
            nn.init.normal_(self.words.weight, std=settings.initial_std)
        if like.features is not None:
            scaler = StandardScaler()
            for start in range(0, len(like.features), 4096):
                scaler.partial_fit(like.features[start : start + 4096].astype(np.float64))
            self.register_buffer("mean", torch.from_numpy(scaler.mean_).float())
            self.register_buffer("std", torch.from_numpy(np.sqrt(np.maximum(scaler.var_, 1e-12))).float())
            self.features = nn.Linear(like.features.shape[1], settings.hidden, bias=False)
            nn.init.normal_(self.features.weight, std=settings.initial_std)
        self.bias = nn.Parameter(torch.zeros(settings.hidden))
        self.dropout = nn.Dropout(settings.dropout)
        self.output = nn.Linear(settings.hidden, num_labels)

    def forward(self, inputs: Inputs) -> Tensor:
        logits: Tensor = self.output(self.hidden(inputs))
        return logits

    def hidden(self, inputs: Inputs) -> Tensor:
        """[n, hidden], what the last layer reads."""
        device, hidden, words = self.bias.device, self.bias, inputs.words
        if self.words is not None and words is not None:
            arrays = words.indices, words.indptr[:-1], words.data
            columns, offsets, values = (torch.from_numpy(array).to(device) for array in arrays)
            hidden = hidden + self.words(columns, offsets, per_sample_weights=values)
        if self.features is not None and inputs.features is not None:
            features = torch.from_numpy(inputs.features).to(device)
            hidden = hidden + self.features((features - self.mean) / self.std)
        dropped: Tensor = self.dropout(torch.relu(hidden))
        return dropped


def rate_share(step: int, steps: int) -> float:
    """Share of the peak learning rate: rises over the first tenth of the steps, then falls by half a cosine to 0."""
    rise = max(1, steps // 10)
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


@dataclass
class HeadTraining:
    """A head, what trains it with one of the losses, and how far that is: all that a checkpoint holds.

    With ``fused_classifier`` training makes no logits.
    """

    corpus: Corpus
    inputs: dict[str, Inputs]
    spec: LossSpec
    settings: HeadSettings
    seed: int
    fused_classifier: bool = False

    def __post_init__(self) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.manual_seed(self.seed)
        settings, train, statistics = self.settings, self.inputs["train"], self.corpus.statistics
        self.head = Head(train, self.corpus.num_labels, settings).to(self.device)
        if self.fused_classifier:
            loss: nn.Module = LinearBalancedLoss.from_linear(self.head.output, self.spec, statistics)
        else:
            loss = BalancedLoss(self.spec, statistics)
        self.loss = loss.to(self.device)
        rate, decay = settings.learning_rate, settings.weight_decay
        self.optimizer = torch.optim.AdamW(self.head.parameters(), lr=rate, weight_decay=decay, fused=True)
        steps = settings.epochs * -(-len(train) // settings.batch_size)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: rate_share(step, steps))
        self.stateful: Any = {"head": self.head, "optimizer": self.optimizer, "schedule": self.schedule}
        self.epochs: list[Json] = []
        self.best: dict[str, Any] = {}

    def run(self, folder: Path, report: Report) -> Json:
        """Trains for all epochs, on from the checkpoint in ``folder``, and scores the best by validation micro-F1."""
        start = saved = time.perf_counter()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        self.resume(folder / CHECKPOINT)
        for epoch in self.epochs:
            report(epoch)
        before = self.epochs[-1]["seconds"] if self.epochs else 0.0
        while len(self.epochs) < self.settings.epochs:
            loss = self.train_epoch()
            validation = score_validation(self.corpus, self.predict("validation"))
            epoch = {
                "number": len(self.epochs) + 1,
                "loss": loss,
                "micro_f1": validation.micro_f1,
                "threshold": validation.threshold,
                "seconds": before + time.perf_counter() - start,
                "memory_bytes": resident_memory()[0],
            }
            self.epochs.append(epoch)
            if not self.best or validation.micro_f1 > self.best["micro_f1"]:
                weights = {name: value.clone() for name, value in self.head.state_dict().items()}
                self.best = {**epoch, "validation": validation.scores, "weights": weights}
            if time.perf_counter() - saved > CHECKPOINT_SECONDS:
                self.save(folder / CHECKPOINT)
                saved = time.perf_counter()
            report(epoch)
        self.head.load_state_dict(self.best["weights"])
        return {
            "best_epoch": self.best["number"],
            "threshold": self.best["threshold"],
            "validation": self.best["validation"],
            **score_test(self.corpus, self.predict("test"), self.best["threshold"]),
            "seconds": before + time.perf_counter() - start,
            "peak_memory_bytes": peak_memory(self.device),
        }

    def train_epoch(self) -> float:
        """One pass in random order; the mean loss of its batches."""
        self.head.train()
        what_loss_takes = self.head.hidden if self.fused_classifier else self.head
        inputs, targets = self.inputs["train"], self.corpus.train.targets
        batches = torch.split(torch.randperm(len(inputs)), self.settings.batch_size)
        total = torch.zeros((), device=self.device)
        for batch in batches:
            value = self.loss(what_loss_takes(inputs[batch.numpy()]), targets[batch].to(self.device))
            self.optimizer.zero_grad()
            value.backward()
            self.optimizer.step()
            self.schedule.step()
            total += value.detach()
        return float(total) / len(batches)

    @torch.inference_mode()
    def predict(self, part: str) -> Iterator[Tensor]:
        """Batches of logits [n, C], in order."""
        self.head.eval()
        inputs = self.inputs[part]
        for start in range(0, len(inputs), PREDICTION_BATCH):
            yield self.head(inputs[start : start + PREDICTION_BATCH])

    def save(self, path: Path) -> None:
        """Replaces the checkpoint as a whole; a full disk costs the checkpoint, not the run."""
        cuda = torch.cuda.get_rng_state_all() if self.device.type == "cuda" else []
        state = {name: part.state_dict() for name, part in self.stateful.items()}
        state |= {"random": torch.get_rng_state(), "random_cuda": cuda, "epochs": self.epochs, "best": self.best}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(path) as temporary:
                torch.save(state, temporary)
        except (OSError, RuntimeError) as error:
            progress.warn(f"no checkpoint could be saved: {error}")

    def resume(self, path: Path) -> None:
        if not path.exists():
            return
        try:
            state = torch.load(path, map_location=self.device, weights_only=True)
            for name, part in self.stateful.items():
                part.load_state_dict(state[name])
            torch.set_rng_state(state["random"].cpu())
            if self.device.type == "cuda":
                torch.cuda.set_rng_state_all([random.cpu() for random in state["random_cuda"]])
            self.epochs, self.best = state["epochs"], state["best"]
        except Exception as error:
            # Whatever a broken file raises; half of its state may have been taken over.
            progress.warn(f"{path} cannot be read ({error}); the run begins anew")
            self.__post_init__()
