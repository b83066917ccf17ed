"""The encoder that the command line asks for."""

from __future__ import annotations

import argparse
import math
from dataclasses import fields, replace
from typing import Any

from argument_types import integer, number
from required_packages import require

from encoders.bert_options import add_bert_options, bert_settings
from encoders.encoder import Encoder
from encoders.feature_encoder import FeatureEncoder
from encoders.head import HeadSettings
from encoders.tfidf import TfidfSettings

ENCODERS = ("tfidf", "frozen", "frozen+tfidf", "bert")


def add_encoder_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--encoder",
        choices=ENCODERS,
        default="tfidf",
        help="a small network over TF-IDF features, over the mean-pooled features of a pretrained encoder that stays "
        "as it is, or over both; or the fine-tuning of one",
    )
    parser.add_argument(
        "--model",
        default=argparse.SUPPRESS,
        metavar="NAME-OR-FOLDER",
        help="pretrained encoder, by its name on the Hugging Face hub or as a local folder (default: the paper's)",
    )
    parser.add_argument(
        "--fused-classifier",
        action="store_true",
        help="classifier and loss in one: training makes no logits; the same results but for rounding",
    )
    group = parser.add_argument_group("tfidf, frozen and frozen+tfidf", "the defaults depend on corpus and encoder")
    types: dict[str, tuple[Any, str]] = {
        "epochs": (integer(1), "passes over the training documents"),
        "batch_size": (integer(1), "documents a step"),
        "learning_rate": (number(0, math.inf), "its peak"),
        "weight_decay": (number(0, math.inf, closed=True), "AdamW's"),
        "hidden": (integer(1), "units of the hidden layer"),
        "dropout": (number(0, 1, closed=True), "of the hidden layer"),
    }
    for name, (kind, text) in types.items():
        group.add_argument(f"--{name.replace('_', '-')}", type=kind, default=argparse.SUPPRESS, help=text)
    group.add_argument("--max-length", type=integer(1), default=256, help="tokens that a frozen encoder reads")
    add_bert_options(parser)


def make_encoder(
    parser: argparse.ArgumentParser, options: argparse.Namespace, heads: dict[str, HeadSettings]
) -> Encoder:
    """Encoder of the parsed options; exits with a message for options that do not go together or lack a package."""
    given = {field.name: getattr(options, field.name) for field in fields(HeadSettings) if field.name in options}
    model = getattr(options, "model", None)
    if options.encoder == "bert":
        settings = replace(bert_settings(options), fused_classifier=options.fused_classifier)
        require("transformers", "accelerate", "datasets", "optuna", *(["tensorboard"] if settings.logs else []))
        from encoders.bert import BertEncoder

        return BertEncoder(model or options.paper_model, settings, options.cache)
    if options.encoder == "tfidf" and model:
        parser.error("argument --model: --encoder tfidf has no model")
    if options.encoder != "tfidf":
        require("transformers")
    return FeatureEncoder(
        kind=options.encoder,
        head=replace(heads[options.encoder], **given),
        tfidf=TfidfSettings(),
        model=model or options.paper_model,
        max_length=options.max_length,
        cache=options.cache,
        fused_classifier=options.fused_classifier,
    )
