"""A trained head with all that turns texts into its inputs, in one folder."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from files import Json
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from encoders.frozen import FrozenEncoder, load_frozen
from encoders.head import Head, HeadSettings, Inputs
from encoders.tfidf import TfidfSettings, load_vectorizer, save_vectorizer

WEIGHTS, ENCODER = "model.safetensors", "encoder"


@dataclass
class SavedHead:
    """From texts to logits; ``vectorizer`` or ``frozen`` is None where the head does not read its features."""

    head: Head
    vectorizer: Any
    frozen: FrozenEncoder | None

    def logits(self, texts: Sequence[str]) -> Tensor:
        """float32 [n, C]."""
        words = None if self.vectorizer is None else self.vectorizer.transform(texts)
        with torch.inference_mode():
            logits: Tensor = self.head.eval()(Inputs(words, None if self.frozen is None else self.frozen(texts)))
        return logits

    def save(self, folder: Path, settings: HeadSettings, tfidf: TfidfSettings) -> Json:
        """Writes all files into ``folder``; what :func:`load_head` needs besides."""
        weights = {name: value.detach().cpu().contiguous() for name, value in self.head.state_dict().items()}
        save_file(weights, folder / WEIGHTS)
        if self.vectorizer is not None:
            save_vectorizer(self.vectorizer, tfidf, folder)
        if self.frozen is not None:
            self.frozen.save(folder / ENCODER)
        length = None if self.frozen is None else self.frozen.max_length
        return {"kind": "head", "head": settings.as_json(), "tfidf": self.vectorizer is not None, "max_length": length}


def load_head(folder: Path, body: Json, num_labels: int) -> SavedHead:
    """What :meth:`SavedHead.save` wrote and said.

    Raises:
        OSError, ValueError: naming the file, for one that is missing or has other content.
    """
    vectorizer = load_vectorizer(folder) if body["tfidf"] else None
    frozen = load_frozen(folder / ENCODER, body["max_length"]) if body["max_length"] else None
    widths = len(vectorizer.vocabulary) if vectorizer else 0, frozen.width if frozen else 0
    head = Head(*widths, num_labels, HeadSettings(**body["head"]))
    load_weights(head, folder / WEIGHTS)
    return SavedHead(head.to("cuda" if torch.cuda.is_available() else "cpu"), vectorizer, frozen)


def load_weights(module: nn.Module, path: Path) -> None:
    """Raises ValueError saying which weight is missing, is too many, or has another shape."""
    try:
        weights = load_file(path)
    # Safetensors has an error of its own.
    except Exception as error:
        raise ValueError(f"{path}: {error}") from error
    expected = {name: list(value.shape) for name, value in module.state_dict().items()}
    found = {name: list(value.shape) for name, value in weights.items()}
    for name in sorted(expected | found):
        if expected.get(name) != found.get(name):
            raise ValueError(f"{path}: {name}: expected shape {expected.get(name)}, got {found.get(name)}")
    module.load_state_dict(weights)
