"""Writes a generated table with what tables of one's own have: gzipped, no header, quotes that nothing closes."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import required_packages  # noqa: F401  it says what is not installed
from corpora.generated import write_labelled
from settings import integer


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Writes a generated corpus for run_corpus.py FILE --no-header --quoting none.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("file", type=Path, help="a .tsv or .tsv.gz")
    parser.add_argument("--documents", type=integer(10), default=40_000, help="lines")
    parser.add_argument("--labels", type=integer(2), default=15_000, help="most labels")
    options = parser.parse_args(arguments)
    if options.file.name.removesuffix(".gz").rpartition(".")[2] != "tsv":
        parser.error(f"argument file: expected a name that ends in .tsv or .tsv.gz, got {options.file}")
    try:
        write_labelled(options.file, options.documents, options.labels)
    except OSError as error:
        print(f"error: {options.file}: cannot be written: {error.strerror or error}", file=sys.stderr)
        return 1
    print(f"wrote {options.file}: the next commands are")
    print(f"  python examples/paper/run_corpus.py {options.file} --no-header --quoting none")
    name = options.file.name.split(".")[0]
    print(f"  python examples/paper/predict.py runs/{name}/best_model NEW-TEXTS --no-header --quoting none")
    return 0


if __name__ == "__main__":
    sys.exit(main())
