# ruff: noqa: RUF009  setting() makes the fields of a dataclass
"""Settings of the fine-tuning, which are command-line options too; light, so that every command can have them."""

import argparse
import math
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

from settings import add_settings, given_settings, integer, not_negative, number, positive, setting

Schedule = Literal["constant", "linear", "cosine"]
Precision = Literal["auto", "bf16", "fp16", "fp32"]
SEARCH = "search"
RATE = f"a number, or {SEARCH!r}: the one of --bert-search-rates that is best on validation, by loss"


def _rate_or_search(text: str) -> float | None:
    return None if text == SEARCH else positive(text)


@dataclass(frozen=True)
class BertSettings:
    """The paper's, as far as it states them: length 512, batch 32, AdamW with weight decay 0.01, rate by search.

    Each field says what it is. ``learning_rate`` None searches; ``train_documents`` None takes all; ``logs`` None
    writes nothing. ``initial_bias``: a negative one begins with rare labels, as Lin et al. (ICCV 2017) do.
    """

    epochs: int = setting(20, integer(1), "the most passes over the training documents")
    patience: int = setting(5, integer(0), "epochs without a better validation micro-F1 before stopping; 0: never")
    batch_size: int = setting(32, integer(1), "documents a step, over all devices and accumulated batches")
    accumulation: int = setting(1, integer(1), "batches that a device works through for a step")
    learning_rate: float | None = setting(None, _rate_or_search, RATE, default=SEARCH, metavar=f"NUMBER|{SEARCH}")
    search_rates: tuple[float, ...] = setting((2e-5, 5e-5, 1e-4, 2e-4, 4e-4), positive, "what it tries", nargs="+")
    search_epochs: int = setting(5, integer(1), "passes over the training documents for each")
    weight_decay: float = setting(0.01, not_negative, "AdamW's")
    schedule: Schedule = setting("constant", str, "course of the learning rate", choices=get_args(Schedule))
    warmup: float = setting(0.0, number(0, 1, closed=True), "share of the steps in which the learning rate rises")
    initial_bias: float = setting(0.0, number(-math.inf, math.inf), "where a new classifier's bias starts")
    max_length: int = setting(512, integer(3), "tokens that are read of a text")
    train_documents: int | None = setting(None, integer(1), "of a random part, the same for all runs (default: all)")
    precision: Precision = setting("auto", str, "auto is bf16 or fp16 where there is", choices=get_args(Precision))
    checkpoint_steps: int = setting(500, integer(1), "steps between checkpoints within an epoch", aside=True)
    logs: Path | None = setting(None, Path, "folder for logs, also for TensorBoard", aside=True)
    fused_classifier: bool = False

    def as_json(self) -> dict[str, Any]:
        """All that a result depends on but ``fused_classifier``, with which it is the same but for rounding."""
        aside = {"fused_classifier"} | {part.name for part in fields(self) if part.metadata.get("aside")}
        if self.learning_rate is not None:
            aside |= {"search_rates", "search_epochs"}
        settings = {name: value for name, value in asdict(self).items() if name not in aside}
        return settings | {name: list(value) for name, value in settings.items() if isinstance(value, tuple)}


def add_bert_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("bert", "fine-tuning; under torchrun on several devices")
    add_settings(group, BertSettings, "bert-")


def bert_settings(options: argparse.Namespace) -> BertSettings:
    settings = BertSettings(**given_settings(BertSettings, options, "bert-"))
    # Each rate once, in rising order, so that the same search is the same record.
    return replace(settings, search_rates=tuple(sorted(set(settings.search_rates))))
