"""PubMed articles with their MeSH headings from a BioASQ JSON file, plain or gzipped, in one pass of flat memory."""

import codecs
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from corpora.corpus import Corpus, CorpusError, Partition, make_corpus
from corpora.document_cache import Document, Remarks, cached_documents, clean_labels, open_binary

Years = tuple[int, int] | None

# Huang et al., EMNLP 2021, section 4.1 and Table 3.
YEARS = (2020, 2021)
HEAD, TAIL = 50, 15
INSTANCE_GROUPS = {"<=9": (0, 9), "10-14": (10, 14), ">=15": (15, None)}
PARTITION = Partition(validation=5000, test=5000, seed=0, min_label_count=5)

STRING = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
DEEPEST = 500

NO_ABSTRACT = "articles without abstract, of which the title alone is used"
NO_TEXT = "articles without title and abstract, left out"
NO_LABELS = "articles without MeSH headings, left out"
NO_YEAR = "articles without a year, left out"
OTHER_YEAR = "articles of other years, left out"


def load_bioasq(
    path: Path, years: Years, encoding: str, partition: Partition, cache: Path, *, notice: str | None = None
) -> Corpus:
    """Parsed at the first call, then from the cache.

    Args:
        years: first and last, both inclusive, or None for all.
        encoding: of the file; the official ones vary.

    Raises:
        CorpusError: for a file that is broken, truncated or no BioASQ file, and for a partition that it cannot fill.
    """
    made_by = {"format": "bioasq", "years": years, "encoding": encoding}
    documents = cached_documents(cache, [path], made_by, lambda remarks: read_articles(path, years, encoding, remarks))
    return make_corpus(
        "PubMed",
        documents,
        partition,
        head=HEAD,
        tail=TAIL,
        instance_groups=INSTANCE_GROUPS,
        paper="pubmed",
        notice=notice,
    )


def read_articles(path: Path, years: Years, encoding: str, remarks: Remarks) -> Iterator[Document]:
    """The articles in the file's order; ``remarks`` counts those left out."""
    import ijson

    number, pmid = 0, "none"
    try:
        with open_binary(path) as binary:
            utf8 = codecs.lookup(encoding).name == "utf-8"
            file = _Shallow(binary if utf8 else codecs.EncodedFile(binary, "utf-8", encoding))
            for number, article in enumerate(ijson.items(file, "articles.item"), 1):
                if not isinstance(article, dict):
                    raise CorpusError(f"{path}: article {number:,}: expected an object, got {type(article).__name__}")
                pmid = str(article.get("pmid"))
                document = _document(article, years, remarks, f"{path}: article {number:,} (pmid {pmid})")
                if document:
                    yield document
    except (ijson.JSONError, EOFError, zlib.error, OSError, ValueError) as error:
        where = f"after article {number:,} (pmid {pmid})" if number else "at its beginning"
        raise CorpusError(f"{path}: broken or truncated {where}: {_reason(error)}") from error
    if not number:
        raise CorpusError(f'{path}: expected {{"articles": [...]}}, got no article')


class _Shallow:
    """A file of JSON, refused where it is nested deeply: ijson's memory grows with the square of the depth."""

    def __init__(self, file: Any) -> None:
        self.file = file
        self.depth = 0
        # The beginning of a string that goes on in the next block, as far as its end depends on it.
        self.open_string = b""

    def read(self, size: int = -1) -> bytes:
        block: bytes = self.file.read(size)
        # A string may hold any bracket.
        structure, quote, string = STRING.sub(b"", self.open_string + block).partition(b'"')
        escapes = len(string) - len(string.rstrip(b"\\"))
        self.open_string = quote + b"\\" * (escapes % 2)
        for bracket in re.findall(rb"[\[\]{}]", structure):
            self.depth += 1 if bracket in b"[{" else -1
            if self.depth > DEEPEST:
                raise ValueError(f"nested in more than {DEEPEST} brackets")
        return block


def _document(article: dict[str, Any], years: Years, remarks: Remarks, where: str) -> Document | None:
    if years is not None:
        year = _year(article.get("year"), where)
        if year is None or not years[0] <= year <= years[1]:
            remarks[NO_YEAR if year is None else OTHER_YEAR] += 1
            return None
    title, abstract = (_text(article, key, where) for key in ("title", "abstractText"))
    headings = article.get("meshMajor") or []
    if not isinstance(headings, list) or not all(isinstance(heading, str) for heading in headings):
        raise CorpusError(f"{where}: meshMajor: expected a list of strings, got {str(headings)[:80]!r}")
    if not headings:
        remarks[NO_LABELS] += 1
        return None
    if not (title or abstract):
        remarks[NO_TEXT] += 1
        return None
    if not abstract:
        remarks[NO_ABSTRACT] += 1
    return Document(f"{title} {abstract}".strip(), clean_labels(headings, f"{where}: meshMajor"))


def _text(article: dict[str, Any], key: str, where: str) -> str:
    text = article.get(key)
    if text is None:
        return ""
    if not isinstance(text, str):
        raise CorpusError(f"{where}: {key}: expected a string, got {type(text).__name__}")
    return text.strip()


def _year(value: object, where: str) -> int | None:
    if value is None or value == "":
        return None
    try:
        return int(str(value))
    except ValueError as error:
        raise CorpusError(f"{where}: year: expected a year, got {value!r}") from error


def _reason(error: Exception) -> str:
    """First line of the message: yajl's, which are bytes, go on with a drawing of the place."""
    message = error.args[0] if error.args else ""
    text = message.decode("utf-8", "replace") if isinstance(message, bytes) else str(error)
    reason = (text.splitlines() or [type(error).__name__])[0].strip().rstrip(".")
    return f"{reason}; another --encoding may be right" if "UTF8" in reason else reason
