"""Command line of reproduce_reuters.py."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from generated_corpus import MIN_DOCUMENTS, NUM_DOCUMENTS
from tfidf_network import TrainingSettings

from fused_balanced_loss.spec import CONVENTIONS, PAPER_LOSSES, Convention

METHODS = ("SVM", *PAPER_LOSSES)


@dataclass(frozen=True)
class Options:
    methods: tuple[str, ...]
    seeds: int
    convention: Convention
    training: TrainingSettings
    output: Path
    threads: int
    generated: bool
    documents: int


def parse_options(arguments: Sequence[str] | None = None) -> Options:
    """Exits with code 2 and a message for what it cannot take."""
    default = TrainingSettings()
    parser = argparse.ArgumentParser(
        description="Trains a small network over TF-IDF features of Reuters-21578 with each of the eight losses of "
        "Huang et al. (EMNLP 2021), and an SVM, and prints the paper's Table 2 with our figures and the paper's. "
        "Reuters comes from NLTK (set NLTK_DATA where it lies elsewhere); without it the figures are on generated "
        "data. A run that was interrupted goes on where it stopped.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--losses",
        nargs="+",
        choices=METHODS,
        default=argparse.SUPPRESS,
        metavar="NAME",
        help=f"some of {', '.join(METHODS)} (default: all)",
    )
    parser.add_argument("--seeds", type=_integer(1), default=1, help="runs of each loss, with seeds 0, 1, ...")
    parser.add_argument(
        "--convention",
        choices=CONVENTIONS,
        default="paper",
        help="the paper's equations, or the constant factors of the published experiments",
    )
    parser.add_argument("--epochs", type=_integer(1), default=default.epochs, help="passes over the training documents")
    parser.add_argument("--batch-size", type=_integer(1), default=default.batch_size, help="documents a step")
    parser.add_argument("--learning-rate", type=_number(0, math.inf), default=default.learning_rate, help="its peak")
    parser.add_argument(
        "--weight-decay", type=_number(0, math.inf, closed=True), default=default.weight_decay, help="AdamW's"
    )
    parser.add_argument("--hidden", type=_integer(1), default=default.hidden, help="units of the hidden layer")
    parser.add_argument(
        "--dropout", type=_number(0, 1, closed=True), default=default.dropout, help="of the hidden layer"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("runs/reuters"), help="folder for table, picture and records"
    )
    parser.add_argument(
        "--threads",
        type=_integer(1),
        default=1,
        help="CPU threads; more do not pay at this size, and stall where the cores are shared",
    )
    parser.add_argument("--generated", action="store_true", help="use the generated corpus even where Reuters is there")
    parser.add_argument(
        "--documents", type=_integer(MIN_DOCUMENTS), default=NUM_DOCUMENTS, help="size of the generated corpus"
    )
    options = parser.parse_args(arguments)
    try:
        options.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"argument --output: cannot make the folder {options.output}: {error.strerror}")
    if not os.access(options.output, os.W_OK):
        parser.error(f"argument --output: cannot write to the folder {options.output}")
    chosen = getattr(options, "losses", METHODS)
    return Options(
        methods=tuple(method for method in METHODS if method in chosen),
        seeds=options.seeds,
        convention=options.convention,
        training=TrainingSettings(
            hidden=options.hidden,
            dropout=options.dropout,
            learning_rate=options.learning_rate,
            weight_decay=options.weight_decay,
            batch_size=options.batch_size,
            epochs=options.epochs,
        ),
        output=options.output,
        threads=options.threads,
        generated=options.generated,
        documents=options.documents,
    )


def _integer(least: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least:
            raise argparse.ArgumentTypeError(f"expected an integer >= {least}, got {text!r}")
        return value

    return parse


def _number(low: float, high: float, *, closed: bool = False) -> Callable[[str], float]:
    """A number below ``high`` and above ``low``, or at ``low`` where ``closed``."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (low < value < high or (closed and value == low)):
            bounds = f"{'[' if closed else '('}{low:g}, {high:g})"
            raise argparse.ArgumentTypeError(f"expected a number in {bounds}, got {text!r}")
        return value

    return parse
