"""TF-IDF features of a corpus, fitted on its training part, made once and kept as memory-mapped sparse rows."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import joblib
import numpy as np
from corpora.corpus import Corpus, Split, Write, cached_parts
from progress import progress
from scipy.sparse import csr_matrix, vstack
from sklearn.feature_extraction.text import TfidfVectorizer

from encoders.encoder import EncoderError

BATCH = 1000

SparseFeatures = dict[str, csr_matrix]


@dataclass(frozen=True)
class TfidfSettings:
    """As scikit-learn's TfidfVectorizer names them; English stop words are left out."""

    sublinear_tf: bool = True
    min_df: int = 3


# The one that reproduces the published SVM.
SVM_TFIDF = TfidfSettings(sublinear_tf=False, min_df=1)


def tfidf_features(corpus: Corpus, settings: TfidfSettings, cache: Path) -> SparseFeatures:
    """Features float32 [N, V] by part, read from disk as they are used.

    Raises:
        EncoderError: where no word of the training part is left.
        CacheError: where the cache cannot be written.
    """

    def writer() -> Write:
        vectorizer = TfidfVectorizer(stop_words="english", dtype=np.float32, **asdict(settings))
        try:
            vectorizer.fit(
                text for batch in _batches(corpus.train.texts, "training documents counted") for text in batch
            )
        except ValueError as error:
            raise EncoderError(f"no word occurs in {settings.min_df} training documents or more") from error

        def write(path: Path, split: Split) -> None:
            batches = _batches(split.texts, f"{path.name} documents weighed")
            joblib.dump(vstack([vectorizer.transform(batch) for batch in batches], "csr"), path)

        return write

    return cached_parts(corpus, cache, "tfidf", asdict(settings), writer, lambda path: joblib.load(path, mmap_mode="r"))


def _batches(texts: Sequence[str], what: str) -> Iterator[Sequence[str]]:
    for start in range(0, len(texts), BATCH):
        yield texts[start : start + BATCH]
        progress.say(f"TF-IDF: {min(start + BATCH, len(texts)):,} {what}")
