"""A corpus of one's own: JSON Lines, CSV or TSV files of texts and labels, plain or gzipped."""

import csv
import io
import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import IO, Any, TypeVar

from settings import setting, some_text

from corpora.corpus import Corpus, CorpusError, Partition, make_corpus
from corpora.document_cache import Document, Remarks, cached_documents, clean_labels, open_binary

DELIMITERS = {".csv": ",", ".tsv": "\t"}
JSON_LINES = (".jsonl", ".ndjson", ".json")
SPLITS = {"train": "train", "validation": "validation", "valid": "validation", "dev": "validation", "test": "test"}
QUOTING: dict[str, Any] = {"minimal": csv.QUOTE_MINIMAL, "none": csv.QUOTE_NONE}
# csv's own limit of 128 KiB is less than a long document.
FIELD_LIMIT = 1 << 30

NO_TEXT = "documents without text, left out"

Row = dict[str, Any]
T = TypeVar("T")


@dataclass(frozen=True)
class TableOptions:
    """Names of the fields, and how a file is read; the options of the command say what each is.

    header: whether the first line of CSV and TSV names the columns; else "1", "2", ... are their names.
    """

    text: str = setting("text", str, "name of the field or column of the text", flag="text-field")
    labels: str = setting("labels", str, "name of the field or column of the labels", flag="label-field")
    split: str = setting("split", str, "may say train, validation or test", flag="split-field")
    separator: str = setting(";", some_text, "between labels that are one string", flag="label-separator")
    header: bool = True
    quoting: str = setting(
        "minimal", str, "of CSV and TSV: none takes a quote at the beginning of a field as text", choices=list(QUOTING)
    )


def load_table_files(
    files: dict[str, Path], options: TableOptions, partition: Partition, cache: Path, *, head: int, tail: int
) -> Corpus:
    """Parsed at the first call, then from the cache.

    Args:
        files: by part; ``""`` is the file whose documents have no part but what their split field says.

    Raises:
        CorpusError: naming file and line, what was expected and what came.
    """
    made_by = {"format": "table", "parts": list(files), **asdict(options)}

    def read(remarks: Remarks) -> Iterator[Document]:
        for part, path in files.items():
            yield from _read(part, path, options, remarks)

    documents = cached_documents(cache, list(files.values()), made_by, read)
    # The name of a file need not be text; what is printed must be.
    name = "+".join(_kind_of(path).stem for path in files.values()).encode("utf-8", "replace").decode("utf-8")
    return make_corpus(name, documents, partition, head=head, tail=tail)


def read_texts(path: Path, options: TableOptions) -> Iterator[str]:
    """The texts of a file, all of them and in order, of a .txt file its lines; CorpusError as when training."""
    if _kind_of(path).suffix.lower() == ".txt":
        yield from (line.rstrip("\r\n") for _, line in _open_rows(path, lambda file: enumerate(file, 1)))
    else:
        for where, row in _named_rows(path, options, (options.text,)):
            yield _text(row, options, where)


def _read(part: str, path: Path, options: TableOptions, remarks: Remarks) -> Iterator[Document]:
    for where, row in _named_rows(path, options, (options.text, options.labels)):
        document = _document(row, part, options, where)
        if document.text:
            yield document
        else:
            remarks[NO_TEXT] += 1


def _named_rows(path: Path, options: TableOptions, needed: Sequence[str]) -> Iterator[tuple[str, Row]]:
    """Where each row stands, and the row, which has the needed fields."""
    for number, row in _open_rows(path, lambda file: _rows(path, file, options, needed)):
        where = f"{path}, line {number:,}"
        if not isinstance(row, dict):
            row = _json_row(row, where)
            for field in needed:
                if field not in row:
                    raise CorpusError(f"{where}: expected a field {field!r}, got {', '.join(row) or 'none'}")
        yield where, row


def _open_rows(path: Path, rows: Callable[[IO[str]], Iterator[T]]) -> Iterator[T]:
    try:
        with open_binary(path) as binary, io.TextIOWrapper(binary, "utf-8-sig", newline="") as file:
            yield from rows(file)
    except UnicodeDecodeError as error:
        raise CorpusError(f"{path}: expected UTF-8, got another encoding: {error}") from error
    except (OSError, EOFError, zlib.error) as error:
        # The errors of a broken gzip file have no strerror.
        raise CorpusError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error


