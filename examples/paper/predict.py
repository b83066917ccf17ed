"""Labels and probabilities of new texts, by a model that a run has left."""

import argparse
import csv
import gzip
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import required_packages  # noqa: F401  it says what is not installed
from classifier import Classifier, ClassifierError, Prediction
from corpora.corpus import CorpusError
from corpora.table_files import QUOTING, TableOptions, read_texts
from files import atomic_file
from progress import progress
from settings import existing_file, integer, number, some_text

INTERRUPTED = 130


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Writes a line for each text of a file, in order: the names of its labels and their probabilities, "
        "the most probable first.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add, absent = parser.add_argument, argparse.SUPPRESS
    add("folder", type=Path, help="the model: OUTPUT/best_model of a run, or one of OUTPUT/models")
    text = "texts as .jsonl, .csv or .tsv with a field of the text, or one a line in .txt; also with .gz"
    add("file", type=existing_file, help=text)
    text = "file for the result, .jsonl or .csv, also with .gz (default: JSON Lines on the terminal)"
    add("--output", type=Path, default=absent, metavar="FILE", help=text)
    text = "so many labels of every text, in the place of those above the threshold"
    add("--top", type=integer(1), default=absent, help=text)
    add("--threshold", type=number(0, 1, closed=True), default=absent, help="in the place of the model's own")
    add("--text-field", default="text", help="name of the field or column of the text")
    text = "the first line of CSV or TSV is a document: columns are 1, 2, ..., the text is 1 unless --text-field says"
    add("--no-header", action="store_true", help=text)
    add("--quoting", choices=list(QUOTING), default="minimal", help="of CSV and TSV: none takes quotes as text")
    add("--label-separator", type=some_text, default=";", help="between labels, and probabilities, of CSV output")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    parser = make_parser()
    options = parser.parse_args(arguments)
    output = getattr(options, "output", None)
    kind = ".jsonl" if output is None else _unzipped(output).suffix.lower()
    if kind not in (".jsonl", ".csv"):
        parser.error(f"argument --output: expected a name that ends in .jsonl or .csv, perhaps with .gz, got {output}")
    if options.no_header and options.text_field == parser.get_default("text_field"):
        options.text_field = "1"
    table = TableOptions(text=options.text_field, header=not options.no_header, quoting=options.quoting)
    try:
        classifier = Classifier.load(options.folder)
        if kind == ".csv":
            _check_names(classifier.label_names, options.label_separator)
        asked = {name: getattr(options, name) for name in ("top", "threshold") if name in options}
        with _writing(output) as file:
            write = _writer(file, kind, options.label_separator)
            number_ = 0
            for number_, prediction in enumerate(classifier.stream(read_texts(options.file, table), **asked), 1):
                write(number_, prediction)
                if output is not None and number_ % 1000 == 0:
                    progress.say(f"{number_:,} texts predicted")
        if output is not None:
            progress.finish(f"wrote {output}: {number_:,} texts")
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read the output has gone, as ``head`` does.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ClassifierError, CorpusError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _unzipped(path: Path) -> Path:
    return path.with_suffix("") if path.suffix.lower() == ".gz" else path


def _check_names(names: Sequence[str], separator: str) -> None:
    if held := next((name for name in names if separator in name), None):
        raise ClassifierError(
            f"--label-separator: the label {held!r} holds {separator!r}; expected another separator, or .jsonl output"
        )


@contextmanager
def _writing(output: Path | None) -> Iterator[IO[str]]:
    """Takes the file's place when all is written."""
    if output is None:
        yield sys.stdout
        sys.stdout.flush()
        return
    with atomic_file(output) as path:
        opened: Any = gzip.open if output.suffix.lower() == ".gz" else open
        with opened(path, "wt", encoding="utf-8", newline="") as file:
            yield file


def _writer(file: IO[str], kind: str, separator: str) -> Any:
    if kind == ".jsonl":

        def write(number: int, prediction: Prediction) -> None:
            row = {"row": number, **prediction._asdict()}
            row["probabilities"] = [round(value, 6) for value in prediction.probabilities]
            file.write(json.dumps(row, ensure_ascii=False) + "\n")

        return write
    table = csv.writer(file)
    table.writerow(("row", *Prediction._fields))

    def write_row(number: int, prediction: Prediction) -> None:
        shown = (f"{value:.6f}" for value in prediction.probabilities)
        table.writerow((number, separator.join(prediction.labels), separator.join(shown)))

    return write_row


if __name__ == "__main__":
    sys.exit(main())
