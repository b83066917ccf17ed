"""What a fine-tuning says after every epoch, and when it stops; all of it read from Trainer's own history."""

import json
import math
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from files import Json
from machine import number_of_processes
from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers.trainer_callback import ExportableState

from encoders.encoder import Report


def epochs_of(history: Sequence[Json]) -> list[Json]:
    """``number``, ``loss``, ``micro_f1``, ``threshold`` and ``seconds`` of each epoch that was evaluated.

    The loss is None where training has diverged.
    """
    epochs: list[Json] = []
    total, steps, last = 0.0, 0, 0
    for entry in history:
        if "loss" in entry:
            total += entry["loss"] * (entry["step"] - last)
            steps, last = steps + entry["step"] - last, entry["step"]
        elif "eval_micro_f1" in entry:
            loss = total / max(steps, 1)
            epoch = {"number": len(epochs) + 1, "loss": loss if math.isfinite(loss) else None}
            named = {"micro_f1": "eval_micro_f1", "threshold": "eval_threshold", "seconds": "seconds"}
            epochs.append(epoch | {name: entry[key] for name, key in named.items()})
            total, steps = 0.0, 0
    return epochs


def is_over(epochs: Sequence[Json], most: int, patience: int) -> bool:
    """After ``most`` epochs, ``patience`` epochs without a better micro-F1 (0: never), or a loss that diverged."""
    if not epochs:
        return False
    scores = [epoch["micro_f1"] for epoch in epochs]
    stale = len(scores) - 1 - scores.index(max(scores))
    return len(epochs) >= most or 0 < patience <= stale or epochs[-1]["loss"] is None


class EpochReport(TrainerCallback, ExportableState):
    """Reports and logs epochs, stops early, and has checkpoints written within long epochs.

    Args:
        report: called in the main process after every epoch.
        log: file that takes a line of JSON for each entry of the history; None for none.
    """

    def __init__(self, patience: int, checkpoint_steps: int, report: Report, log: Path | None) -> None:
        self.patience, self.checkpoint_steps = patience, checkpoint_steps
        self.report, self.log = report, log

    def state(self) -> Json:
        """What a checkpoint says of the run besides: how many random states belong to it."""
        return {"args": {}, "attributes": {"processes": number_of_processes()}}

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.start = time.perf_counter() - (state.log_history[-1]["seconds"] if state.log_history else 0.0)

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        per_epoch = -(-state.max_steps // state.num_train_epochs)
        # The end of an epoch has a checkpoint of its own.
        if state.global_step % self.checkpoint_steps == 0 and state.global_step % per_epoch:
            # What was not logged is lost to a run that goes on from here.
            control.should_save = control.should_log = True

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        entry = state.log_history[-1]
        entry["seconds"] = time.perf_counter() - self.start
        if self.log is not None and state.is_world_process_zero:
            # A log that has no room is no reason to stop.
            with suppress(OSError), open(self.log, "a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")

    def on_evaluate(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        epochs = epochs_of(state.log_history)
        if is_over(epochs, int(state.num_train_epochs), self.patience):
            control.should_training_stop = True
        if state.is_world_process_zero:
            self.report(epochs[-1])


class StepBar(TrainerCallback):
    """A bar over the steps, on a terminal, that leaves no trace."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.bar: tqdm[Any] | None = None

    def on_train_begin(self, args: Any, state: TrainerState, *_: Any, **__: Any) -> None:
        if state.is_world_process_zero and sys.stderr.isatty():
            done, total = state.global_step, state.max_steps
            self.bar = tqdm(desc=self.name, total=total, initial=done, unit="step", leave=False, dynamic_ncols=True)

    def on_step_end(self, args: Any, state: TrainerState, *_: Any, **__: Any) -> None:
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)

    def on_train_end(self, *_: Any, **__: Any) -> None:
        if self.bar is not None:
            self.bar.close()