def _kind_of(path: Path) -> Path:
    """The path without the ``.gz`` of a gzipped file."""
    return path.with_suffix("") if path.suffix.lower() == ".gz" else path


def _rows(path: Path, file: IO[str], options: TableOptions, needed: Sequence[str]) -> Iterator[tuple[int, Row | str]]:
    """The line on which each row ends, and the row; of JSON Lines as it stands."""
    suffix = _kind_of(path).suffix.lower()
    if suffix in DELIMITERS:
        yield from _table_rows(path, file, DELIMITERS[suffix], options, needed)
    elif suffix not in JSON_LINES:
        expected = ", ".join((*JSON_LINES, *DELIMITERS))
        raise CorpusError(f"{path}: expected a file ending in one of {expected}, or in one of them and .gz")
    elif not options.header:
        raise CorpusError(f"{path}: --no-header: expected a CSV or TSV file, JSON Lines have names in every line")
    else:
        yield from ((number, line) for number, line in enumerate(file, 1) if line.strip())


def _json_row(line: str, where: str) -> Row:
    try:
        row = json.loads(line)
    except RecursionError as error:
        raise CorpusError(
            f"{where}: expected strings and lists of strings, got JSON that is nested too deeply"
        ) from error
    except ValueError as error:
        raise CorpusError(f"{where}: expected a JSON object a line, got {line.strip()[:60]!r}: {error}") from error
    if not isinstance(row, dict):
        raise CorpusError(f"{where}: expected a JSON object a line, got {type(row).__name__}")
    return row


def _table_rows(
    path: Path, file: IO[str], delimiter: str, options: TableOptions, needed: Sequence[str]
) -> Iterator[tuple[int, Row]]:
    csv.field_size_limit(FIELD_LIMIT)
    reader = csv.reader(file, delimiter=delimiter, strict=True, quoting=QUOTING[options.quoting])
    try:
        first = next(reader, [])
        names = first if options.header else [str(number) for number in range(1, len(first) + 1)]
        _check_columns(path, names, needed, header=options.header)
        for row in reader if options.header else chain([first], reader):
            if row and len(row) != len(names):
                raise CorpusError(f"{path}, line {reader.line_num:,}: expected {len(names)} fields, got {len(row)}")
            # An empty line is no row.
            if row:
                yield reader.line_num, dict(zip(names, row, strict=True))
    except csv.Error as error:
        hint = "; --quoting none takes quotes as text" if options.quoting == "minimal" else ""
        # Whoever has such a file often has no header either, and is told once.
        hint += ", --no-header the first line as a document" if hint and options.header else ""
        raise CorpusError(f"{path}, line {reader.line_num:,}: {error}{hint}") from error


def _check_columns(path: Path, names: list[str], needed: Sequence[str], *, header: bool) -> None:
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise CorpusError(f"{path}: expected different columns, got {', '.join(map(repr, twice))} more than once")
    if set(needed) - set(names):
        hint = "; --no-header is for files whose first line is a document" if header and names else ""
        expected = f"the columns {' and '.join(map(repr, needed))}" if len(needed) > 1 else f"the column {needed[0]!r}"
        raise CorpusError(f"{path}: expected {expected}, got {names or 'none'}{hint}")


def _document(row: Row, part: str, options: TableOptions, where: str) -> Document:
    text, labels = _text(row, options, where), row[options.labels]
    if isinstance(labels, str):
        labels = labels.split(options.separator)
    if not isinstance(labels, list) or not all(isinstance(label, (str, int)) for label in labels):
        raise CorpusError(f"{where}: {options.labels}: expected a list of names, got {str(labels)[:60]!r}")
    split = part or str(row.get(options.split) or "").strip().lower()
    if split and split not in SPLITS:
        raise CorpusError(f"{where}: {options.split}: expected one of {', '.join(SPLITS)}, got {split!r}")
    names = (str(label).strip() for label in labels)
    labels = clean_labels([name for name in names if name], f"{where}: {options.labels}")
    return Document(text.strip(), labels, SPLITS.get(split, ""))


def _text(row: Row, options: TableOptions, where: str) -> str:
    text = row[options.text]
    if not isinstance(text, str):
        raise CorpusError(f"{where}: {options.text}: expected a string, got {type(text).__name__}")
    return text
