"""The experiments of Huang et al. (EMNLP 2021) on a corpus of one's own: JSON Lines, CSV or TSV files."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import required_packages
from corpora.bioasq import HEAD as PUBMED_HEAD
from corpora.bioasq import TAIL as PUBMED_TAIL
from corpora.corpus import Corpus, Partition
from corpora.table_files import TableOptions, load_table_files
from encoders.head import HeadSettings
from experiment import run_command
from options import heads, make_parser, parse_options
from settings import add_settings, existing_file, given_settings, integer

PARTITION = Partition(validation=0.1, test=0.1, seed=0, min_label_count=1)
HEADS = heads(HeadSettings())
# Where results go unless the options say so; NAME is that of the file.
UNNAMED = Path("runs/NAME")


def corpus_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = make_parser(
        "Trains on texts and labels of one's own with each of the eight losses of Huang et al. (EMNLP 2021), and an "
        "SVM, and prints tables of the paper's form.",
        UNNAMED,
    )
    add = parser.add_argument
    text = "documents as .jsonl, .csv or .tsv, also with .gz; parts that nothing names are drawn from them"
    add("file", type=existing_file, help=text)
    add("--validation-file", type=existing_file, help="the validation documents")
    add("--test-file", type=existing_file, help="the test documents")
    add_settings(parser, TableOptions())
    text = (
        "the first line of CSV or TSV is a document: columns are 1, 2, ..., the text is 1 and the labels are 2 if the "
        "field options do not say otherwise"
    )
    add("--no-header", action="store_true", help=text)
    add("--head", type=integer(1), default=PUBMED_HEAD, help="head labels have as many, or more")
    add("--tail", type=integer(0), default=PUBMED_TAIL, help="tail labels have as many, or fewer")
    add_settings(parser, PARTITION)
    options = parse_options(parser, arguments, HEADS)
    if options.output == UNNAMED:
        # Each corpus has a folder of its own.
        options.output = UNNAMED.with_name(options.file.name.split(".")[0])
    required_packages.require("datasets")
    if options.tail >= options.head:
        parser.error(f"argument --tail: expected less than --head {options.head}, got {options.tail}")
    if options.no_header:
        for field, column in (("text_field", "1"), ("label_field", "2")):
            if getattr(options, field) == parser.get_default(field):
                setattr(options, field, column)
    return options


def load(options: argparse.Namespace) -> Corpus:
    files = {"": options.file, "validation": options.validation_file, "test": options.test_file}
    return load_table_files(
        {part: path for part, path in files.items() if path is not None},
        TableOptions(**given_settings(TableOptions, options), header=not options.no_header),
        Partition(**given_settings(Partition, options)),
        options.cache,
        head=options.head,
        tail=options.tail,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    options = corpus_options(arguments)
    return run_command(options, load)


if __name__ == "__main__":
    sys.exit(main())
