"""transformers' Trainer for one fine-tuning with one of the losses, and the logits of what it has trained."""

import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from corpora.corpus import Corpus
from machine import number_of_processes
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.utils import SAFE_WEIGHTS_NAME

from encoders.bert_options import BertSettings, Precision
from encoders.encoder import EncoderError
from encoders.pretrained import Tokens, load_classifier
from fused_balanced_loss import BalancedLoss, LabelStatistics, LossSpec
from fused_balanced_loss.integrations.fused_head import fuse_classifier
from fused_balanced_loss.integrations.transformers import DataCollatorForMultiLabel, compute_loss_func, compute_metrics
from fused_balanced_loss.metrics import ThresholdedF1

# Which documents a part of the training documents has is the same in all runs.
PART_SEED = 0
# In a checkpoint: itself and AdamW's two moments, in float32.
BYTES_A_WEIGHT = 12


def device_precision() -> Precision:
    if not torch.cuda.is_available():
        return "fp32"
    return "bf16" if torch.cuda.is_bf16_supported() else "fp16"


@dataclass(frozen=True)
class FineTuning:
    """What all fine-tunings on a corpus share. model: name of the hub or local folder."""

    corpus: Corpus
    tokens: Tokens
    tokenizer: PreTrainedTokenizerBase
    model: str
    settings: BertSettings

    def trainer(
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
        settings, corpus, on_gpu = self.settings, self.corpus, torch.cuda.is_available()
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
        documents, statistics = self.train
        fused = _FusedLoss(spec, statistics) if settings.fused_classifier else None
        loss: Callable[..., Tensor] = fused or compute_loss_func(BalancedLoss(spec, statistics))

        def new_model() -> PreTrainedModel:
            model = load_classifier(self.model, corpus.label_names, settings.max_length, settings.initial_bias)
            if fused is not None:
                fused.take(model)
            return model

        trainer = Trainer(
            model_init=new_model,
            args=arguments,
            train_dataset=documents,
            eval_dataset=self.tokens["validation"],
            processing_class=self.tokenizer,
            data_collator=DataCollatorForMultiLabel(self.tokenizer, corpus.num_labels),
            compute_loss_func=loss,
            compute_metrics=compute_metrics(ThresholdedF1(corpus.num_labels)),
            preprocess_logits_for_metrics=lambda logits, _: _without_nan(logits),
            callbacks=list(callbacks),
        )
        for printing in (PrinterCallback, ProgressCallback):
            trainer.remove_callback(printing)
        return trainer

    @cached_property
    def train(self) -> tuple[Any, LabelStatistics]:
        """Training documents and their label counts."""
        number = self.settings.train_documents
        if number is None or number >= len(self.corpus.train):
            return self.tokens["train"], self.corpus.statistics
        order = torch.randperm(len(self.corpus.train), generator=torch.Generator().manual_seed(PART_SEED))
        rows = order[:number]
        statistics = LabelStatistics.from_targets(self.corpus.train.targets[rows], degenerate="ignore")
        return self.tokens["train"].select(rows.tolist()), statistics

    def _device_batch(self) -> int:
        processes, parts = number_of_processes(), self.settings.accumulation
        devices = processes if processes > 1 else max(1, torch.cuda.device_count())
        batch, rest = divmod(self.settings.batch_size, devices * parts)
        if rest or not batch:
            raise EncoderError(
                f"--bert-batch-size: expected a multiple of {devices * parts}, the {devices} device(s) times "
                f"--bert-accumulation {parts}, got {self.settings.batch_size}"
            )
        return batch


class _FusedLoss:
    """The loss function of whichever model Trainer has made last: it makes one anew for every training."""

    def __init__(self, spec: LossSpec, statistics: LabelStatistics) -> None:
        self.spec, self.statistics = spec, statistics

    def take(self, model: PreTrainedModel) -> None:
        self.head = fuse_classifier(model, self.spec, self.statistics)

    def __call__(self, outputs: Any, labels: Any, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        return self.head.compute_loss(outputs, labels, num_items_in_batch)


def model_of(trainer: Trainer) -> PreTrainedModel:
    return cast(PreTrainedModel, trainer.model)


def train(trainer: Trainer, checkpoint: str | None = None) -> None:
    """Trains on from the checkpoint, and says in words of the options what was lacking where it fails.

    Raises:
        EncoderError: where the device has no room for a batch.
        OSError: where the disk has none for a checkpoint; what was done before it goes on from the last.
    """
    args, folder = trainer.args, Path(str(trainer.args.output_dir))
    folder.mkdir(parents=True, exist_ok=True)
    needed = BYTES_A_WEIGHT * sum(weights.numel() for weights in model_of(trainer).parameters())
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


def load_weights(trainer: Trainer, checkpoint: Path) -> None:
    model_of(trainer).load_state_dict(load_file(checkpoint / SAFE_WEIGHTS_NAME))


@torch.inference_mode()
def logits_of(trainer: Trainer, part: Any) -> Iterator[Tensor]:
    """Batches of float32 logits [n, C] over a tokenised part, in order, in every process all of them."""
    accelerator, model = trainer.accelerator, model_of(trainer).eval()
    for batch in trainer.get_test_dataloader(part):
        del batch["labels"]
        with accelerator.autocast():
            logits = model(**batch).logits
        yield _without_nan(accelerator.gather_for_metrics(logits.float()))


def _without_nan(logits: Tensor) -> Tensor:
    """A model that has diverged predicts nothing."""
    return logits.nan_to_num(nan=-math.inf, posinf=math.inf, neginf=-math.inf)
