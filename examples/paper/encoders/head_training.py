"""Training of a head with one of the losses, from checkpoint to checkpoint."""

import math
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from corpora.corpus import Corpus
from files import Json, atomic_file
from machine import peak_memory, resident_memory
from torch import Tensor, nn

from encoders.encoder import Report
from encoders.head import Head, HeadSettings, Inputs
from encoders.scoring import score_test, score_validation
from fused_balanced_loss import BalancedLoss, LinearBalancedLoss, LossSpec

CHECKPOINT = "checkpoint.pt"
# Runs of seconds are sooner done again than saved after every epoch.
CHECKPOINT_SECONDS = 30.0
PREDICTION_BATCH = 512


def rate_share(step: int, steps: int) -> float:
    """Share of the peak learning rate: rises over the first tenth of the steps, then falls by half a cosine to 0."""
    rise = max(1, steps // 10)
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


def train_head(
    corpus: Corpus,
    inputs: dict[str, Inputs],
    spec: LossSpec,
    settings: HeadSettings,
    seed: int,
    folder: Path,
    report: Report,
    *,
    fused_classifier: bool = False,
) -> Json:
    """Trains for all epochs and scores the one with the best validation micro-F1.

    Goes on from the checkpoint in ``folder``, where there is one. With ``fused_classifier`` training makes no logits.
    """
    start = saved = time.perf_counter()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    run = _Run(corpus, inputs, spec, settings, seed, device, fused_classifier)
    run.resume(folder / CHECKPOINT)
    for epoch in run.epochs:
        report(epoch)
    before = run.epochs[-1]["seconds"] if run.epochs else 0.0
    while len(run.epochs) < settings.epochs:
        loss = run.train_epoch()
        validation = score_validation(corpus, run.predict("validation"))
        epoch = {
            "number": len(run.epochs) + 1,
            "loss": loss,
            "micro_f1": validation.micro_f1,
            "threshold": validation.threshold,
            "seconds": before + time.perf_counter() - start,
            "memory_bytes": resident_memory()["own"],
        }
        run.epochs.append(epoch)
        if not run.best or validation.micro_f1 > run.best["micro_f1"]:
            weights = {name: value.clone() for name, value in run.head.state_dict().items()}
            run.best = {**epoch, "validation": validation.scores, "weights": weights}
        if time.perf_counter() - saved > CHECKPOINT_SECONDS:
            run.save(folder / CHECKPOINT)
            saved = time.perf_counter()
        report(epoch)
    run.head.load_state_dict(run.best["weights"])
    return {
        "best_epoch": run.best["number"],
        "threshold": run.best["threshold"],
        "validation": run.best["validation"],
        **score_test(corpus, run.predict("test"), run.best["threshold"]),
        "seconds": before + time.perf_counter() - start,
        "peak_memory_bytes": peak_memory(device),
    }


@dataclass
class _Run:
    """All that a checkpoint holds, and what makes it change."""

    corpus: Corpus
    inputs: dict[str, Inputs]
    spec: LossSpec
    settings: HeadSettings
    seed: int
    device: torch.device
    fused_classifier: bool

    def __post_init__(self) -> None:
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
            print(f"\nwarning: no checkpoint could be saved: {error}", file=sys.stderr)

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
            print(f"\nwarning: {path} cannot be read ({error}); the run begins anew", file=sys.stderr)
            self.__post_init__()
