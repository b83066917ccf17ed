"""A corpus of one's own: JSON Lines, CSV or TSV files of texts and labels."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from corpora.corpus import Corpus, CorpusError
from corpora.document_cache import Document, Remarks, cached_documents
from corpora.partition import Partition, make_corpus

DELIMITERS = {".csv": ",", ".tsv": "\t"}
JSON_LINES = (".jsonl", ".ndjson", ".json")
SPLITS = {"train": "train", "validation": "validation", "valid": "validation", "dev": "validation", "test": "test"}
# csv's own limit of 128 KiB is less than a long document.
FIELD_LIMIT = 1 << 30

NO_TEXT = "documents without text, left out"


@dataclass(frozen=True)
class TableOptions:
    """Names of the fields, and what parts the labels of a field that is one string.

    split: field that says ``train``, ``validation`` or ``test``; may be absent.
    """

    text: str = "text"
    labels: str = "labels"
    split: str = "split"
    separator: str = ";"


def load_table_files(
    files: dict[str, Path],
    options: TableOptions,
    partition: Partition,
    cache: Path,
    say: Callable[[str], None],
    warn: Callable[[str], None],
    *,
    head: int,
    tail: int,
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

    documents = cached_documents(cache, list(files.values()), made_by, read, say, warn)
    name = "+".join(path.stem for path in files.values())
    return make_corpus(name, documents, partition, head=head, tail=tail)


def _read(part: str, path: Path, options: TableOptions, remarks: Remarks) -> Iterator[Document]:
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            for where, row in _rows(path, file, options):
                document = _document(row, part, options, where)
                if document.text:
                    yield document
                else:
                    remarks[NO_TEXT] += 1
    except UnicodeDecodeError as error:
        raise CorpusError(f"{path}: expected UTF-8, got another encoding: {error}") from error
    except OSError as error:
        raise CorpusError(f"{path}: cannot be read: {error.strerror or error}") from error


def _rows(path: Path, file: IO[str], options: TableOptions) -> Iterator[tuple[str, dict[str, Any]]]:
    """Where each row stands, and the row."""
    suffix = path.suffix.lower()
    if suffix in JSON_LINES:
        for number, line in enumerate(file, 1):
            where = f"{path}, line {number:,}"
            if line.strip():
                try:
                    row = json.loads(line)
                except ValueError as error:
                    got = f"{line.strip()[:60]!r}: {error}"
                    raise CorpusError(f"{where}: expected a JSON object a line, got {got}") from error
                if not isinstance(row, dict):
                    raise CorpusError(f"{where}: expected a JSON object a line, got {type(row).__name__}")
                yield where, row
    elif suffix in DELIMITERS:
        csv.field_size_limit(FIELD_LIMIT)
        reader = csv.DictReader(file, delimiter=DELIMITERS[suffix], strict=True)
        try:
            missing = {options.text, options.labels} - set(reader.fieldnames or ())
            if missing:
                names = reader.fieldnames or "none"
                raise CorpusError(f"{path}: expected the columns {options.text!r} and {options.labels!r}, got {names}")
            for row in reader:
                where = f"{path}, line {reader.line_num:,}"
                if None in row or None in row.values():
                    raise CorpusError(f"{where}: expected {len(reader.fieldnames or ())} fields")
                yield where, row
        except csv.Error as error:
            raise CorpusError(f"{path}, line {reader.line_num:,}: {error}") from error
    else:
        expected = ", ".join((*JSON_LINES, *DELIMITERS))
        raise CorpusError(f"{path}: expected a file ending in one of {expected}")


def _document(row: dict[str, Any], part: str, options: TableOptions, where: str) -> Document:
    for field in (options.text, options.labels):
        if field not in row:
            raise CorpusError(f"{where}: expected a field {field!r}, got {', '.join(row) or 'none'}")
    text, labels = row[options.text], row[options.labels]
    if not isinstance(text, str):
        raise CorpusError(f"{where}: {options.text}: expected a string, got {type(text).__name__}")
    if isinstance(labels, str):
        labels = labels.split(options.separator)
    if not isinstance(labels, list) or not all(isinstance(label, (str, int)) for label in labels):
        raise CorpusError(f"{where}: {options.labels}: expected a list of names, got {str(labels)[:60]!r}")
    split = part or str(row.get(options.split) or "").strip().lower()
    if split and split not in SPLITS:
        raise CorpusError(f"{where}: {options.split}: expected one of {', '.join(SPLITS)}, got {split!r}")
    names = (str(label).strip() for label in labels)
    return Document(text.strip(), [name for name in names if name], SPLITS.get(split, ""))
