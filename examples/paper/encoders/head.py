"""A network with one hidden layer over sparse words, dense features or both, trained from checkpoint to checkpoint."""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
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
from encoders.scoring import GRIDS, epochs_since_best, score_own, score_test, score_validation
from fused_balanced_loss import BalancedLoss, LinearBalancedLoss, LossSpec

CHECKPOINT = "checkpoint.pt"
# Runs of seconds are sooner done again than saved after every epoch.
CHECKPOINT_SECONDS = 30.0
PREDICTION_BATCH = 512
# Of what is kept in it.
CHECKPOINT_VERSION = 2
PATIENCE = "epochs without a better validation micro-F1, at either threshold, before stopping; until then"


@dataclass(frozen=True)
class HeadSettings:
    """Network and training, the same for every loss."""

    hidden: int = setting(256, integer(1), "units of the hidden layer")
    dropout: float = setting(0.5, number(0, 1, closed=True), "of the hidden layer")
    initial_std: float = 0.02
    learning_rate: float = setting(1e-2, positive, "its peak")
    weight_decay: float = setting(0.0, not_negative, "AdamW's")
    batch_size: int = setting(64, integer(1), "documents a step")
    epochs: int = setting(20, integer(1), "the most passes over the training documents")
    patience: int = setting(0, integer(0), f"{PATIENCE} the learning rate stays at its peak; 0: never")

    def as_json(self) -> Json:
        """All fields, but for those that earlier records lack and whose default changes nothing."""
        return {name: value for name, value in asdict(self).items() if name != "patience" or value}


@dataclass(frozen=True)
class Inputs:
    """Sparse features [N, V], dense features [N, D], or both, of the same documents; may lie on disk."""

    words: csr_matrix | None = None
    features: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        present = self.words if self.features is None else self.features
        return int(present.shape[0]) if present is not None else 0

    @property
    def widths(self) -> tuple[int, int]:
        """V and D, 0 for what is not there."""
        words, features = (0 if part is None else int(part.shape[1]) for part in (self.words, self.features))
        return words, features

    def __getitem__(self, rows: slice | NDArray[np.int64]) -> "Inputs":
        dense = None if self.features is None else np.require(self.features[rows], requirements=("C", "W"))
        return Inputs(None if self.words is None else self.words[rows], dense)


class Head(nn.Module):
    """Logits [n, C]; of the sparse features the hidden layer reads the nonzero ones alone.

    Args:
        num_words, num_features: V and D of the inputs, 0 where there are none.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, num_words: int, num_features: int, num_labels: int, settings: HeadSettings) -> None:
        super().__init__()
        self.words: nn.EmbeddingBag | None = None
        self.features: nn.Linear | None = None
        if num_words:
            self.words = nn.EmbeddingBag(num_words, settings.hidden, mode="sum")
            # PyTorch's standard deviation of 1 drowns what rare words learn.
            nn.init.normal_(self.words.weight, std=settings.initial_std)
        if num_features:
            self.register_buffer("mean", torch.zeros(num_features))
            self.register_buffer("std", torch.ones(num_features))
            self.features = nn.Linear(num_features, settings.hidden, bias=False)
            nn.init.normal_(self.features.weight, std=settings.initial_std)
        self.bias = nn.Parameter(torch.zeros(settings.hidden))
        self.dropout = nn.Dropout(settings.dropout)
        self.output = nn.Linear(settings.hidden, num_labels)

    @classmethod
    def for_inputs(cls, train: Inputs, num_labels: int, settings: HeadSettings) -> "Head":
        """Brings the mean and deviation of the training documents' dense features to 0 and 1."""
        head = cls(*train.widths, num_labels, settings)
        if train.features is not None:
            scaler = StandardScaler()
            for start in range(0, len(train), 4096):
                scaler.partial_fit(train.features[start : start + 4096].astype(np.float64))
            head.mean.copy_(torch.from_numpy(scaler.mean_))
            head.std.copy_(torch.from_numpy(np.sqrt(np.maximum(scaler.var_, 1e-12))))
        return head

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


