"""Options that all commands of the experiments share."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from argument_types import integer, number
from encoders.choice import add_encoder_options, make_encoder
from encoders.encoder import Encoder
from encoders.head import HeadSettings
from experiment import Plan
from records import METHODS

from fused_balanced_loss.spec import CONVENTIONS


@dataclass(frozen=True)
class Options:
    """What the shared options say; ``own`` has those of the one command."""

    plan: Plan
    encoder: Encoder
    output: Path
    cache: Path
    threads: int
    own: argparse.Namespace


def make_parser(description: str, output: Path) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=f"{description} A run that was interrupted goes on where it stopped.",
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
    parser.add_argument("--seeds", type=integer(1), default=1, help="runs of each loss, with seeds 0, 1, ...")
    parser.add_argument(
        "--convention",
        choices=CONVENTIONS,
        default="paper",
        help="the paper's equations, or the constant factors of the published experiments (see PROTOCOL.md)",
    )
    parser.add_argument(
        "--mu",
        type=number(0, math.inf, closed=True),
        default=argparse.SUPPRESS,
        help="midpoint of the rebalanced weights (default: the paper's for its corpora, else the one that the "
        "training documents suggest)",
    )
    add_encoder_options(parser)
    parser.add_argument("--output", type=Path, default=output, help="folder for records, tables and pictures")
    parser.add_argument(
        "--cache", type=Path, default=Path("runs/cache"), help="folder for parsed documents, tokens and features"
    )
    parser.add_argument(
        "--threads",
        type=integer(1),
        default=1,
        help="CPU threads, and processes of the SVM; more do not pay on Reuters, and stall where the cores are shared",
    )
    return parser


def parse_options(
    parser: argparse.ArgumentParser, arguments: Sequence[str] | None, heads: dict[str, HeadSettings]
) -> Options:
    """Exits with code 2 and a message for what it cannot take.

    heads: default settings of the head by kind of encoder.
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
    return Options(
        plan=Plan(
            methods=tuple(method for method in METHODS if method in chosen),
            seeds=options.seeds,
            convention=options.convention,
            mu=getattr(options, "mu", None),
            jobs=options.threads,
        ),
        encoder=make_encoder(parser, options, heads),
        output=options.output,
        cache=options.cache,
        threads=options.threads,
        own=options,
    )
