"""Reproduces Huang et al. (EMNLP 2021) on Reuters-21578, with BERT or with a cheaper encoder in its place.

Protocol: 7,769 training documents, 1,000 of them for validation, and 3,019 for test; 90 labels. Vocabulary, label
counts and frequency groups (head: 35 training documents and more, tail: 8 and fewer) come from the 6,769 documents
left for training. All losses are trained alike. The epoch and one threshold from 0.40 to 0.60 are those with the best
validation micro-F1. TUNING.md says how the cheaper encoders' settings were chosen, PROTOCOL.md where the paper and the
published practice differ.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import required_packages  # noqa: F401  it says what is not installed
from corpora.corpus import Corpus
from corpora.generated import MIN_DOCUMENTS, NUM_DOCUMENTS, generate_corpus
from corpora.reuters import ReutersUnavailableError, load_reuters
from encoders.head import HeadSettings
from experiment import run_command
from options import heads, make_parser, parse_options
from settings import integer

HEADS = heads(HeadSettings())


def reuters_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = make_parser(
        "Trains on Reuters-21578 with each of the eight losses of Huang et al. (EMNLP 2021), and an SVM, and prints "
        "the paper's tables with our figures and the paper's. Reuters comes from NLTK (set NLTK_DATA where it lies "
        "elsewhere); without it the figures are on generated data.",
        Path("runs/reuters"),
    )
    parser.add_argument("--generated", action="store_true", help="use the generated corpus even where Reuters is there")
    text = "size of the generated corpus"
    parser.add_argument("--documents", type=integer(MIN_DOCUMENTS), default=NUM_DOCUMENTS, help=text)
    return parse_options(parser, arguments, HEADS)


def choose_corpus(options: argparse.Namespace) -> Corpus:
    """Reuters, or, on request and where it is not to be had, the generated corpus."""
    reason = "asked for by --generated"
    if not options.generated:
        try:
            return load_reuters()
        except ReutersUnavailableError as error:
            reason = f"Reuters is not available: {error}"
    return generate_corpus(f"GENERATED DATA: the figures are NOT on Reuters ({reason})", options.documents)


def main(arguments: Sequence[str] | None = None) -> int:
    options = reuters_options(arguments)
    return run_command(options, choose_corpus)


if __name__ == "__main__":
    sys.exit(main())
