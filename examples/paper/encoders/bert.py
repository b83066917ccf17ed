"""BERT, or another encoder of the hub, fine-tuned as a whole with transformers' Trainer."""

import gc
import json
import sys
import time
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from accelerate import PartialState
from corpora.corpus import Corpus
from files import Json, atomic_file, digest
from machine import is_main, peak_memory
from progress import progress
from safetensors import SafetensorError
from transformers import Trainer, TrainerCallback
from transformers.integrations.integration_utils import TensorBoardCallback

from encoders.bert_options import BertSettings
from encoders.encoder import EncoderError, Report
from encoders.fine_tuning import FineTuning, device_precision, load_weights, logits_of, model_of, train
from encoders.frozen import model_name
from encoders.pretrained import load_tokenizer, tokenize
from encoders.scoring import score_test, score_validation
from encoders.trainer_history import EpochReport, epochs_of, is_over, progress_of
from fused_balanced_loss import LossSpec

# The search is one for all seeds of a loss.
SEARCH_SEED = 0


@dataclass
class BertEncoder:
    """See :class:`encoders.encoder.Encoder`. Under torchrun every process calls it, and ``report`` the main one alone.

    Args:
        model: any name or local folder that AutoModelForSequenceClassification takes.
        asked: settings; what is "auto" among them is decided here.
        cache: folder of tokens and searches.
    """

    model: str
    asked: BertSettings
    cache: Path

    distributed = True

    @cached_property
    def name(self) -> str:
        return f"bert:{model_name(self.model)}"

    @property
    def num_epochs(self) -> int:
        return self.asked.epochs

    @property
    def settings(self) -> Json:
        fused = {"fused_classifier": True} if self.asked.fused_classifier else {}
        return {"training": self._settings.as_json(), **fused}

    @cached_property
    def _settings(self) -> BertSettings:
        return replace(self.asked, precision=device_precision()) if self.asked.precision == "auto" else self.asked

    def prepare(self, corpus: Corpus) -> None:
        settings = self._settings
        tokenizer = load_tokenizer(self.model, settings.max_length)
        tokens = tokenize(corpus, tokenizer, settings.max_length, self.cache)
        self.tuning = FineTuning(corpus, tokens, tokenizer, self.model, settings)

    def run(self, corpus: Corpus, spec: LossSpec, seed: int, folder: Path, report: Report) -> Json:
        settings, folder, tokens = self._settings, folder.resolve(), self.tuning.tokens
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        search = self._search(corpus, spec) if settings.learning_rate is None else []
        rate = search[0]["learning_rate"] if settings.learning_rate is None else settings.learning_rate
        trainer = self.tuning.trainer(spec, seed, rate, settings.epochs, folder, self._callbacks(folder.name, report))
        newest, epochs, best = progress_of(folder)
        for epoch in epochs if is_main() else ():
            report(epoch)
        if not is_over(epochs, settings.epochs, settings.patience):
            train(trainer, newest)
            _, epochs, best = progress_of(folder)
        start = time.perf_counter()
        load_weights(trainer, best)
        self._keep(trainer, folder.name)
        validation = score_validation(corpus, logits_of(trainer, tokens["validation"]))
        scores = [epoch["micro_f1"] for epoch in epochs]
        result = {
            "best_epoch": 1 + scores.index(max(scores)),
            "threshold": validation.threshold,
            "validation": validation.scores,
            **score_test(corpus, logits_of(trainer, tokens["test"]), validation.threshold),
            "learning_rate": rate,
            "search": search,
            "seconds": epochs[-1]["seconds"] + time.perf_counter() - start,
            "peak_memory_bytes": peak_memory(device),
        }
        # The next run's trainer would have its weights beside these, which hang together in a circle.
        del trainer
        gc.collect()
        # No process may still read a checkpoint when the main one has the run's folder removed.
        PartialState().wait_for_everyone()
        return result

    def _search(self, corpus: Corpus, spec: LossSpec) -> list[Json]:
        """``learning_rate``, best ``micro_f1`` and ``seconds`` of each rate, the best first, of equals the lower rate.

        A file takes each result as it comes, so that an interrupted search goes on with the rates that are left.
        """
        settings = self._settings
        training = {**settings.as_json(), "epochs": None, "patience": None}
        made_of = {"corpus": corpus.fingerprint, "model": self.name, "loss": asdict(spec), "training": training}
        folder = (self.cache / f"search-{digest(made_of)}").resolve()
        found = _read_search(folder / "rates.json")
        rates = settings.search_rates
        for rate in rates:
            if str(rate) in found:
                continue
            start = time.perf_counter()

            def say(epoch: Json, rate: float = rate) -> None:
                progress.epoch(
                    epoch, settings.search_epochs, f"learning rate {rate:g} of {len(settings.search_rates)}, "
                )

            callbacks = [EpochReport(0, sys.maxsize, say, None)]
            how = SEARCH_SEED, rate, settings.search_epochs, folder, callbacks
            # A rate is tried from its beginning: it has no checkpoint.
            trainer = self.tuning.trainer(spec, *how, checkpoints=False)
            train(trainer)
            best = max(epoch["micro_f1"] for epoch in epochs_of(trainer.state.log_history))
            found[str(rate)] = {"learning_rate": rate, "micro_f1": best, "seconds": time.perf_counter() - start}
            if is_main():
                with atomic_file(folder / "rates.json") as path:
                    path.write_text(json.dumps(found), encoding="utf-8")
            del trainer
            gc.collect()
        return sorted(found.values(), key=lambda trial: (-trial["micro_f1"], trial["learning_rate"]))

    def _callbacks(self, name: str, report: Report) -> list[TrainerCallback]:
        settings, logs = self._settings, self.asked.logs
        if logs is not None:
            logs.mkdir(parents=True, exist_ok=True)
        log = None if logs is None else logs / f"{name}.jsonl"
        callbacks: list[TrainerCallback] = [EpochReport(settings.patience, settings.checkpoint_steps, report, log)]
        if logs is not None and is_main():
            from torch.utils.tensorboard import SummaryWriter

            callbacks.append(TensorBoardCallback(SummaryWriter(str(logs / name))))
        return callbacks

    def _keep(self, trainer: Trainer, name: str) -> None:
        if self.asked.keep is None or not is_main():
            return
        folder = self.asked.keep / name
        try:
            model_of(trainer).save_pretrained(folder)
            self.tuning.tokenizer.save_pretrained(folder)
        except (OSError, SafetensorError) as error:
            progress.warn(f"the model could not be kept in {folder}: {error}")


def _read_search(file: Path) -> dict[str, Json]:
    try:
        found: dict[str, Json] = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise EncoderError(
            f"{file}: the search's record cannot be read ({error}); remove it, and the search begins anew"
        ) from error
    return found
