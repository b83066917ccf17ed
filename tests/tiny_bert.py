"""A random BERT of a few thousand weights, its WordPiece vocabulary, and data that it can learn."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import BertConfig, BertForSequenceClassification, BertModel, BertTokenizer

NUM_LABELS = 7
WORDS = [f"w{number}" for number in range(40)]
_VOCABULARY = {word: at for at, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS])}


def tiny_tokenizer() -> BertTokenizer:
    return BertTokenizer(vocab=dict(_VOCABULARY))


def tiny_config(num_labels: int = NUM_LABELS, dropout: float = 0.0) -> BertConfig:
    return BertConfig(
        vocab_size=len(_VOCABULARY),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        num_labels=num_labels,
        problem_type="multi_label_classification",
    )


def tiny_classifier(dropout: float = 0.0) -> BertForSequenceClassification:
    torch.manual_seed(0)
    return BertForSequenceClassification(tiny_config(dropout=dropout))


def save_tiny_encoder(folder: Path) -> Path:
    """A pretrained encoder as it stands on the hub: weights without a classifier, and a tokenizer."""
    torch.manual_seed(0)
    BertModel(tiny_config(dropout=0.1)).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def documents(number: int, seed: int = 0) -> tuple[list[str], list[list[int]]]:
    """Texts of 3 to 14 words, and label ids: label k where word k stands; the first text has none."""
    generator = torch.Generator().manual_seed(seed)
    texts, ids = [], []
    for at in range(number):
        length = int(torch.randint(3, 15, (), generator=generator))
        words = torch.randint(NUM_LABELS if at == 0 else 0, len(WORDS), (length,), generator=generator).tolist()
        texts.append(" ".join(WORDS[word] for word in words))
        ids.append(sorted({word for word in words if word < NUM_LABELS}))
    return texts, ids


def samples(number: int, seed: int = 0) -> list[dict[str, list[int]]]:
    """Tokenised documents, as a dataset for Trainer."""
    texts, ids = documents(number, seed)
    tokens = tiny_tokenizer()(texts)["input_ids"]
    return [{"input_ids": row, "labels": labels} for row, labels in zip(tokens, ids, strict=True)]


def tiny_corpus():
    """64, 24 and 24 documents; needs ``examples`` on the path."""
    from corpora.corpus import Corpus, Split

    from fused_balanced_loss import SparseTargets

    def split(number: int, seed: int) -> Split:
        texts, ids = documents(number, seed)
        return Split(texts, SparseTargets.from_lists(ids, NUM_LABELS))

    return Corpus(
        name="tiny",
        label_names=[f"label {k}" for k in range(NUM_LABELS)],
        train=split(64, 1),
        validation=split(24, 2),
        test=split(24, 3),
        fingerprint="tiny-64",
        head=12,
        tail=4,
        instance_groups={"single": (1, 1), "multi": (2, None)},
    )
