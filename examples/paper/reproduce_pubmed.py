"""Reproduces Huang et al. (EMNLP 2021) on PubMed, with BioBERT or with a cheaper encoder in its place.

Protocol: the articles of 2020 and 2021 from a BioASQ file, title and abstract, MeSH headings as labels; 5,000 each for
validation and test, drawn at random; headings of fewer than 5 training articles dropped. Head: 50 training articles and
more, tail: 15 and fewer. The rest is as on Reuters.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import required_packages
from argument_types import existing_file, integer, size, years
from command import run_command
from corpora.bioasq import PARTITION, YEARS, BioasqOptions, load_bioasq
from corpora.corpus import Corpus
from corpora.generated_bioasq import NUM_ARTICLES, NUM_LABELS, write_bioasq
from corpora.partition import Partition
from encoders.head import HeadSettings
from options import Options, make_parser, parse_options
from progress import Progress

WITH_FROZEN = HeadSettings(learning_rate=3e-3, dropout=0.3, batch_size=128)
HEADS = {
    "tfidf": HeadSettings(learning_rate=2e-2, batch_size=128),
    "frozen": WITH_FROZEN,
    "frozen+tfidf": WITH_FROZEN,
}


def pubmed_options(arguments: Sequence[str] | None = None) -> Options:
    parser = make_parser(
        "Trains on PubMed with each of the eight losses of Huang et al. (EMNLP 2021), and an SVM, and prints the "
        "paper's tables with our figures and the paper's.",
        Path("runs/pubmed"),
    )
    parser.add_argument(
        "file",
        nargs="?",
        type=existing_file,
        help="a BioASQ file of articles, JSON or gzipped JSON (participants-area.bioasq.org)",
    )
    parser.add_argument("--years", type=years, default="{}-{}".format(*YEARS), help="first and last, or all")
    parser.add_argument("--encoding", default="utf-8", help="of the file; some of BioASQ's are latin-1")
    add_partition_options(parser, PARTITION)
    parser.add_argument("--generated", action="store_true", help="use a generated file")
    parser.add_argument("--articles", type=integer(1000), default=NUM_ARTICLES, help="of the generated file")
    parser.add_argument("--headings", type=integer(2), default=NUM_LABELS, help="labels of the generated file")
    parser.set_defaults(paper_model="dmis-lab/biobert-base-cased-v1.1")
    options = parse_options(parser, arguments, HEADS)
    required_packages.require("datasets", "ijson")
    if (options.own.file is None) != options.own.generated:
        parser.error("expected a BioASQ file or --generated")
    try:
        "".encode(options.own.encoding)
    except LookupError:
        parser.error(f"argument --encoding: expected the name of an encoding, got {options.own.encoding!r}")
    return options


def add_partition_options(parser: argparse.ArgumentParser, default: Partition) -> None:
    parser.add_argument(
        "--validation-size", type=size, default=default.validation, help="documents, or below 1 a share of all"
    )
    parser.add_argument("--test-size", type=size, default=default.test, help="documents, or below 1 a share of all")
    parser.add_argument("--split-seed", type=integer(0), default=default.seed, help="of drawing validation and test")
    parser.add_argument(
        "--min-label-count",
        type=integer(0),
        default=default.min_label_count,
        help="labels of fewer training documents are dropped",
    )


def partition(options: argparse.Namespace) -> Partition:
    return Partition(options.validation_size, options.test_size, options.split_seed, options.min_label_count)


def load(options: Options, progress: Progress) -> Corpus:
    own, notice = options.own, None
    if own.generated:
        notice = "GENERATED DATA: the figures are NOT on PubMed (asked for by --generated)"
        file = options.cache / f"generated-{own.articles}x{own.headings}.json.gz"
        if not file.exists():
            write_bioasq(file, own.articles, own.headings, progress.say)
    else:
        file = own.file
    return load_bioasq(
        file,
        BioasqOptions(own.years, own.encoding),
        partition(own),
        options.cache,
        progress.say,
        progress.warn,
        notice=notice,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    options = pubmed_options(arguments)
    return run_command(options, lambda progress: load(options, progress))


if __name__ == "__main__":
    sys.exit(main())
