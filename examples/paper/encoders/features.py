"""Features of a corpus that are made once and mapped from disk: TF-IDF, and those of a pretrained encoder."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import joblib
import numpy as np
from corpora.corpus import VERSION, Corpus, Split, Write, cached_parts
from files import AppendedRows, cached, digest
from numpy.typing import NDArray
from progress import progress
from scipy.sparse import csr_matrix, vstack

from encoders.frozen import BATCH, FrozenEncoder, model_name
from encoders.tfidf import TfidfSettings, fit_vectorizer, load_vectorizer, save_vectorizer

TEXTS = 1000
# Documents whose features are written together.
BLOCK = 20 * BATCH

SparseFeatures = dict[str, csr_matrix]
DenseFeatures = dict[str, NDArray[np.float32]]


def tfidf_features(corpus: Corpus, settings: TfidfSettings, cache: Path) -> SparseFeatures:
    """Features float32 [N, V] by part, read from disk as they are used.

    Raises:
        EncoderError: where no word of the training part is left.
        CacheError: where the cache cannot be written.
    """

    def writer() -> Write:
        vectorizer = tfidf_vectorizer(corpus, settings, cache)

        def write(path: Path, split: Split) -> None:
            batches = _batches(split.texts, f"{path.name} documents weighed")
            joblib.dump(vstack([vectorizer.transform(batch) for batch in batches], "csr"), path)

        return write

    return cached_parts(corpus, cache, "tfidf", asdict(settings), writer, lambda path: joblib.load(path, mmap_mode="r"))


def tfidf_vectorizer(corpus: Corpus, settings: TfidfSettings, cache: Path) -> Any:
    """scikit-learn's vectorizer, fitted to the training part; errors as :func:`tfidf_features`."""
    made_of = {"version": VERSION, "corpus": corpus.fingerprint, **asdict(settings)}

    def build(folder: Path) -> None:
        batches = _batches(corpus.train.texts, "training documents counted")
        save_vectorizer(fit_vectorizer((text for batch in batches for text in batch), settings), settings, folder)

    return cached(cache / f"vectorizer-{digest(made_of)}", made_of, build, load_vectorizer)


def _batches(texts: Sequence[str], what: str) -> Iterator[Sequence[str]]:
    for start in range(0, len(texts), TEXTS):
        yield texts[start : start + TEXTS]
        progress.say(f"TF-IDF: {min(start + TEXTS, len(texts)):,} {what}")


def frozen_features(corpus: Corpus, model: str, max_length: int, cache: Path) -> DenseFeatures:
    """Features float32 [N, D] by part: the mean of the last layer over a text's first ``max_length`` tokens.

    Raises:
        EncoderError: where the model cannot be loaded.
        CacheError: where the cache cannot be written.
    """

    def writer() -> Write:
        encoder = FrozenEncoder(model, max_length)

        def write(path: Path, split: Split) -> None:
            features = AppendedRows(path, (len(split), encoder.width), BLOCK)
            while features.done < len(split):
                features.append(encoder(list(split.texts[features.done : features.done + BLOCK])))
                progress.say(f"features of {features.done:,} of {len(split):,} {path.name} documents")

        return write

    def read(path: Path) -> NDArray[np.float32]:
        return np.memmap(path, np.float32, "r").reshape(len(corpus.splits[path.name]), -1)

    made_of = {"model": model_name(model), "max_length": max_length}
    return cached_parts(corpus, cache, "frozen", made_of, writer, read, resumable=True)
