"""Options that all commands of the experiments share."""

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import models
from encoders.bert_options import add_bert_options, bert_settings
from encoders.encoder import Encoder
from encoders.feature_encoder import FeatureEncoder
from encoders.head import HeadSettings
from encoders.scoring import GRIDS
from encoders.tfidf import TfidfSettings
from records import METHODS
from required_packages import require
from settings import add_settings, given_settings, integer, not_negative, numbers_in_0_1

from fused_balanced_loss.spec import CONVENTIONS

ENCODERS = ("tfidf", "frozen", "frozen+tfidf", "bert")
# The head over features of a frozen encoder.
WITH_FROZEN = HeadSettings(learning_rate=3e-3, dropout=0.3)


def grid(text: str) -> tuple[float, ...]:
    """Thresholds by the name of a grid, or as numbers."""
    return GRIDS.get(text) or numbers_in_0_1(text)


def heads(tfidf: HeadSettings, frozen: HeadSettings = WITH_FROZEN) -> dict[str, HeadSettings]:
    """Default settings of the head by kind of encoder."""
    return {"tfidf": tfidf, "frozen": frozen, "frozen+tfidf": frozen}


def make_parser(description: str, output: Path, paper_model: str = "bert-base-cased") -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=f"{description} A run that was interrupted goes on where it stopped.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add, absent = parser.add_argument, argparse.SUPPRESS
    text = f"some of {', '.join(METHODS)} (default: all)"
    add("--losses", nargs="+", choices=METHODS, default=absent, metavar="NAME", help=text)
    add("--seeds", type=integer(1), default=1, help="runs of each loss, with seeds 0, 1, ...")
    text = "the paper's equations, or the constant factors of the published experiments (see PROTOCOL.md)"
    add("--convention", choices=CONVENTIONS, default="paper", help=text)
    text = "midpoint of the rebalanced weights (default: the paper's for its corpora, else what the training suggests)"
    add("--mu", type=not_negative, default=absent, help=text)
    text = (
        "a small network over TF-IDF features, over the mean-pooled features of a pretrained encoder that stays as it "
        "is, or over both; or the fine-tuning of one"
    )
    add("--encoder", choices=ENCODERS, default="tfidf", help=text)
    text = f"pretrained encoder, by its name on the Hugging Face hub or as a local folder (default: {paper_model})"
    add("--model", default=absent, metavar="NAME-OR-FOLDER", help=text)
    text = "classifier and loss in one: training makes no logits; the same results but for rounding"
    add("--fused-classifier", action="store_true", help=text)
    group = parser.add_argument_group("tfidf, frozen and frozen+tfidf", "the defaults depend on corpus and encoder")
    add_settings(group, HeadSettings, with_defaults=False)
    group.add_argument("--max-length", type=integer(1), default=256, help="tokens that a frozen encoder reads")
    add_bert_options(parser)
    text = (
        "grid from which validation chooses the threshold by which epochs and losses are compared: the paper's 0.40 to "
        "0.60, the full one, or numbers such as 0.1,0.2; each method's own best of the full grid is always scored too"
    )
    add("--thresholds", type=grid, default="paper", metavar="paper|full|NUMBERS", help=text)
    text = "models to keep: in OUTPUT/best_model the best on validation, in OUTPUT/models all, or none"
    add("--save-models", choices=models.CHOICES, default="best", help=text)
    text = "a kept model has one threshold, one for each of head, medium and tail, or one for each label"
    add("--model-thresholds", choices=models.THRESHOLDS, default="run", help=text)
    text = "do runs again that are recorded without figures of this version, or whose model is asked for and not there"
    add("--redo", action="store_true", help=text)
    add("--output", type=Path, default=output, help="folder for records, tables and pictures")
    add("--cache", type=Path, default=Path("runs/cache"), help="folder for parsed documents, tokens and features")
    text = "CPU threads, and processes of the SVM; more do not pay on Reuters, and stall where the cores are shared"
    add("--threads", type=integer(1), default=1, help=text)
    parser.set_defaults(paper_model=paper_model)
    return parser


def parse_options(
    parser: argparse.ArgumentParser, arguments: Sequence[str] | None, heads: Mapping[str, HeadSettings]
) -> argparse.Namespace:
    """The options, with ``methods``, ``mu`` and ``encoder`` as the experiment takes them.

    Exits with code 2 and a message for what it cannot take.
    """
    options = parser.parse_args(arguments)
    for name in ("output", "cache"):
        folder: Path = getattr(options, name)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            parser.error(f"argument --{name}: cannot make the folder {folder}: {error.strerror}")
        if not os.access(folder, os.W_OK):
            parser.error(f"argument --{name}: cannot write to the folder {folder}")
    chosen = getattr(options, "losses", METHODS)
    options.methods = tuple(method for method in METHODS if method in chosen)
    options.mu = getattr(options, "mu", None)
    options.encoder = _make_encoder(parser, options, heads)
    return options


def _make_encoder(
    parser: argparse.ArgumentParser, options: argparse.Namespace, heads: Mapping[str, HeadSettings]
) -> Encoder:
    """Exits with a message for options that do not go together or lack a package."""
    kind, model = options.encoder, getattr(options, "model", None)
    if kind == "bert":
        settings = replace(bert_settings(options), fused_classifier=options.fused_classifier)
        require("transformers", "accelerate", "datasets", *(["tensorboard"] if settings.logs else []))
        from encoders.bert import BertEncoder

        return BertEncoder(model or options.paper_model, settings, options.cache, options.thresholds)
    if kind == "tfidf" and model:
        parser.error("argument --model: --encoder tfidf has no model")
    if kind != "tfidf":
        require("transformers")
    head = replace(heads[kind], **given_settings(HeadSettings, options))
    source = model or options.paper_model, options.max_length, options.cache
    how = options.fused_classifier, options.thresholds
    return FeatureEncoder(kind, head, TfidfSettings(), *source, *how)
