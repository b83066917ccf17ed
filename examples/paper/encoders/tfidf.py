"""The TF-IDF weighing of texts, kept as JSON and safetensors, from which scikit-learn's vectorizer is made again."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file
from sklearn.feature_extraction.text import TfidfVectorizer

from encoders.encoder import EncoderError

VOCABULARY, IDF = "vocabulary.json", "idf.safetensors"


@dataclass(frozen=True)
class TfidfSettings:
    """As scikit-learn's TfidfVectorizer names them; English stop words are left out."""

    sublinear_tf: bool = True
    min_df: int = 3


# The one that reproduces the published SVM.
SVM_TFIDF = TfidfSettings(sublinear_tf=False, min_df=1)


def fit_vectorizer(texts: Iterable[str], settings: TfidfSettings) -> Any:
    """Raises EncoderError where no word is in ``min_df`` of the texts."""
    try:
        return _new(settings).fit(texts)
    except ValueError as error:
        raise EncoderError(f"no word occurs in {settings.min_df} training documents or more") from error


def save_vectorizer(vectorizer: Any, settings: TfidfSettings, folder: Path) -> None:
    """Words in the order of their columns, and their inverse document frequencies."""
    words = {"settings": asdict(settings), "words": vectorizer.get_feature_names_out().tolist()}
    (folder / VOCABULARY).write_text(json.dumps(words, ensure_ascii=False), encoding="utf-8")
    save_file({"idf": np.ascontiguousarray(vectorizer.idf_)}, folder / IDF)


def load_vectorizer(folder: Path) -> Any:
    """What :func:`save_vectorizer` wrote; the same texts get the same bits.

    Raises:
        OSError, ValueError: naming the file, for one that is missing or has other content.
    """
    path = folder / VOCABULARY
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        words = content["words"]
        vectorizer = _new(TfidfSettings(**content["settings"]), vocabulary=words)
        path = folder / IDF
        idf = load_file(path)["idf"]
        if idf.shape != (len(words),):
            raise ValueError(f"expected {len(words):,} numbers, one a word of {VOCABULARY}, got shape {idf.shape}")
        vectorizer.idf_ = idf
        return vectorizer
    except OSError:
        raise
    # Safetensors has an error of its own.
    except Exception as error:
        raise ValueError(f"{path}: {error}") from error


def _new(settings: TfidfSettings, **more: Any) -> TfidfVectorizer:
    return TfidfVectorizer(stop_words="english", dtype=np.float32, **asdict(settings), **more)
