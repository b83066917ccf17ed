"""Mean-pooled features of a pretrained encoder that stays as it is: computed once, resumable, memory-mapped."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from corpora.corpus import Corpus, Split, Write, cached_parts
from files import AppendedRows
from numpy.typing import NDArray
from progress import progress

BATCH = 32
# Documents whose features are written together; within them those of like length make a batch.
BLOCK = 20 * BATCH

DenseFeatures = dict[str, NDArray[np.float32]]


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
