"""A generated file in BioASQ's format, of any size: long-tailed headings, each with words of its own."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from files import Say, atomic_file
from numpy.typing import NDArray

# Articles and headings of the paper's corpus (Huang et al., EMNLP 2021, Table 1).
NUM_ARTICLES, NUM_LABELS = 224_897, 18_211
BLOCK = 1000
VOCABULARY = 30_000
TOPIC_WORDS = 8
TOPICAL_SHARE = 0.3
TITLE_WORDS, ABSTRACT_WORDS = 8, 60
MEAN_LABELS = 12
# Articles that every heading is sure to be on, where there are enough articles.
LEAST_COUNT = 6


def write_bioasq(path: Path, num_articles: int, num_labels: int, say: Say, seed: int = 0) -> None:
    """Same arguments, same articles; gzipped where ``path`` ends in ``.gz``. Memory does not grow with the articles."""
    with atomic_file(path) as temporary, _open(temporary) as file:
        file.write('{"articles":[\n')
        for number, article in enumerate(generate_articles(num_articles, num_labels, seed)):
            file.write((",\n" if number else "") + json.dumps(article))
            if (number + 1) % (5 * BLOCK) == 0:
                say(f"{number + 1:,} of {num_articles:,} articles generated")
        file.write("\n]}\n")


def generate_articles(num_articles: int, num_labels: int, seed: int) -> Iterator[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    topics = rng.integers(VOCABULARY, size=(num_labels, TOPIC_WORDS))
    of_labels = _cumulative(1 / (np.arange(num_labels) + 20.0) ** 1.1)
    of_words = _cumulative(1 / (np.arange(VOCABULARY) + 5.0))
    words = np.array([f"w{word:05d}" for word in range(VOCABULARY)])
    for first in range(0, num_articles, BLOCK):
        numbers = np.arange(first, min(first + BLOCK, num_articles))
        labels = np.searchsorted(of_labels, rng.random((len(numbers), 3 * MEAN_LABELS)))
        labels[:, 0] = np.where(numbers < LEAST_COUNT * num_labels, numbers % num_labels, labels[:, 0])
        carried = np.clip(rng.poisson(MEAN_LABELS, len(numbers)), 1, labels.shape[1])
        shape = (len(numbers), TITLE_WORDS + ABSTRACT_WORDS)
        topical = np.take_along_axis(labels, (rng.random(shape) * carried[:, None]).astype(np.int64), 1)
        text = np.where(
            rng.random(shape) < TOPICAL_SHARE,
            topics[topical, rng.integers(TOPIC_WORDS, size=shape)],
            np.searchsorted(of_words, rng.random(shape)),
        )
        for number, ids, count, row in zip(numbers.tolist(), labels, carried.tolist(), words[text], strict=True):
            yield {
                "journal": "Generated",
                "meshMajor": [f"heading {label:05d}" for label in sorted(set(ids[:count].tolist()))],
                "year": str(2020 + number % 2),
                "abstractText": " ".join(row[TITLE_WORDS:].tolist()),
                "pmid": str(number + 1),
                "title": " ".join(row[:TITLE_WORDS].tolist()),
            }


def _cumulative(weights: NDArray[np.float64]) -> NDArray[np.float64]:
    cumulative = np.cumsum(weights) / weights.sum()
    cumulative[-1] = 1.0
    return cumulative


def _open(path: Path) -> IO[str]:
    return gzip.open(path, "wt", encoding="utf-8") if path.suffix == ".gz" else open(path, "w", encoding="utf-8")
