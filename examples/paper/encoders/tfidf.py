"""TF-IDF features of a corpus, fitted on its training part, made once and kept as memory-mapped sparse rows."""

from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from corpora.corpus import Corpus
from files import Say, cached, digest
from scipy.sparse import csr_matrix
from sklearn.feature_extraction.text import TfidfVectorizer

from encoders.encoder import EncoderError

VERSION = 1
BATCH = 1000
ARRAYS = {"data": np.float32, "indices": np.int32, "lengths": np.int32}

SparseFeatures = dict[str, csr_matrix]


@dataclass(frozen=True)
class TfidfSettings:
    """As scikit-learn's TfidfVectorizer names them; English stop words are left out."""

    sublinear_tf: bool = True
    min_df: int = 3


# The one that reproduces the published SVM.
SVM_TFIDF = TfidfSettings(sublinear_tf=False, min_df=1)


def tfidf_features(corpus: Corpus, settings: TfidfSettings, cache: Path, say: Say, warn: Say) -> SparseFeatures:
    """Features float32 [N, V] by part, read from disk as they are used.

    Raises:
        EncoderError: where no word of the training part is left.
        CacheError: where the cache cannot be written.
    """
    made_of = {"version": VERSION, "corpus": corpus.fingerprint, **asdict(settings)}

    def build(folder: Path) -> None:
        vectorizer = _fit_vectorizer(corpus.train.texts, settings, say)
        (folder / "num_words").write_text(str(len(vectorizer.vocabulary_)))
        for part, split in corpus.splits.items():
            _write(folder / part, split.texts, vectorizer, say)

    def load(folder: Path) -> SparseFeatures:
        num_words = int((folder / "num_words").read_text())
        return {part: _read(folder / part, len(split), num_words) for part, split in corpus.splits.items()}

    return cached(cache / f"tfidf-{digest(made_of)}", made_of, build, load, warn)


def _fit_vectorizer(texts: Sequence[str], settings: TfidfSettings, say: Say) -> TfidfVectorizer:
    """What ``TfidfVectorizer.fit`` gives, without the matrix of all counts that it holds in memory."""
    options: dict[str, Any] = {"stop_words": "english", "dtype": np.float32}
    words_of = TfidfVectorizer(**options).build_analyzer()
    frequency: Counter[str] = Counter()
    for number, text in enumerate(texts, 1):
        frequency.update(set(words_of(text)))
        if number % (5 * BATCH) == 0:
            say(f"words of {number:,} training documents counted")
    words = sorted(word for word, count in frequency.items() if count >= settings.min_df)
    if not words:
        raise EncoderError(f"no word occurs in {settings.min_df} training documents or more")
    vectorizer = TfidfVectorizer(vocabulary=words, sublinear_tf=settings.sublinear_tf, **options)
    count = np.array([frequency[word] for word in words], np.float32) + np.float32(1)
    vectorizer.idf_ = np.log(np.float32(len(texts) + 1) / count) + np.float32(1)
    return vectorizer


def _write(folder: Path, texts: Iterable[str], vectorizer: TfidfVectorizer, say: Say) -> None:
    folder.mkdir()
    rest, number = iter(texts), 0
    with ExitStack() as stack:
        files = [stack.enter_context(open(folder / name, "wb")) for name in ARRAYS]
        while batch := list(islice(rest, BATCH)):
            rows = vectorizer.transform(batch)
            arrays = rows.data, rows.indices, np.diff(rows.indptr)
            for file, array, dtype in zip(files, arrays, ARRAYS.values(), strict=True):
                file.write(array.astype(dtype).tobytes())
            number += len(batch)
            say(f"TF-IDF of {number:,} {folder.name} documents")


def _read(folder: Path, num_rows: int, num_words: int) -> csr_matrix:
    data, indices, lengths = (
        np.memmap(folder / name, dtype, mode="r") if (folder / name).stat().st_size else np.empty(0, dtype)
        for name, dtype in ARRAYS.items()
    )
    indptr = np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)))
    if not len(lengths) == num_rows or not len(data) == len(indices) == indptr[-1]:
        raise ValueError(f"{folder.name}: arrays of other lengths than the corpus")
    if indptr[-1] < np.iinfo(np.int32).max:
        indptr = indptr.astype(np.int32)  # as indices has, which scipy else copies into memory
    return csr_matrix((data, indices, indptr), shape=(num_rows, num_words), copy=False)
