"""Texts tokenised once and kept as Arrow, by what made them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import tokenizers
from corpora.corpus import Corpus, Split
from datasets import Dataset, Features, List, Value
from datasets.arrow_writer import ArrowWriter
from files import Say, cached
from transformers import PreTrainedTokenizerBase

# To be raised with every change in what is stored.
VERSION = 1
BATCH = 1000

Tokens = dict[str, Dataset]


def tokenize(
    corpus: Corpus, tokenizer: PreTrainedTokenizerBase, max_length: int, cache: Path, say: Say, warn: Say
) -> Tokens:
    """``input_ids`` and ``labels`` (label ids) by part, memory-mapped; at most ``max_length`` tokens of a text.

    Raises:
        CacheError: where the cache cannot be written.
    """
    made_of = {
        "version": VERSION,
        "corpus": corpus.fingerprint,
        "tokenizer": _identity(tokenizer),
        "tokenizers": tokenizers.__version__,
        "max_length": max_length,
        "parts": {part: len(split) for part, split in corpus.splits.items()},
    }
    name = hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:16]

    def build(folder: Path) -> None:
        for part, split in corpus.splits.items():
            _write(folder / f"{part}.arrow", part, split, tokenizer, max_length, say)

    def load(folder: Path) -> Tokens:
        tokens = {part: Dataset.from_file(str(folder / f"{part}.arrow")) for part in corpus.splits}
        for part, split in corpus.splits.items():
            if len(tokens[part]) != len(split):
                raise ValueError(f"{part}: {len(tokens[part]):,} tokenised of {len(split):,} documents")
        return tokens

    return cached(cache / f"tokens-{name}", made_of, build, load, warn)


def _write(path: Path, part: str, split: Split, tokenizer: PreTrainedTokenizerBase, max_length: int, say: Say) -> None:
    features = Features({"input_ids": List(Value("int32")), "labels": List(Value("int32"))})
    with ArrowWriter(features=features, path=str(path), writer_batch_size=BATCH) as writer:
        for start in range(0, len(split), BATCH):
            here = slice(start, min(start + BATCH, len(split)))
            tokens = tokenizer(list(split.texts[here]), truncation=True, max_length=max_length)
            writer.write_batch({"input_ids": tokens["input_ids"], "labels": split.targets[here].to_lists()})
            say(f"{here.stop:,} of {len(split):,} {part} documents tokenised")
        writer.finalize()


def _identity(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash of all that turns a text into ids; not of the length, which the tokenizer keeps from its last call."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    state = json.loads(backend.to_str()) if backend is not None else tokenizer.get_vocab()
    state = {key: value for key, value in state.items() if key not in ("truncation", "padding")}
    said = json.dumps([type(tokenizer).__name__, tokenizer.truncation_side, state], sort_keys=True)
    return hashlib.sha256(said.encode()).hexdigest()[:16]
