"""BERT, or another encoder of the hub, fine-tuned as a whole with transformers' Trainer."""

import gc
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from corpora.corpus import Corpus
from files import Json, atomic_file, digest
from machine import is_main, number_of_processes, peak_memory
from progress import progress
from safetensors.torch import load_model
from transformers import PreTrainedModel, PrinterCallback, ProgressCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.integrations.integration_utils import TensorBoardCallback
from transformers.utils import SAFE_WEIGHTS_NAME

from encoders.bert_options import BertSettings, Precision
from encoders.encoder import EncoderError, Report, TrainedModel
from encoders.frozen import model_name
from encoders.pretrained import load_classifier, load_tokenizer, tokenize
from encoders.saved_bert import copy_checkpoint
from encoders.scoring import GRIDS, score_own, score_test, score_validation
from encoders.training import EpochReport, epochs_of, is_over, logits_of, metrics_at, progress_of, train, without_nan
from fused_balanced_loss import BalancedLoss, LabelStatistics, LossSpec
from fused_balanced_loss.integrations.fused_head import fuse_classifier
from fused_balanced_loss.integrations.transformers import DataCollatorForMultiLabel, compute_loss_func

# The search is one for all seeds of a loss.
SEARCH_SEED = 0
# Which documents a part of the training documents has is the same in all runs.
PART_SEED = 0


def device_precision() -> Precision:
    if not torch.cuda.is_available():
        return "fp32"
    return "bf16" if torch.cuda.is_bf16_supported() else "fp16"


