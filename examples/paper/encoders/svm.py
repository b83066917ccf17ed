"""The paper's baseline: one-vs-rest linear SVMs over TF-IDF features, some labels at a time."""

import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from corpora.corpus import Corpus
from files import AppendedRows, Json
from joblib import Parallel, delayed
from machine import peak_memory
from numpy.typing import NDArray
from progress import progress
from scipy.sparse import csc_array, csr_matrix, vstack
from sklearn.exceptions import ConvergenceWarning
from sklearn.svm import LinearSVC
from torch import Tensor

from encoders.features import SparseFeatures
from encoders.scoring import score_test, score_validation
from encoders.tfidf import SVM_TFIDF

SHIFTS: NDArray[np.float64] = np.arange(-10, 11) / 20
SETTINGS: Json = {"tfidf": asdict(SVM_TFIDF), "C": 1.0, "shifts": SHIFTS.tolist()}
# Labels whose decisions are computed, written and noted as done together.
BLOCK = 128
ROWS = 512

Decisions = NDArray[np.float32]


def run_svm(corpus: Corpus, features: SparseFeatures, folder: Path, jobs: int) -> Json:
    """LinearSVC with C = 1, with and without balanced class weights; each with the hyperplane where training put it
    and shifted for the best validation micro-F1.

    Memory holds the weights of one label a job: the decisions on validation and test, float32 [C, documents], are files
    in ``folder``, from which an interrupted run goes on.

    Returns:
        The result of the balanced and unshifted one, with the scores of all four under ``variants``.
    """
    start = time.perf_counter()
    headline: Json = {}
    variants: Json = {}
    for name, weight in (("SVM", "balanced"), ("SVM, unweighted", None)):
        decisions = _decisions(corpus, features, weight, folder, jobs)
        validation, test = decisions[: len(corpus.validation)], decisions[len(corpus.validation) :]
        for shifts in ([0.0], SHIFTS):
            chosen = score_validation(corpus, _batches(validation), shifts, "none")["protocol"]
            scores = score_test(corpus, _batches(test), chosen["threshold"], "none")
            headline = headline or {"threshold": 0.0, "validation": chosen["validation"], **scores}
            variant = name if len(shifts) == 1 else f"{name}, shift {chosen['threshold']:+.2f}"
            tested = {part: scores[part] for part in ("test", "test_by_instance")}
            variants[variant] = {"validation": chosen["validation"], **tested}
    del variants["SVM"]
    return {
        **headline,
        "best_epoch": None,
        "variants": variants,
        "seconds": time.perf_counter() - start,
        "peak_memory_bytes": peak_memory(torch.device("cpu")),
    }


def _decisions(corpus: Corpus, features: SparseFeatures, weight: str | None, folder: Path, jobs: int) -> Decisions:
    """float32 [validation + test, C]; -inf for labels never trained, inf for those that all documents carry."""
    folder.mkdir(parents=True, exist_ok=True)
    train = features["train"].astype(np.float64)
    rest = vstack((features["validation"], features["test"]), format="csr", dtype=np.float64)
    carriers = csc_array(corpus.train.targets.to_scipy())
    decisions = AppendedRows(folder / f"{weight}.f32", (corpus.num_labels, rest.shape[0]), BLOCK)
    with Parallel(n_jobs=jobs) as parallel:
        while decisions.done < corpus.num_labels:
            block = range(decisions.done, min(decisions.done + BLOCK, corpus.num_labels))
            rows = [carriers.indices[carriers.indptr[label] : carriers.indptr[label + 1]] for label in block]
            decisions.append(np.stack(parallel(delayed(_fit)(train, rest, one, weight) for one in rows)))
            progress.say(f"{weight or 'unweighted'}: {decisions.done:,} of {corpus.num_labels:,} labels")
    return decisions.values().T


def _fit(train: csr_matrix, rest: csr_matrix, rows: NDArray[np.int32], weight: str | None) -> Decisions:
    """The decisions on ``rest`` of an SVM of which ``rows`` of ``train`` are the positives."""
    if len(rows) in (0, train.shape[0]):
        return np.full(rest.shape[0], np.inf if len(rows) else -np.inf, np.float32)
    positive = np.zeros(train.shape[0], np.int8)
    positive[rows] = 1
    svm = LinearSVC(C=1.0, class_weight=weight, random_state=0)
    with warnings.catch_warnings():
        # Some stop a little short of convergence.
        warnings.simplefilter("ignore", ConvergenceWarning)
        svm.fit(train, positive)
    return np.asarray(svm.decision_function(rest), np.float32)


def _batches(decisions: Decisions) -> Iterator[Tensor]:
    for start in range(0, len(decisions), ROWS):
        yield torch.from_numpy(np.ascontiguousarray(decisions[start : start + ROWS]))
