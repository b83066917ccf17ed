"""A multi-label text classifier in scikit-learn: TF-IDF and BalancedClassifier in a pipeline.

    python examples/scikit_learn.py

The texts are generated: every topic has a word of its own, and the last topics are rare. Printed is F1 in percent on
test texts, of all topics and of the rare ones, beside one-vs-rest logistic regression.
"""

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MultiLabelBinarizer

from fused_balanced_loss.integrations.sklearn import BalancedClassifier

TOPICS = [f"topic{number:02}" for number in range(40)]
RARE = slice(20, None)


def documents(number: int, seed: int) -> tuple[list[str], list[list[str]]]:
    """Texts of 12 words, of which some tell the topics, and the topics of each text."""
    random = np.random.default_rng(seed)
    frequency = 1 / np.arange(1, len(TOPICS) + 1)
    texts, topics = [], []
    for _ in range(number):
        own = random.choice(TOPICS, 2, replace=False, p=frequency / frequency.sum())
        words = [f"about{topic[-2:]}" for topic in own if random.random() < 0.9]
        other = random.choice(400, 12 - len(words))
        texts.append(" ".join([*words, *(f"word{number}" for number in other)]))
        topics.append(sorted(own))
    return texts, topics


def main() -> None:
    texts, topics = documents(4000, seed=0)
    test_texts, test_topics = documents(2000, seed=1)
    binarizer = MultiLabelBinarizer(classes=TOPICS, sparse_output=True)
    targets, test_targets = binarizer.fit_transform(topics), binarizer.transform(test_topics)
    models = {
        "OneVsRest(LogisticRegression)": OneVsRestClassifier(LogisticRegression()),
        "BalancedClassifier": BalancedClassifier(random_state=0),
    }
    print(f"{'micro-F1/macro-F1, %':<32}{'all topics':>14}{'rare topics':>14}")
    for name, model in models.items():
        pipeline = make_pipeline(TfidfVectorizer(dtype=np.float32), model).fit(texts, targets)
        predicted = pipeline.predict(test_texts)
        pairs = ((test_targets, predicted), (test_targets[:, RARE], predicted[:, RARE]))
        scores = [[f1_score(*pair, average=kind, zero_division=0) for kind in ("micro", "macro")] for pair in pairs]
        print(f"{name:<32}" + "".join(f"{f'{100 * micro:.1f}/{100 * macro:.1f}':>14}" for micro, macro in scores))
    print(binarizer.inverse_transform(pipeline.predict(["something about03 and about31 and more"]))[0])


if __name__ == "__main__":
    main()
