"""A fine-tuning of the tiny encoder in a process of its own, which may kill itself (test_fine_tuning.py).

Usage: fine_tuning_run.py ENCODER CACHE FOLDER RESULT.json DEATH [SETTING=VALUE ...], where DEATH is "never", "step:5",
or the name of a file of a checkpoint and which writing of it: "optimizer.pt:2".
"""

import json
import os
import signal
import sys
from pathlib import Path

import places  # noqa: F401  it puts the examples on the path
import torch
from encoders.bert import BertEncoder
from encoders.bert_options import BertSettings
from encoders.training import EpochReport
from machine import is_main
from tiny_bert import tiny_corpus

from fused_balanced_loss import LossSpec

SETTINGS = {"epochs": 3, "patience": 0, "batch_size": 8, "learning_rate": 3e-3, "max_length": 16, "checkpoint_steps": 3}


def die_at(death):
    what, _, when = death.partition(":")
    save, on_step_end, written = torch.save, EpochReport.on_step_end, []

    def save_half(value, path, *rest):
        save(value, path, *rest)
        written.append(path)
        if [Path(one).name for one in written].count(what) == int(when):
            os.truncate(path, os.path.getsize(path) // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    def stop(self, args, state, control, **rest):
        if state.global_step == int(when):
            os.kill(os.getpid(), signal.SIGKILL)
        return on_step_end(self, args, state, control, **rest)

    if what == "step":
        EpochReport.on_step_end = stop
    elif what != "never":
        torch.save = save_half


def main(model, cache, folder, result, death, *changes):
    die_at(death)
    settings = SETTINGS | {name: json.loads(value) for name, value in (change.split("=") for change in changes)}
    corpus = tiny_corpus()
    encoder = BertEncoder(model, BertSettings(**settings), Path(cache))
    encoder.prepare(corpus)
    epochs = []
    done = encoder.run(corpus, LossSpec.preset("DB", corpus="reuters"), 0, Path(folder), epochs.append)
    del done["model"]
    if is_main():
        predictions = done.pop("predictions").to_lists()
        Path(result).write_text(json.dumps({"epochs": epochs, **done, "predictions": predictions}))


if __name__ == "__main__":
    main(*sys.argv[1:])
