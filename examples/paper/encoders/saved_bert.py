"""A fine-tuned encoder as a plain checkpoint of transformers, which AutoModelForSequenceClassification loads too."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from files import Json
from torch import Tensor
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_NAME

from encoders.encoder import EncoderError
from encoders.frozen import SAFE, in_batches
from encoders.pretrained import load_pretrained


@dataclass
class SavedBert:
    """From texts to logits."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    max_length: int

    def logits(self, texts: Sequence[str]) -> Tensor:
        """float32 [n, C]."""
        return torch.from_numpy(in_batches(texts, int(self.model.config.num_labels or 0), self._logits))

    @torch.inference_mode()
    def _logits(self, texts: list[str]) -> Tensor:
        length = self.max_length
        tokens = self.tokenizer(texts, truncation=True, max_length=length, padding=True, return_tensors="pt")
        logits: Tensor = self.model(**tokens.to(self.model.device)).logits
        return logits


def copy_checkpoint(checkpoint: Path, tokenizer: PreTrainedTokenizerBase, max_length: int, folder: Path) -> Json:
    """Writes model and tokenizer of one of Trainer's checkpoints into ``folder``; what :func:`load_bert` needs
    besides."""
    for name in (CONFIG_NAME, SAFE_WEIGHTS_NAME):
        shutil.copyfile(checkpoint / name, folder / name)
    tokenizer.save_pretrained(folder)
    return {"kind": "bert", "max_length": max_length}


def load_bert(folder: Path, body: Json, num_labels: int) -> SavedBert:
    """What :func:`copy_checkpoint` wrote and said; ValueError for another number of labels or files that are broken."""
    try:
        load = AutoModelForSequenceClassification.from_pretrained
        model = load_pretrained(load, str(folder), dtype=torch.float32, **SAFE)
        tokenizer = load_pretrained(AutoTokenizer.from_pretrained, str(folder), trust_remote_code=False)
    except EncoderError as error:
        raise ValueError(f"{folder}: {error}") from error
    if model.config.num_labels != num_labels:
        raise ValueError(f"{folder / CONFIG_NAME}: expected {num_labels:,} labels, got {model.config.num_labels:,}")
    return SavedBert(model.eval().to("cuda" if torch.cuda.is_available() else "cpu"), tokenizer, body["max_length"])
