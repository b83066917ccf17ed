"""Mean-pooled features of a pretrained encoder that stays as it is: computed once, resumable, memory-mapped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from corpora.corpus import Corpus
from files import ResumableArray, Say, cached
from numpy.typing import NDArray

from encoders.encoder import EncoderError

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
    digest = hashlib.sha256()
    for path in sorted((*folder.glob("*.safetensors"), *folder.glob("*.bin"), *folder.glob("*.json"))):
        with open(path, "rb") as file:
            while block := file.read(BLOCK):
                digest.update(block)
    return f"{folder.resolve().name}@{digest.hexdigest()[:8]}"


def frozen_features(corpus: Corpus, model: str, max_length: int, cache: Path, say: Say, warn: Say) -> DenseFeatures:
    """Features float32 [N, D] by part: the mean of the last layer over a text's first ``max_length`` tokens.

    Raises:
        EncoderError: where the model cannot be loaded.
        CacheError: where the cache cannot be written.
    """
    made_of = {
        "version": VERSION,
        "corpus": corpus.fingerprint,
        "model": model_name(model),
        "max_length": max_length,
        "parts": {part: len(split) for part, split in corpus.splits.items()},
    }
    name = hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:16]

    def build(folder: Path) -> None:
        encoder, tokenizer = _load_model(model, max_length)
        for part, split in corpus.splits.items():
            _write(folder / f"{part}.npy", split.texts, encoder, tokenizer, max_length, say)

    def load(folder: Path) -> DenseFeatures:
        features = {part: np.load(folder / f"{part}.npy", mmap_mode="r") for part in corpus.splits}
        for part, split in corpus.splits.items():
            if len(features[part]) != len(split):
                raise ValueError(f"{part}: {len(features[part]):,} features, {len(split):,} documents")
        return features

    return cached(cache / f"frozen-{name}", made_of, build, load, warn, resumable=True)


def _load_model(model: str, max_length: int) -> tuple[Any, Any]:
    from transformers import AutoModel, AutoTokenizer

    from encoders.pretrained import load_pretrained

    tokenizer = load_pretrained(AutoTokenizer.from_pretrained, model)
    encoder = load_pretrained(AutoModel.from_pretrained, model, dtype=torch.float32)
    if tokenizer.pad_token is None:
        raise EncoderError(f"--model {model}: its tokenizer has no padding token, which batches of texts need")
    most = min(tokenizer.model_max_length, getattr(encoder.config, "max_position_embeddings", max_length))
    if max_length > most:
        raise EncoderError(f"--max-length: {model} takes at most {most} tokens, got {max_length}")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return encoder.eval().to(device), tokenizer


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
            say(f"features of {sum(map(len, batches[: number + 1])):,} of {len(texts):,} {path.stem} documents")


@torch.inference_mode()
def _encode(texts: list[str], encoder: Any, tokenizer: Any, max_length: int) -> NDArray[np.float32]:
    tokens = tokenizer(texts, truncation=True, max_length=max_length, padding=True, return_tensors="pt")
    tokens = tokens.to(encoder.device)
    hidden = encoder(**tokens).last_hidden_state
    mask = tokens["attention_mask"].unsqueeze(-1).to(hidden.dtype)
    mean: NDArray[np.float32] = ((hidden * mask).sum(1) / mask.sum(1)).cpu().numpy()
    return mean
