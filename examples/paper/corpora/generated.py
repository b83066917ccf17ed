"""Generated data in the place of Reuters and of a BioASQ file: long-tailed labels, each with words of its own."""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from files import atomic_file
from numpy.typing import NDArray
from progress import progress

from corpora.corpus import Corpus
from corpora.reuters import NUM_LABELS, NUM_TEST, NUM_TRAIN, NUM_VALIDATION, Documents, make_reuters

# Articles and headings of the paper's corpus (Huang et al., EMNLP 2021, Table 1).
NUM_ARTICLES, NUM_HEADINGS = 224_897, 18_211
NUM_DOCUMENTS = NUM_TRAIN + NUM_TEST
MIN_DOCUMENTS = 1000
BLOCK = 1000
VOCABULARY = 30_000
TOPIC_WORDS = 8
TOPICAL_SHARE = 0.3
TITLE_WORDS, ABSTRACT_WORDS = 8, 60
MEAN_LABELS = 12
# Articles that every heading is sure to be on, where there are enough articles.
LEAST_COUNT = 6
WORDS = np.array([f"w{word:05d}" for word in range(VOCABULARY)])

Ids = NDArray[np.int64]


class _Topics:
    """Words of each label, and the texts that they make."""

    def __init__(self, rng: np.random.Generator, num_labels: int) -> None:
        self.rng = rng
        self.topics = rng.integers(VOCABULARY, size=(num_labels, TOPIC_WORDS))
        self.frequencies = _cumulative(1 / (np.arange(VOCABULARY) + 5.0))

    def texts(self, labels: Ids, carried: Ids, length: int) -> NDArray[np.str_]:
        """[n, length] words of n documents, of which each has the first ``carried`` of its ``labels`` [n, L]."""
        rng, shape = self.rng, (len(labels), length)
        topical = np.take_along_axis(labels, (rng.random(shape) * carried[:, None]).astype(np.int64), 1)
        words = np.where(
            rng.random(shape) < TOPICAL_SHARE,
            self.topics[topical, rng.integers(TOPIC_WORDS, size=shape)],
            np.searchsorted(self.frequencies, rng.random(shape)),
        )
        return WORDS[words]


def generate_corpus(notice: str, num_documents: int = NUM_DOCUMENTS, seed: int = 0) -> Corpus:
    """A corpus of the shape of Reuters, in its proportions; same arguments, same corpus.

    Raises:
        ValueError: for fewer than 1,000 documents, too few to fill every frequency group.
    """
    if num_documents < MIN_DOCUMENTS:
        raise ValueError(f"num_documents: expected at least {MIN_DOCUMENTS}, got {num_documents}")
    num_test = round(num_documents * NUM_TEST / NUM_DOCUMENTS)
    num_train = num_documents - num_test
    topics = _Topics(np.random.default_rng(seed), NUM_LABELS)
    train, test = (_documents(topics, number) for number in (num_train, num_test))
    names = [f"topic{label:02d}" for label in range(NUM_LABELS)]
    return make_reuters("Generated corpus", names, train, test, round(num_train * NUM_VALIDATION / NUM_TRAIN), notice)


def _documents(topics: _Topics, size: int) -> Documents:
    """Documents of which each label is the first of at least one; it may bring a more frequent one, its parent."""
    rng = topics.rng
    rank = np.arange(1, NUM_LABELS + 1)
    # Fitted to Reuters: 2,500 training documents on the first label, 35 on the 32nd, 8 on the 60th.
    frequency = _cumulative(rank**-0.725 * np.exp(-0.0364 * rank))
    first = np.concatenate((rank - 1, np.searchsorted(frequency, rng.random(size - NUM_LABELS))))
    rng.shuffle(first)
    joins_parent = rng.random(size) < np.linspace(0.05, 0.6, NUM_LABELS)[first]
    parent, other = first // 3, np.searchsorted(frequency, rng.random(size))
    carried = 1 + joins_parent + (rng.random(size) < 0.05)
    labels = np.stack((first, np.where(joins_parent, parent, other), other), 1)
    texts = topics.texts(labels, carried, TITLE_WORDS + ABSTRACT_WORDS)
    ids = [sorted(set(row[:count].tolist())) for row, count in zip(labels, carried, strict=True)]
    return [" ".join(row) for row in texts], ids


def write_bioasq(path: Path, num_articles: int, num_labels: int, seed: int = 0) -> None:
    """Same arguments, same articles; gzipped where ``path`` ends in ``.gz``. Memory does not grow with the articles."""
    with atomic_file(path) as temporary, _open(temporary) as file:
        file.write('{"articles":[\n')
        for number, article in enumerate(generate_articles(num_articles, num_labels, seed)):
            file.write((",\n" if number else "") + json.dumps(article))
            if (number + 1) % (5 * BLOCK) == 0:
                progress.say(f"{number + 1:,} of {num_articles:,} articles generated")
        file.write("\n]}\n")


def generate_articles(num_articles: int, num_labels: int, seed: int) -> Iterator[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    topics = _Topics(rng, num_labels)
    of_labels = _cumulative(1 / (np.arange(num_labels) + 20.0) ** 1.1)
    for first in range(0, num_articles, BLOCK):
        numbers = np.arange(first, min(first + BLOCK, num_articles))
        labels = np.searchsorted(of_labels, rng.random((len(numbers), 3 * MEAN_LABELS)))
        labels[:, 0] = np.where(numbers < LEAST_COUNT * num_labels, numbers % num_labels, labels[:, 0])
        carried = np.clip(rng.poisson(MEAN_LABELS, len(numbers)), 1, labels.shape[1])
        texts = topics.texts(labels, carried, TITLE_WORDS + ABSTRACT_WORDS)
        for number, ids, count, row in zip(numbers.tolist(), labels, carried.tolist(), texts, strict=True):
            yield {
                "journal": "Generated",
                "meshMajor": [f"heading {label:05d}" for label in sorted(set(ids[:count].tolist()))],
                "year": str(2020 + number % 2),
                "abstractText": " ".join(row[TITLE_WORDS:].tolist()),
                "pmid": str(number + 1),
                "title": " ".join(row[:TITLE_WORDS].tolist()),
            }


def write_labelled(path: Path, num_documents: int, num_labels: int, seed: int = 0) -> None:
    """A tab-separated table as people have them: no header, and texts and labels that begin with quotes.

    It is for ``run_corpus.py FILE --no-header --quoting none``; gzipped where ``path`` ends in ``.gz``.
    """
    with atomic_file(path) as temporary, _open(temporary) as file:
        for number, article in enumerate(generate_articles(num_documents, num_labels, seed)):
            text, names = f"{article['title']} {article['abstractText']}", article["meshMajor"]
            # As in a corpus of quotations; the other quote need not be on the same line.
            text = f'"{text}' if number % 2 else f'"{text[:40]}"{text[40:]}'
            labels = (f'"{name}"' if int(name[-1]) < 3 else name for name in names)
            file.write(f"{text}\t{';'.join(labels)}\n")


def _cumulative(weights: NDArray[np.float64]) -> NDArray[np.float64]:
    cumulative = np.cumsum(weights) / weights.sum()
    cumulative[-1] = 1.0
    return cumulative


def _open(path: Path) -> IO[str]:
    return gzip.open(path, "wt", encoding="utf-8") if path.suffix == ".gz" else open(path, "w", encoding="utf-8")
