"""Documents parsed once and kept as Arrow, whatever their size: memory holds their label ids, never their texts."""

import gzip
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from files import Json, cached, digest
from numpy.typing import NDArray
from progress import progress

from corpora.corpus import CorpusError

if TYPE_CHECKING:
    from datasets import Dataset

# To be raised with every change in what is parsed or how it is stored.
VERSION = 2
BATCH = 1000
SURROGATES = "documents with half a surrogate pair, which is replaced by a question mark"

Remarks = Counter[str]


class Document(NamedTuple):
    """A text, its labels' names, and its part where the file gives one (else empty)."""

    text: str
    labels: Sequence[str]
    split: str = ""


@dataclass(frozen=True)
class Documents:
    """All documents of a source.

    Attributes:
        dataset: column ``text``, memory-mapped.
        crow, col: label ids in compressed rows; not yet sorted within a row.
        splits: name of the given part of each document, or empty.
        label_names: by label id, in order of appearance.
        fingerprint: hash of texts, labels and given parts.
        remarks: what reading left out or changed, with how often.
    """

    dataset: "Dataset"
    crow: NDArray[np.int32]
    col: NDArray[np.int32]
    splits: NDArray[np.str_]
    label_names: list[str]
    fingerprint: str
    remarks: dict[str, int]


def cached_documents(
    cache: Path, sources: Sequence[Path], options: Json, read: Callable[[Remarks], Iterator[Document]]
) -> Documents:
    """The documents of ``sources``, from the cache where it was made of the same files with the same options.

    Args:
        cache: folder of all caches.
        options: all else that ``read`` depends on.
        read: yields the documents, and counts in its argument what it leaves out.

    Raises:
        CorpusError: for files that cannot be read, or without a document.
        CacheError: where the cache cannot be written.
    """
    return cached(
        cache / f"documents-{digest([options, [str(path.resolve()) for path in sources]])}",
        {"version": VERSION, "options": options, "files": [_stamp(path) for path in sources]},
        lambda folder: _write(folder, sources, read),
        _load,
    )


@contextmanager
def open_binary(path: Path) -> Iterator[Any]:
    """The bytes of a file, of a gzipped one unpacked, whatever its name."""
    with open(path, "rb") as raw:
        yield gzip.GzipFile(fileobj=raw) if raw.peek(2)[:2] == b"\x1f\x8b" else raw


def clean_labels(names: list[str], where: str) -> list[str]:
    """The names of labels, which tables and files must be able to hold.

    Raises:
        CorpusError: for half a surrogate pair, which is legal in JSON and is no character.
    """
    for name in names:
        if any("\ud800" <= character <= "\udfff" for character in name):
            raise CorpusError(f"{where}: expected characters, got half a surrogate pair in {name!r}")
    return names


def _stamp(path: Path) -> Json:
    try:
        stat = path.stat()
    except OSError as error:
        raise CorpusError(f"{path}: cannot be read: {error.strerror}") from error
    return {"path": str(path.resolve()), "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}


def _write(folder: Path, sources: Sequence[Path], read: Callable[[Remarks], Iterator[Document]]) -> None:
    from datasets import Features, List, Value
    from datasets.arrow_writer import ArrowWriter

    remarks: Remarks = Counter()
    label_ids: dict[str, int] = {}
    hashed = hashlib.sha256()
    number = 0
    features = Features({"text": Value("string"), "labels": List(Value("int32")), "split": Value("string")})
    with ArrowWriter(features=features, path=str(folder / "documents.arrow"), writer_batch_size=BATCH) as writer:
        for number, document in enumerate(read(remarks), 1):
            # Half a surrogate pair is legal in JSON and has no place in Arrow.
            text = document.text.encode("utf-8", "replace").decode("utf-8")
            remarks[SURROGATES] += text != document.text
            labels = list(dict.fromkeys(document.labels))
            hashed.update(json.dumps([text, labels, document.split]).encode())
            ids = [label_ids.setdefault(label, len(label_ids)) for label in labels]
            writer.write({"text": text, "labels": ids, "split": document.split})
            if number % (5 * BATCH) == 0:
                progress.say(f"{number:,} documents read")
        if not number:
            left_out = "; ".join(f"{n:,} {what}" for what, n in remarks.items()) or "the file has none"
            raise CorpusError(f"{', '.join(map(str, sources))}: no document is left ({left_out})")
        writer.finalize()
    meta = {"label_names": list(label_ids), "fingerprint": hashed.hexdigest()[:16], "remarks": +remarks}
    (folder / "meta.json").write_text(json.dumps(meta), encoding="utf-8")


def _load(folder: Path) -> Documents:
    from datasets import Dataset

    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    dataset = Dataset.from_file(str(folder / "documents.arrow"))
    labels = dataset.data.column("labels").combine_chunks()
    return Documents(dataset, labels.offsets.to_numpy(), labels.values.to_numpy(), np.array(dataset["split"]), **meta)
