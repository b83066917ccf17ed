"""The published figures, from the files in ``published/``, which name their source."""

from functools import cache
from pathlib import Path

import pandas as pd

Scores = dict[str, dict[str, float]]
FOLDER = Path(__file__).parent / "published"
CORPUS_NAMES = {"reuters": "Reuters-21578", "pubmed": "PubMed"}
# Label pairs that the paper's error analysis names as the most confused.
CONFUSED = {"reuters": (("platinum", "gold"), ("yen", "money-fx"), ("platinum", "copper"))}


@cache
def paper_scores(table: int, corpus: str | None) -> dict[str, Scores]:
    """Micro- and macro-F1 in percent by method and group of Table 2 or 3; nothing for a corpus not in the paper."""
    scores: dict[str, Scores] = {}
    for _, row in pd.read_csv(FOLDER / f"table{table}.csv", comment="#").query("corpus == @corpus").iterrows():
        scores.setdefault(row["method"], {})[row["group"]] = {"micro": row["micro"], "macro": row["macro"]}
    return scores


@cache
def paper_corpus(corpus: str | None) -> dict[str, str]:
    """What is published of a corpus, as printed, by statistic."""
    frame = pd.read_csv(FOLDER / "corpora.csv", comment="#", dtype=str).query("corpus == @corpus")
    return dict(zip(frame["statistic"], frame["value"], strict=True))
