"""Mean-pooled features of a pretrained encoder that stays as it is: computed once, resumable, memory-mapped."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from corpora.corpus import Corpus
from files import ResumableArray, Say, cached, digest
from numpy.typing import NDArray

VERSION = 1
BATCH = 32
# Batches between two notes of how far the features are.
NOTE = 20
BLOCK = 1 << 20

DenseFeatures = dict[str, NDArray[np.float32]]


def model_name(model: str) -> str:
    """Name of a model of the hub; of a local folder its last part, with a hash of the weights in it."""
    folder = Path(model)
    if not folder.is_dir():
        return model
    hashed = hashlib.sha256()
    for path in sorted(path for kind in ("safetensors", "bin", "json") for path in folder.glob(f"*.{kind}")):
        with open(path, "rb") as file:
            while block := file.read(BLOCK):
                hashed.update(block)
    return f"{folder.resolve().name}@{hashed.hexdigest()[:8]}"


def frozen_features(corpus: Corpus, model: str, max_length: int, cache: Path, say: Say, warn: Say) -> DenseFeatures:
    """Features float32 [N, D] by part: the mean of the last layer over a text's first ``max_length`` tokens.

    Raises:
        EncoderError: where the model cannot be loaded.
        CacheError: where the cache cannot be written.
    """
    parts = {part: len(split) for part, split in corpus.splits.items()}
    what = {"corpus": corpus.fingerprint, "model": model_name(model), "max_length": max_length, "parts": parts}
    made_of = {"version": VERSION, **what}

    def build(folder: Path) -> None:
        from transformers import AutoModel

        from encoders.pretrained import check_length, load_pretrained, load_tokenizer

        tokenizer = load_tokenizer(model, max_length, "--max-length")
        encoder = load_pretrained(AutoModel.from_pretrained, model, dtype=torch.float32)
        check_length("--max-length", model, getattr(encoder.config, "max_position_embeddings", None), max_length)
        encoder = encoder.eval().to("cuda" if torch.cuda.is_available() else "cpu")
        for part, split in corpus.splits.items():
            _write(folder / f"{part}.npy", split.texts, encoder, tokenizer, max_length, say)

    def load(folder: Path) -> DenseFeatures:
        features = {part: np.load(folder / f"{part}.npy", mmap_mode="r") for part in parts}
        if (found := {part: len(rows) for part, rows in features.items()}) != parts:
            raise ValueError(f"{found} features, {parts} documents")
        return features

    return cached(cache / f"frozen-{digest(made_of)}", made_of, build, load, warn, resumable=True)


def _write(path: Path, texts: Sequence[str], encoder: Any, tokenizer: Any, max_length: int, say: Say) -> None:
    """Batches of texts of like length, the longest first."""
    order = np.argsort([-len(text) for text in texts], kind="stable")
    batches = [order[start : start + BATCH] for start in range(0, len(order), BATCH)]
    features = ResumableArray(path, (len(texts), encoder.config.hidden_size))
    for number in range(features.done, len(batches)):
        rows = batches[number]
        features.values[rows] = _encode([texts[int(row)] for row in rows], encoder, tokenizer, max_length)
        if (number + 1) % NOTE == 0 or number + 1 == len(batches):
            features.finish(number + 1)
            say(f"features of {min((number + 1) * BATCH, len(texts)):,} of {len(texts):,} {path.stem} documents")


@torch.inference_mode()
def _encode(texts: list[str], encoder: Any, tokenizer: Any, max_length: int) -> NDArray[np.float32]:
    tokens = tokenizer(texts, truncation=True, max_length=max_length, padding=True, return_tensors="pt")
    tokens = tokens.to(encoder.device)
    hidden = encoder(**tokens).last_hidden_state
    mask = tokens["attention_mask"].unsqueeze(-1).to(hidden.dtype)
    mean: NDArray[np.float32] = ((hidden * mask).sum(1) / mask.sum(1)).cpu().numpy()
    return mean
