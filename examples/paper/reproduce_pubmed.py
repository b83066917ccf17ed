"""Reproduces Huang et al. (EMNLP 2021) on PubMed, with BioBERT or with a cheaper encoder in its place.

Protocol: the articles of 2020 and 2021 from a BioASQ file, title and abstract, MeSH headings as labels; 5,000 each for
validation and test, drawn at random; headings of fewer than 5 training articles dropped. Head: 50 training articles and
more, tail: 15 and fewer. The rest is as on Reuters.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import required_packages
from corpora.bioasq import PARTITION, YEARS, load_bioasq
from corpora.corpus import Corpus, Partition
from corpora.generated import NUM_ARTICLES, NUM_HEADINGS, write_bioasq
from encoders.head import HeadSettings
from experiment import run_command
from options import WITH_FROZEN, heads, make_parser, parse_options
from settings import add_settings, existing_file, given_settings, integer, years

HEADS = heads(HeadSettings(learning_rate=2e-2, batch_size=128), replace(WITH_FROZEN, batch_size=128))


def pubmed_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = make_parser(
        "Trains on PubMed with each of the eight losses of Huang et al. (EMNLP 2021), and an SVM, and prints the "
        "paper's tables with our figures and the paper's.",
        Path("runs/pubmed"),
        "dmis-lab/biobert-base-cased-v1.1",
    )
    text = "a BioASQ file of articles, JSON or gzipped JSON (participants-area.bioasq.org)"
    parser.add_argument("file", nargs="?", type=existing_file, help=text)
    parser.add_argument("--years", type=years, default="{}-{}".format(*YEARS), help="first and last, or all")
    parser.add_argument("--encoding", default="utf-8", help="of the file; some of BioASQ's are latin-1")
    add_settings(parser, PARTITION)
    parser.add_argument("--generated", action="store_true", help="use a generated file")
    parser.add_argument("--articles", type=integer(1000), default=NUM_ARTICLES, help="of the generated file")
    parser.add_argument("--headings", type=integer(2), default=NUM_HEADINGS, help="labels of the generated file")
    options = parse_options(parser, arguments, HEADS)
    required_packages.require("datasets", "ijson")
    if (options.file is None) != options.generated:
        parser.error("expected a BioASQ file or --generated")
    try:
        "".encode(options.encoding)
    except LookupError:
        parser.error(f"argument --encoding: expected the name of an encoding, got {options.encoding!r}")
    return options


def load(options: argparse.Namespace) -> Corpus:
    file, notice = options.file, None
    if options.generated:
        notice = "GENERATED DATA: the figures are NOT on PubMed (asked for by --generated)"
        file = options.cache / f"generated-{options.articles}x{options.headings}.json.gz"
        if not file.exists():
            write_bioasq(file, options.articles, options.headings)
    parts = Partition(**given_settings(Partition, options))
    return load_bioasq(file, options.years, options.encoding, parts, options.cache, notice=notice)


def main(arguments: Sequence[str] | None = None) -> int:
    options = pubmed_options(arguments)
    return run_command(options, load)


if __name__ == "__main__":
    sys.exit(main())