@dataclass
class BertEncoder:
    """See :class:`encoders.encoder.Encoder`. Under torchrun every process calls it, and ``report`` the main one alone.

    Args:
        model: any name or local folder that AutoModelForSequenceClassification takes.
        asked: settings; what is "auto" among them is decided here.
        cache: folder of tokens and searches.
        thresholds: the protocol's grid.
    """

    model: str
    asked: BertSettings
    cache: Path
    thresholds: Sequence[float] = GRIDS["paper"]

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
        self.corpus, length = corpus, self._settings.max_length
        self.tokenizer = load_tokenizer(self.model, length)
        self.tokens = tokenize(corpus, self.tokenizer, length, self.cache)

    def run(self, corpus: Corpus, spec: LossSpec, seed: int, folder: Path, report: Report) -> Json:
        settings, folder = self._settings, folder.resolve()
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        search = self._search(spec) if settings.learning_rate is None else []
        rate = search[0]["learning_rate"] if settings.learning_rate is None else settings.learning_rate
        trainer = self._trainer(spec, seed, rate, settings.epochs, folder, self._callbacks(folder.name, report))
        newest, epochs, best = progress_of(folder)
        for epoch in epochs if is_main() else ():
            report(epoch)
        if not is_over(epochs, settings.epochs, settings.patience):
            train(trainer, newest)
            _, epochs, best = progress_of(folder)
        start = time.perf_counter()
        model: Any = trainer.model
        load_model(model, best / SAFE_WEIGHTS_NAME)
        validation = score_validation(corpus, logits_of(trainer, self.tokens["validation"]), self.thresholds)
        protocol, own = validation["protocol"], validation["own"]
        scores = [epoch["micro_f1"] for epoch in epochs]
        best_epoch = 1 + scores.index(max(scores))

        def write(folder: Path) -> Json:
            return copy_checkpoint(best, self.tokenizer, settings.max_length, folder)

        result = {
            "best_epoch": best_epoch,
            **{name: protocol[name] for name in ("threshold", "validation", "at_edge")},
            **score_test(corpus, logits_of(trainer, self.tokens["test"]), protocol["threshold"]),
            # Trainer keeps the best epoch by the protocol alone.
            **score_own(corpus, logits_of(trainer, self.tokens["test"]), own),
            "own_epoch": best_epoch,
            "model": TrainedModel(write, own),
            "learning_rate": rate,
            "search": search,
            "seconds": epochs[-1]["seconds"] + time.perf_counter() - start,
            "peak_memory_bytes": peak_memory(device),
        }
        # The next run's trainer would have its weights beside these, which hang together in a circle.
        del trainer, model
        gc.collect()
        # No process may still read a checkpoint when the main one has the run's folder removed.
        PartialState().wait_for_everyone()
        return result

    def _trainer(
        self,
        spec: LossSpec,
        seed: int,
        rate: float,
        epochs: int,
        folder: Path,
        callbacks: Sequence[TrainerCallback],
        *,
        checkpoints: bool = True,
    ) -> Trainer:
        """A Trainer that evaluates after every epoch, and keeps the newest two checkpoints and the best.

        Raises:
            EncoderError: for settings that the devices cannot have.
        """
        settings, on_gpu = self._settings, torch.cuda.is_available()
        warms_up = settings.schedule == "constant" and settings.warmup
        batch = self._device_batch()
        try:
            arguments = TrainingArguments(
                output_dir=str(folder),
                seed=seed,
                data_seed=seed,
                num_train_epochs=epochs,
                learning_rate=rate,
                per_device_train_batch_size=batch,
                per_device_eval_batch_size=batch,
                gradient_accumulation_steps=settings.accumulation,
                weight_decay=settings.weight_decay,
                lr_scheduler_type="constant_with_warmup" if warms_up else settings.schedule,
                warmup_steps=settings.warmup,
                bf16=settings.precision == "bf16",
                fp16=settings.precision == "fp16",
                eval_strategy="epoch",
                save_strategy="epoch" if checkpoints else "no",
                logging_strategy="epoch",
                metric_for_best_model="micro_f1",
                greater_is_better=True,
                # The newest may be half-written when a process is killed; the best is kept besides.
                save_total_limit=2,
                batch_eval_metrics=True,
                # A loss that is no number shows, and no step waits for the device to look.
                logging_nan_inf_filter=False,
                use_cpu=not on_gpu,
                dataloader_pin_memory=on_gpu,
                ddp_find_unused_parameters=False,
                report_to="none",
            )
        except ValueError as error:
            raise EncoderError(f"--bert-precision {settings.precision}: {error}") from error
        documents, statistics = self.training_part
        losses = {"loss": compute_loss_func(BalancedLoss(spec, statistics))}

        def new_model() -> PreTrainedModel:
            # Trainer makes one anew for every training.
            names = self.corpus.label_names
            model = load_classifier(self.model, names, settings.max_length, settings.initial_bias)
            if settings.fused_classifier:
                losses["loss"] = fuse_classifier(model, spec, statistics).compute_loss
            return model

        trainer = Trainer(
            model_init=new_model,
            args=arguments,
            train_dataset=documents,
            eval_dataset=self.tokens["validation"],
            processing_class=self.tokenizer,
            data_collator=DataCollatorForMultiLabel(self.tokenizer, self.corpus.num_labels),
            compute_loss_func=lambda *outputs, **more: losses["loss"](*outputs, **more),
            compute_metrics=metrics_at(self.corpus.num_labels, self.thresholds),
            preprocess_logits_for_metrics=lambda logits, _: without_nan(logits),
            callbacks=list(callbacks),
        )
        for printing in (PrinterCallback, ProgressCallback):
            trainer.remove_callback(printing)
        return trainer

    @cached_property
    def training_part(self) -> tuple[Any, LabelStatistics]:
        """Training documents and their label counts."""
        number, train_part = self._settings.train_documents, self.corpus.train
        if number is None or number >= len(train_part):
            return self.tokens["train"], self.corpus.statistics
        rows = torch.randperm(len(train_part), generator=torch.Generator().manual_seed(PART_SEED))[:number]
        statistics = LabelStatistics.from_targets(train_part.targets[rows], degenerate="ignore")
        return self.tokens["train"].select(rows.tolist()), statistics

    def _device_batch(self) -> int:
        processes, parts = number_of_processes(), self._settings.accumulation
        devices = processes if processes > 1 else max(1, torch.cuda.device_count())
        batch, rest = divmod(self._settings.batch_size, devices * parts)
        if rest or not batch:
            raise EncoderError(
                f"--bert-batch-size: expected a multiple of {devices * parts}, the {devices} device(s) times "
                f"--bert-accumulation {parts}, got {self._settings.batch_size}"
            )
        return batch

    def _search(self, spec: LossSpec) -> list[Json]:
        """``learning_rate``, best ``micro_f1`` and ``seconds`` of each rate, the best first; of equals the one that is
        better at the method's own threshold, then the lower rate.

        A file takes each result as it comes, so that an interrupted search goes on with the rates that are left.
        """
        settings = self._settings
        made_of: Json = {"corpus": self.corpus.fingerprint, "model": self.name, "loss": asdict(spec)}
        made_of["training"] = {**settings.as_json(), "epochs": None, "patience": None}
        if self.thresholds != GRIDS["paper"]:
            made_of["thresholds"] = self.thresholds
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
            trainer = self._trainer(spec, *how, checkpoints=False)
            train(trainer)
            epochs = epochs_of(trainer.state.log_history)
            best = {name: max(epoch[name] for epoch in epochs) for name in ("micro_f1", "own_micro_f1")}
            found[str(rate)] = {"learning_rate": rate, **best, "seconds": time.perf_counter() - start}
            if is_main():
                with atomic_file(folder / "rates.json") as path:
                    path.write_text(json.dumps(found), encoding="utf-8")
            del trainer
            gc.collect()

        def order(trial: Json) -> tuple[float, float, float]:
            # At the protocol's thresholds some losses predict nothing for the first epochs, whatever the rate.
            return -trial["micro_f1"], -trial.get("own_micro_f1", 0.0), trial["learning_rate"]

        return sorted(found.values(), key=order)

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
