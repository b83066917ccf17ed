"""A generated corpus of the shape of Reuters: long-tailed labels that co-occur, each with words of its own."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from corpora.corpus import Corpus
from corpora.reuters import NUM_LABELS, NUM_TEST, NUM_TRAIN, NUM_VALIDATION, Documents, make_reuters

NUM_DOCUMENTS = NUM_TRAIN + NUM_TEST
MIN_DOCUMENTS = 1000
VOCABULARY = 8000
TOPIC_WORDS = 30
TOPICAL_SHARE = 0.22
MEDIAN_LENGTH = 60


def generate_corpus(notice: str, num_documents: int = NUM_DOCUMENTS, seed: int = 0) -> Corpus:
    """Same arguments, same corpus; train, validation and test in Reuters' proportions.

    Raises:
        ValueError: for fewer than 1,000 documents, too few to fill every frequency group.
    """
    if num_documents < MIN_DOCUMENTS:
        raise ValueError(f"num_documents: expected at least {MIN_DOCUMENTS}, got {num_documents}")
    num_test = round(num_documents * NUM_TEST / NUM_DOCUMENTS)
    num_train = num_documents - num_test
    generator = _Generator(np.random.default_rng(seed))
    train, test = generator.documents(num_train), generator.documents(num_test)
    size = round(num_train * NUM_VALIDATION / NUM_TRAIN)
    names = [f"topic{label:02d}" for label in range(NUM_LABELS)]
    return make_reuters("Generated corpus", names, train, test, size, notice)


class _Generator:
    """Label 0 is the most frequent. A label may bring its parent, a more frequent one whose topic it half shares."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        rank = np.arange(1, NUM_LABELS + 1)
        # Fitted to Reuters: 2,500 training documents on the first label, 35 on the 32nd, 8 on the 60th.
        frequency = rank**-0.725 * np.exp(-0.0364 * rank)
        self.frequency = frequency / frequency.sum()
        self.parent = np.array([rng.integers(max(1, label // 2)) for label in range(NUM_LABELS)])
        self.joins_parent = np.linspace(0.05, 0.6, NUM_LABELS)
        words = rng.permutation(VOCABULARY)
        zipf = 1 / (np.arange(VOCABULARY) + 5.0)
        self.background = zipf[words] / zipf.sum()
        self.topics = self._topics()

    def _topics(self) -> NDArray[np.int64]:
        topics = self.rng.integers(VOCABULARY, size=(NUM_LABELS, TOPIC_WORDS))
        for label in range(1, NUM_LABELS):
            topics[label, TOPIC_WORDS // 2 :] = topics[self.parent[label], : TOPIC_WORDS - TOPIC_WORDS // 2]
        return topics

    def documents(self, size: int) -> Documents:
        """Documents of which each label is the first of at least one."""
        first = np.concatenate(
            (np.arange(NUM_LABELS), self.rng.choice(NUM_LABELS, size - NUM_LABELS, p=self.frequency))
        )
        self.rng.shuffle(first)
        label_ids = [self._labels(int(label)) for label in first]
        return [self._text(ids) for ids in label_ids], label_ids

    def _labels(self, first: int) -> list[int]:
        ids = {first}
        if self.rng.random() < self.joins_parent[first]:
            ids.add(int(self.parent[first]))
        if self.rng.random() < 0.05:
            ids.add(int(self.rng.choice(NUM_LABELS, p=self.frequency)))
        return sorted(ids)

    def _text(self, ids: list[int]) -> str:
        length = max(8, int(self.rng.lognormal(np.log(MEDIAN_LENGTH), 0.6)))
        words = self.rng.choice(VOCABULARY, length, p=self.background)
        topical = self.rng.random(length) < TOPICAL_SHARE
        labels = self.rng.choice(ids, length)
        # Squaring favours the topic's first words, which are its own.
        place = (self.rng.random(length) ** 2 * TOPIC_WORDS).astype(np.int64)
        words = np.where(topical, self.topics[labels, place], words)
        return " ".join(f"w{word:04d}" for word in words)
