"""Settings of the fine-tuning, and their command-line options; light, so that every command can have them."""

from __future__ import annotations

import argparse
import math
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

from argument_types import integer, number

Schedule = Literal["constant", "linear", "cosine"]
Precision = Literal["auto", "bf16", "fp16", "fp32"]
SEARCH = "search"
# What a result does not depend on.
_ASIDE = {"aside": True}


@dataclass(frozen=True)
class BertSettings:
    """The paper's, as far as it states them: length 512, batch 32, AdamW with weight decay 0.01, rate by search.

    Attributes:
        patience: epochs without a better validation micro-F1 after which training stops; 0 never stops it.
        batch_size: documents a step, over all devices and accumulated batches.
        accumulation: batches that a device works through for a step.
        learning_rate: None searches among ``search_rates``, ``search_epochs`` each.
        warmup: share of the steps in which the rate rises.
        initial_bias: of the new classifier: a negative one begins with rare labels, as Lin et al. (ICCV 2017) do.
        train_documents: a random part of the training documents, the same for all runs; None for all.
        precision: ``auto`` is bf16 or fp16 where the device has it.
        fused_classifier: classifier and loss in one: training makes no logits; the result is the same but for rounding.
        checkpoint_steps: steps from checkpoint to checkpoint; there is one after every epoch besides.
        keep: folder that takes the best model of every run; None keeps none.
        logs: folder of logs, also for TensorBoard; None for none.
    """

    epochs: int = 20
    patience: int = 5
    batch_size: int = 32
    accumulation: int = 1
    learning_rate: float | None = None
    search_rates: tuple[float, ...] = (2e-5, 5e-5, 1e-4, 2e-4, 4e-4)
    search_epochs: int = 5
    weight_decay: float = 0.01
    schedule: Schedule = "constant"
    warmup: float = 0.0
    initial_bias: float = 0.0
    max_length: int = 512
    train_documents: int | None = None
    precision: Precision = "auto"
    fused_classifier: bool = field(default=False, metadata=_ASIDE)
    checkpoint_steps: int = field(default=500, metadata=_ASIDE)
    keep: Path | None = field(default=None, metadata=_ASIDE)
    logs: Path | None = field(default=None, metadata=_ASIDE)

    def as_json(self) -> dict[str, Any]:
        """All that a result depends on."""
        aside = {part.name for part in fields(self) if part.metadata.get("aside")}
        if self.learning_rate is not None:
            aside |= {"search_rates", "search_epochs"}
        settings = {name: value for name, value in asdict(self).items() if name not in aside}
        return settings | {name: list(value) for name, value in settings.items() if isinstance(value, tuple)}


def add_bert_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("bert", "fine-tuning; under torchrun on several devices")
    default = BertSettings()

    def add(name: str, kind: Any, text: str, **options: Any) -> None:
        value = getattr(default, name)
        # The help shows every default that is one.
        options.setdefault("default", argparse.SUPPRESS if value is None else value)
        group.add_argument(f"--bert-{name.replace('_', '-')}", type=kind, help=text, **options)

    add("epochs", integer(1), "the most passes over the training documents")
    add("patience", integer(0), "epochs without a better validation micro-F1 after which to stop; 0 is never")
    add("batch_size", integer(1), "documents a step, over all devices and accumulated batches")
    add("accumulation", integer(1), "batches that a device works through for a step")
    add(
        "learning_rate",
        _rate_or_search,
        f"a number, or {SEARCH!r}: the one of --bert-search-rates that is best on validation, by loss",
        default=SEARCH,
        metavar=f"NUMBER|{SEARCH}",
    )
    add("search_rates", number(0, math.inf), "what the search tries", nargs="+", metavar="RATE")
    add("search_epochs", integer(1), "passes over the training documents for each")
    add("weight_decay", number(0, math.inf, closed=True), "AdamW's")
    add("schedule", str, "course of the learning rate", choices=get_args(Schedule))
    add("warmup", number(0, 1, closed=True), "share of the steps in which the learning rate rises")
    add("initial_bias", number(-math.inf, math.inf), "where the classifier's bias starts")
    add("max_length", integer(3), "tokens that are read of a text")
    add("train_documents", integer(1), "train on so many documents, a random part (default: all)")
    add("precision", str, "auto is bf16 or fp16 where the device has it", choices=get_args(Precision))
    add("checkpoint_steps", integer(1), "steps between checkpoints; there is one after every epoch besides")
    add("keep", Path, "folder for the best model of every run, in the format of transformers", metavar="FOLDER")
    add("logs", Path, "folder for logs, also for TensorBoard", metavar="FOLDER")


def bert_settings(options: argparse.Namespace) -> BertSettings:
    given: dict[str, Any] = {
        part.name: getattr(options, f"bert_{part.name}", part.default) for part in fields(BertSettings)
    }
    if given["learning_rate"] == SEARCH:
        given["learning_rate"] = None
    # Each rate once, in rising order, so that the same search is the same record.
    given["search_rates"] = tuple(sorted(set(given["search_rates"])))
    return BertSettings(**given)


def _rate_or_search(text: str) -> float | str:
    return SEARCH if text == SEARCH else number(0, math.inf)(text)
