"""Trainer with its failures explained, and what it leaves: epochs, checkpoints, logits."""

import json
import math
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from files import Json, atomic_file
from machine import is_main
from progress import progress
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState

from encoders.encoder import EncoderError, Report
from encoders.scoring import GRIDS, epochs_since_best
from fused_balanced_loss.integrations.transformers import compute_metrics
from fused_balanced_loss.metrics import ThresholdedF1

# In a checkpoint: itself and AdamW's two moments, in float32.
BYTES_A_WEIGHT = 12
STATE, SIZES = "trainer_state.json", "sizes.json"


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
            named = {name: f"eval_{name}" for name in ("micro_f1", "threshold", "own_micro_f1", "own_threshold")}
            named["seconds"] = "seconds"
            epochs.append(epoch | {name: entry[key] for name, key in named.items() if key in entry})
            total, steps = 0.0, 0
    return epochs


def is_over(epochs: Sequence[Json], most: int, patience: int) -> bool:
    """After ``most`` epochs, ``patience`` epochs without a better micro-F1 (0: never), or a loss that diverged."""
    if not epochs:
        return False
    return len(epochs) >= most or 0 < patience <= epochs_since_best(epochs) or epochs[-1]["loss"] is None


class EpochReport(TrainerCallback):
    """Reports and logs epochs, stops early, has checkpoints written within long epochs, and notes which are whole.

    Args:
        report: called in the main process after every epoch.
        log: file that takes a line of JSON for each entry of the history; None for none.
    """

    def __init__(self, patience: int, checkpoint_steps: int, report: Report, log: Path | None) -> None:
        self.patience, self.checkpoint_steps = patience, checkpoint_steps
        self.report, self.log = report, log

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.start = time.perf_counter() - (state.log_history[-1]["seconds"] if state.log_history else 0.0)
        # Trainer keeps the best checkpoint by its path, which is another one where the folder has moved.
        best = _best(Path(args.output_dir), state.best_global_step)
        state.best_model_checkpoint = None if best is None else str(best)

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        progress.step(state.global_step, state.max_steps)
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

    def on_save(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        # Each process has written its own random state.
        PartialState().wait_for_everyone()
        checkpoint = Path(args.output_dir, f"checkpoint-{state.global_step}")
        if is_main():
            sizes = {path.name: path.stat().st_size for path in checkpoint.iterdir()}
            with atomic_file(checkpoint / SIZES) as path:
                path.write_text(json.dumps(sizes), encoding="utf-8")


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint in ``folder`` whose best is whole too; removes what is newer and broken."""
    for checkpoint in sorted(folder.glob("checkpoint-*"), key=_step, reverse=True):
        if _is_whole(checkpoint) and _is_whole(_best(folder, read_state(checkpoint)["best_global_step"]) or checkpoint):
            return checkpoint
        shutil.rmtree(checkpoint)
    return None


def read_state(checkpoint: Path) -> Json:
    state: Json = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
    return state


def progress_of(folder: Path) -> tuple[str | None, list[Json], Path]:
    """The newest checkpoint, the epochs that are done, and the best checkpoint, as the main process finds them."""
    found: Any = (None, [], folder)
    newest = newest_checkpoint(folder) if is_main() else None
    if newest is not None:
        state = read_state(newest)
        found = str(newest), epochs_of(state["log_history"]), _best(folder, state["best_global_step"]) or newest
    (found,) = broadcast_object_list([found])
    return found


def _best(folder: Path, step: int | None) -> Path | None:
    return folder / f"checkpoint-{step}" if step else None


def _is_whole(checkpoint: Path) -> bool:
    """Whether all files are as long as they were when the last of them was written."""
    try:
        sizes = json.loads((checkpoint / SIZES).read_text(encoding="utf-8"))
        return all((checkpoint / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError):
        return False


def _step(checkpoint: Path) -> int:
    digits = checkpoint.name.rpartition("-")[2]
    return int(digits) if digits.isdecimal() else -1


def train(trainer: Trainer, checkpoint: str | None = None) -> None:
    """Trains on from the checkpoint, and says in words of the options what was lacking where it fails.

    Raises:
        EncoderError: where the device has no room for a batch.
        OSError: where the disk has none for a checkpoint; what was done before it goes on from the last.
    """
    args, model, folder = trainer.args, cast(nn.Module, trainer.model), Path(str(trainer.args.output_dir))
    folder.mkdir(parents=True, exist_ok=True)
    needed = BYTES_A_WEIGHT * sum(weights.numel() for weights in model.parameters())
    try:
        trainer.train(resume_from_checkpoint=checkpoint)
    except torch.OutOfMemoryError as error:
        raise EncoderError(
            f"--bert-accumulation: the device has no room for {args.per_device_train_batch_size} documents at once; "
            f"expected a number greater than {args.gradient_accumulation_steps}, or a shorter --bert-max-length"
        ) from error
    except (OSError, RuntimeError, SafetensorError) as error:
        # A full disk shows in as many ways as there are writers of files.
        free = shutil.disk_usage(folder).free
        if free > needed:
            raise
        takes, has = (f"{size / 2**20:,.0f} MiB" for size in (needed, free))
        raise OSError(f"{folder}: no room for a checkpoint, which takes {takes}; {has} are free") from error


def metrics_at(num_labels: int, thresholds: Sequence[float]) -> Callable[..., Json]:
    """Trainer's ``compute_metrics``: at the best of the protocol's thresholds, and with ``own_`` at that of all."""
    grids = {"": thresholds, "own_": GRIDS["full"]}
    counted = {kind: compute_metrics(ThresholdedF1(num_labels, grid)) for kind, grid in grids.items()}

    def compute(prediction: Any, compute_result: bool = True) -> Json:
        each = {kind: count(prediction, compute_result) for kind, count in counted.items()}
        return {f"{kind}{name}": value for kind, found in each.items() for name, value in found.items()}

    return compute


@torch.inference_mode()
def logits_of(trainer: Trainer, part: Any) -> Iterator[Tensor]:
    """Batches of float32 logits [n, C] over a tokenised part, in order, in every process all of them."""
    accelerator, model = trainer.accelerator, cast(nn.Module, trainer.model).eval()
    for batch in trainer.get_test_dataloader(part):
        del batch["labels"]
        with accelerator.autocast():
            logits = model(**batch).logits
        yield without_nan(accelerator.gather_for_metrics(logits.float()))


def without_nan(logits: Tensor) -> Tensor:
    """A model that has diverged predicts nothing."""
    return logits.nan_to_num(nan=-math.inf, posinf=math.inf, neginf=-math.inf)
