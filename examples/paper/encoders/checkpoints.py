"""Which checkpoints of Trainer are whole, whenever the process that wrote them was killed."""

import json
import shutil
import zipfile
from pathlib import Path

from files import Json, atomic_file
from safetensors import SafetensorError, safe_open

STATE = "trainer_state.json"
WEIGHTS = "model.safetensors"
# Written by torch.save, as zip files, whose directory comes last.
SAVED = ("optimizer.pt", "scheduler.pt", "training_args.bin")


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint in ``folder``; removes what is newer and broken."""
    for checkpoint in sorted(folder.glob("checkpoint-*"), key=_step, reverse=True):
        if _is_whole(checkpoint):
            return checkpoint
        shutil.rmtree(checkpoint)
    return None


def read_state(checkpoint: Path) -> Json:
    """Trainer's state, with the best checkpoint's path as it is now, should the folder have moved."""
    path = checkpoint / STATE
    state: Json = json.loads(path.read_text(encoding="utf-8"))
    best = _best(checkpoint, state)
    if best is not None and state["best_model_checkpoint"] != str(best):
        state["best_model_checkpoint"] = str(best)
        with atomic_file(path) as temporary:
            temporary.write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")
    return state


def _best(checkpoint: Path, state: Json) -> Path | None:
    step = state.get("best_global_step")
    return checkpoint.with_name(f"checkpoint-{step}") if step else None


def _is_whole(checkpoint: Path) -> bool:
    """Trainer writes weights, optimizer and schedule, each process its random state, and the main one last its own."""
    try:
        state = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
        processes = state["stateful_callbacks"]["EpochReport"]["attributes"]["processes"]
        for folder in {checkpoint, _best(checkpoint, state) or checkpoint}:
            # It is as long as its header says, or is not opened.
            with safe_open(folder / WEIGHTS, framework="pt"):
                pass
    except (OSError, ValueError, AttributeError, KeyError, TypeError, SafetensorError):
        return False
    randoms = ["rng_state.pth"] if processes == 1 else [f"rng_state_{rank}.pth" for rank in range(processes)]
    return all(zipfile.is_zipfile(checkpoint / name) for name in (*SAVED, *randoms))


def _step(checkpoint: Path) -> int:
    digits = checkpoint.name.rpartition("-")[2]
    return int(digits) if digits.isdecimal() else -1