def rate_share(step: int, steps: int, rise: int, *, falls: bool = True) -> float:
    """Share of the peak learning rate: rises over the first steps, then falls by half a cosine to 0, or stays."""
    if step < rise or not falls:
        return min(1.0, (step + 1) / rise)
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
    thresholds: Sequence[float] = GRIDS["paper"]

    def __post_init__(self) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.manual_seed(self.seed)
        settings, train, statistics = self.settings, self.inputs["train"], self.corpus.statistics
        self.head = Head.for_inputs(train, self.corpus.num_labels, settings).to(self.device)
        if self.fused_classifier:
            loss: nn.Module = LinearBalancedLoss.from_linear(self.head.output, self.spec, statistics)
        else:
            loss = BalancedLoss(self.spec, statistics)
        self.loss = loss.to(self.device)
        rate, decay = settings.learning_rate, settings.weight_decay
        self.optimizer = torch.optim.AdamW(self.head.parameters(), lr=rate, weight_decay=decay, fused=True)
        each = -(-len(train) // settings.batch_size)
        steps, falls = settings.epochs * each, not settings.patience
        # Of a training whose end is open, an epoch is the rise.
        rise = max(1, steps // 10) if falls else each
        share = partial(rate_share, steps=steps, rise=rise, falls=falls)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, share)
        self.stateful: Any = {"head": self.head, "optimizer": self.optimizer, "schedule": self.schedule}
        self.epochs: list[Json] = []
        self.best: dict[str, Any] = {}

    def run(self, folder: Path, report: Report) -> Json:
        """Trains for all epochs, on from the checkpoint in ``folder``, and scores the best by validation
        micro-F1: at the threshold of the protocol, and at the method's own, each in its best epoch."""
        start = saved = time.perf_counter()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        self.resume(folder / CHECKPOINT)
        for epoch in self.epochs:
            report(epoch)
        before = self.epochs[-1]["seconds"] if self.epochs else 0.0
        while len(self.epochs) < self.settings.epochs and not self.is_over():
            loss = self.train_epoch()
            validation = score_validation(self.corpus, self.predict("validation"), self.thresholds)
            epoch = {
                "number": len(self.epochs) + 1,
                "loss": loss,
                "micro_f1": validation["protocol"]["micro_f1"],
                "threshold": validation["protocol"]["threshold"],
                "own_micro_f1": validation["own"]["micro_f1"],
                "own_threshold": validation["own"]["threshold"],
                "seconds": before + time.perf_counter() - start,
                "memory_bytes": resident_memory()[0],
            }
            self.epochs.append(epoch)
            better = [
                name
                for name, choice in validation.items()
                if name not in self.best or choice["micro_f1"] > self.best[name]["micro_f1"]
            ]
            if better:
                weights = {name: value.clone() for name, value in self.head.state_dict().items()}
                kept = {"epoch": epoch["number"], "weights": weights}
                self.best |= {name: validation[name] | kept for name in better}
            if time.perf_counter() - saved > CHECKPOINT_SECONDS:
                self.save(folder / CHECKPOINT)
                saved = time.perf_counter()
            report(epoch)
        protocol, own = self.best["protocol"], self.best["own"]
        self.head.load_state_dict(protocol["weights"])
        scored = score_test(self.corpus, self.predict("test"), protocol["threshold"])
        # What is kept of the run is the model at its own best.
        self.head.load_state_dict(own["weights"])
        return {
            "best_epoch": protocol["epoch"],
            **{name: protocol[name] for name in ("threshold", "validation", "at_edge")},
            **scored,
            **score_own(self.corpus, self.predict("test"), own),
            "own_epoch": own["epoch"],
            "seconds": before + time.perf_counter() - start,
            "peak_memory_bytes": peak_memory(self.device),
        }

    def is_over(self) -> bool:
        return 0 < self.settings.patience <= epochs_since_best(self.epochs)

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
        state |= {"version": CHECKPOINT_VERSION}
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
            if state.get("version") != CHECKPOINT_VERSION:
                raise ValueError(f"it is of version {state.get('version')!r}, this is {CHECKPOINT_VERSION}")
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
