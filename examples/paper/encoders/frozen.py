"""A pretrained encoder that stays as it is: the mean of its last layer over a text's first tokens."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from encoders.encoder import EncoderError

BATCH = 32
# Of a folder from elsewhere, neither pickled weights nor code are read.
SAFE = {"use_safetensors": True, "trust_remote_code": False}


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


class FrozenEncoder:
    """Encoder and tokenizer in memory, on the GPU where there is one.

    Args:
        model: name on the hub, or a local folder.
        max_length: tokens that it reads of a text.
        safe: further options of ``from_pretrained``.

    Raises:
        EncoderError: where the model cannot be loaded.
    """

    def __init__(self, model: str, max_length: int, **safe: bool) -> None:
        from transformers import AutoModel

        from encoders.pretrained import check_length, load_pretrained, load_tokenizer

        self.max_length = max_length
        self.tokenizer = load_tokenizer(model, max_length, "--max-length")
        encoder = load_pretrained(AutoModel.from_pretrained, model, dtype=torch.float32, **safe)
        check_length("--max-length", model, getattr(encoder.config, "max_position_embeddings", None), max_length)
        self.encoder = encoder.eval().to("cuda" if torch.cuda.is_available() else "cpu")
        self.width = int(encoder.config.hidden_size)

    def __call__(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """float32 [n, D]."""
        return in_batches(texts, self.width, self._encode)

    def save(self, folder: Path) -> None:
        self.encoder.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    @torch.inference_mode()
    def _encode(self, texts: list[str]) -> Tensor:
        length = self.max_length
        tokens = self.tokenizer(texts, truncation=True, max_length=length, padding=True, return_tensors="pt")
        tokens = tokens.to(self.encoder.device)
        hidden = self.encoder(**tokens).last_hidden_state
        mask = tokens["attention_mask"].unsqueeze(-1).to(hidden.dtype)
        mean: Tensor = (hidden * mask).sum(1) / mask.sum(1)
        return mean


def in_batches(texts: Sequence[str], width: int, encode: Callable[[list[str]], Tensor]) -> NDArray[np.float32]:
    """float32 [n, width], the rows that ``encode`` gives of the texts; texts of like length make a batch."""
    rows = np.empty((len(texts), width), np.float32)
    order = np.argsort([-len(text) for text in texts], kind="stable")
    for start in range(0, len(order), BATCH):
        batch = order[start : start + BATCH]
        rows[batch] = encode([texts[row] for row in batch]).float().cpu().numpy()
    return rows


def load_frozen(folder: Path, max_length: int) -> FrozenEncoder:
    """What :meth:`FrozenEncoder.save` wrote; ValueError where that cannot be loaded."""
    try:
        return FrozenEncoder(str(folder), max_length, **SAFE)
    except EncoderError as error:
        raise ValueError(f"{folder}: {error}") from error
