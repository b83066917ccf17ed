"""Features of a corpus that are made once and mapped from disk: TF-IDF, and those of a pretrained encoder."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import torch
from corpora.corpus import Corpus, Split, Write, cached_parts
from files import AppendedRows
from numpy.typing import NDArray
from progress import progress
from scipy.sparse import csr_matrix, vstack
from sklearn.feature_extraction.text import TfidfVectorizer

from encoders.encoder import EncoderError

TEXTS = 1000
BATCH = 32
# Documents whose features are written together; within them those of like length make a batch.
BLOCK = 20 * BATCH

SparseFeatures = dict[str, csr_matrix]
DenseFeatures = dict[str, NDArray[np.float32]]


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
    for start in range(0, len(texts), TEXTS):
        yield texts[start : start + TEXTS]
        progress.say(f"TF-IDF: {min(start + TEXTS, len(texts)):,} {what}")


def model_name(model: str) -> str:
    """Name of a model of the hub; of a local folder its last part, with a hash of the weights in it."""
    folder = Path(model)
    if not folder.is_dir():
        return model
    hashed = hashlib.sha256()
    for path in sorted(path for kind in ("safetensors", "bin", "json") for path in folder.glob(f"*.{kind}")):
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                hashed.update(block)
    return f"{folder.resolve().name}@{hashed.hexdigest()[:8]}"


def frozen_features(corpus: Corpus, model: str, max_length: int, cache: Path) -> DenseFeatures:
    """Features float32 [N, D] by part: the mean of the last layer over a text's first ``max_length`` tokens.

    Raises:
        EncoderError: where the model cannot be loaded.
        CacheError: where the cache cannot be written.
    """

    def writer() -> Write:
        from transformers import AutoModel

        from encoders.pretrained import check_length, load_pretrained, load_tokenizer

        tokenizer = load_tokenizer(model, max_length, "--max-length")
        encoder = load_pretrained(AutoModel.from_pretrained, model, dtype=torch.float32)
        check_length("--max-length", model, getattr(encoder.config, "max_position_embeddings", None), max_length)
        encoder = encoder.eval().to("cuda" if torch.cuda.is_available() else "cpu")

        def write(path: Path, split: Split) -> None:
            features = AppendedRows(path, (len(split), encoder.config.hidden_size), BLOCK)
            while features.done < len(split):
                texts = list(split.texts[features.done : features.done + BLOCK])
                rows = np.empty((len(texts), encoder.config.hidden_size), np.float32)
                order = np.argsort([-len(text) for text in texts], kind="stable")
                for batch in np.split(order, range(BATCH, len(order), BATCH)):
                    rows[batch] = _encode([texts[row] for row in batch], encoder, tokenizer, max_length)
                features.append(rows)
                progress.say(f"features of {features.done:,} of {len(split):,} {path.name} documents")

        return write

    def read(path: Path) -> NDArray[np.float32]:
        return np.memmap(path, np.float32, "r").reshape(len(corpus.splits[path.name]), -1)

    made_of = {"model": model_name(model), "max_length": max_length}
    return cached_parts(corpus, cache, "frozen", made_of, writer, read, resumable=True)


@torch.inference_mode()
def _encode(texts: list[str], encoder: Any, tokenizer: Any, max_length: int) -> NDArray[np.float32]:
    tokens = tokenizer(texts, truncation=True, max_length=max_length, padding=True, return_tensors="pt")
    tokens = tokens.to(encoder.device)
    hidden = encoder(**tokens).last_hidden_state
    mask = tokens["attention_mask"].unsqueeze(-1).to(hidden.dtype)
    mean: NDArray[np.float32] = ((hidden * mask).sum(1) / mask.sum(1)).cpu().numpy()
    return mean
