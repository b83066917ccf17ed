"""BERT, or another encoder of the hub, fine-tuned as a whole with transformers' Trainer."""

import gc
import sys
import time
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch
from corpora.corpus import Corpus
from files import Json, Say, digest
from machine import from_main, is_main, peak_memory, wait_for_all
from safetensors import SafetensorError
from transformers import Trainer, TrainerCallback
from transformers.integrations.integration_utils import TensorBoardCallback

from encoders.bert_options import BertSettings
from encoders.checkpoints import newest_checkpoint, read_state
from encoders.encoder import Report
from encoders.epoch_report import EpochReport, StepBar, epochs_of, is_over
from encoders.fine_tuning import FineTuning, device_precision, explained_failures, load_weights, logits_of, model_of
from encoders.frozen import model_name
from encoders.pretrained import load_tokenizer, quiet, tokenize
from encoders.rate_search import NAME, search_learning_rate
from encoders.scoring import score_test, score_validation
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
    say: Say = field(default=lambda text: None, repr=False)

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

    def prepare(self, corpus: Corpus, say: Say) -> None:
        settings = self._settings
        self.say = say
        tokenizer = load_tokenizer(self.model, settings.max_length)
        tokens = tokenize(corpus, tokenizer, settings.max_length, self.cache, say, _warn)
        self.tuning = FineTuning(corpus, tokens, tokenizer, self.model, settings)

    def run(self, corpus: Corpus, spec: LossSpec, seed: int, folder: Path, report: Report) -> Json:
        settings, folder, tokens = self._settings, folder.resolve(), self.tuning.tokens
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        search = self._search(corpus, spec) if settings.learning_rate is None else []
        rate = search[0][NAME] if settings.learning_rate is None else settings.learning_rate
        trainer = self.tuning.trainer(spec, seed, rate, settings.epochs, folder, self._callbacks(folder.name, report))
        newest, epochs, best = _progress(folder)
        for epoch in epochs if is_main() else ():
            report(epoch)
        if not is_over(epochs, settings.epochs, settings.patience):
            with quiet(), explained_failures(trainer):
                trainer.train(resume_from_checkpoint=newest)
            _, epochs, best = _progress(folder)
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
        wait_for_all()
        return result

    def _search(self, corpus: Corpus, spec: LossSpec) -> list[Json]:
        """The search's results, best first: found, or made."""
        settings, rates = self._settings, self._settings.search_rates
        training = {**settings.as_json(), "epochs": None, "patience": None}
        made_of = {"corpus": corpus.fingerprint, "model": self.name, "loss": asdict(spec), "training": training}
        folder = (self.cache / f"search-{digest(made_of)}").resolve()

        def say(epoch: Json) -> None:
            rate = f"learning rate {trainer.args.learning_rate:g} of {len(rates)} to try"
            so_far = f"{epoch['number']}/{settings.search_epochs}  validation micro-F1 {100 * epoch['micro_f1']:.2f}"
            self.say(f"{rate}, epoch {so_far}")

        # A trial is done again from its beginning: it has no checkpoint.
        callbacks = [EpochReport(0, sys.maxsize, say, None), StepBar("search")]
        how = SEARCH_SEED, rates[0], settings.search_epochs, folder, callbacks
        trainer = self.tuning.trainer(spec, *how, checkpoints=False)
        return search_learning_rate(trainer, rates, folder / "study.db")

    def _callbacks(self, name: str, report: Report) -> list[TrainerCallback]:
        settings, logs = self._settings, self.asked.logs
        if logs is not None:
            logs.mkdir(parents=True, exist_ok=True)
        log = None if logs is None else logs / f"{name}.jsonl"
        callbacks = [EpochReport(settings.patience, settings.checkpoint_steps, report, log), StepBar(name)]
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
            _warn(f"the model could not be kept in {folder}: {error}")


def _progress(folder: Path) -> tuple[str | None, list[Json], Path]:
    """The newest checkpoint, the epochs that are done, and the best checkpoint, as the main process finds them."""
    found: tuple[str | None, list[Json], Path] = (None, [], folder)
    newest = newest_checkpoint(folder) if is_main() else None
    if newest is not None:
        state = read_state(newest)
        found = str(newest), epochs_of(state["log_history"]), Path(state["best_model_checkpoint"] or newest)
    return from_main(found)


def _warn(text: str) -> None:
    if is_main():
        print(f"warning: {text}", file=sys.stderr)
