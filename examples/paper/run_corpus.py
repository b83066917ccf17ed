"""The experiments of Huang et al. (EMNLP 2021) on a corpus of one's own: JSON Lines, CSV or TSV files."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import required_packages
from argument_types import existing_file, integer
from command import run_command
from corpora.bioasq import HEAD as PUBMED_HEAD
from corpora.bioasq import TAIL as PUBMED_TAIL
from corpora.corpus import Corpus
from corpora.partition import Partition
from corpora.table_files import QUOTING, TableOptions, load_table_files
from encoders.head import HeadSettings
from options import Options, make_parser, parse_options
from progress import Progress
from reproduce_pubmed import add_partition_options, partition

PARTITION = Partition(validation=0.1, test=0.1, seed=0, min_label_count=1)
WITH_FROZEN = HeadSettings(learning_rate=3e-3, dropout=0.3)
HEADS = {"tfidf": HeadSettings(), "frozen": WITH_FROZEN, "frozen+tfidf": WITH_FROZEN}


def corpus_options(arguments: Sequence[str] | None = None) -> Options:
    table = TableOptions()
    parser = make_parser(
        "Trains on texts and labels of one's own with each of the eight losses of Huang et al. (EMNLP 2021), and an "
        "SVM, and prints tables of the paper's form.",
        Path("runs/corpus"),
    )
    parser.add_argument(
        "file",
        type=existing_file,
        help="documents as .jsonl, .csv or .tsv, also with .gz; parts that nothing names are drawn from them",
    )
    parser.add_argument("--validation-file", type=existing_file, help="the validation documents")
    parser.add_argument("--test-file", type=existing_file, help="the test documents")
    parser.add_argument("--text-field", default=table.text, help="name of the field or column of the text")
    parser.add_argument("--label-field", default=table.labels, help="name of the field or column of the labels")
    parser.add_argument("--split-field", default=table.split, help="may say train, validation or test")
    parser.add_argument(
        "--no-header",
        action="store_true",
        help="the first line of CSV or TSV is a document: columns are 1, 2, ..., the text is 1 and the labels are 2 if "
        "the field options do not say otherwise",
    )
    parser.add_argument(
        "--quoting",
        choices=list(QUOTING),
        default=table.quoting,
        help="of CSV and TSV: none takes a quote at the beginning of a field as text",
    )
    parser.add_argument("--label-separator", default=table.separator, help="between labels that are one string")
    parser.add_argument("--head", type=integer(1), default=PUBMED_HEAD, help="head labels have as many, or more")
    parser.add_argument("--tail", type=integer(0), default=PUBMED_TAIL, help="tail labels have as many, or fewer")
    add_partition_options(parser, PARTITION)
    parser.set_defaults(paper_model="bert-base-cased")
    options = parse_options(parser, arguments, HEADS)
    required_packages.require("datasets")
    if options.own.tail >= options.own.head:
        parser.error(f"argument --tail: expected less than --head {options.own.head}, got {options.own.tail}")
    if not options.own.label_separator:
        parser.error("argument --label-separator: expected at least one character, got none")
    if options.own.no_header:
        for field, column in (("text", "1"), ("label", "2")):
            if getattr(options.own, f"{field}_field") == parser.get_default(f"{field}_field"):
                setattr(options.own, f"{field}_field", column)
    return options


def load(options: Options, progress: Progress) -> Corpus:
    own = options.own
    files = {"": own.file, "validation": own.validation_file, "test": own.test_file}
    return load_table_files(
        {part: path for part, path in files.items() if path is not None},
        TableOptions(
            own.text_field, own.label_field, own.split_field, own.label_separator, not own.no_header, own.quoting
        ),
        partition(own),
        options.cache,
        progress.say,
        progress.warn,
        head=own.head,
        tail=own.tail,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    options = corpus_options(arguments)
    return run_command(options, lambda progress: load(options, progress))


if __name__ == "__main__":
    sys.exit(main())
