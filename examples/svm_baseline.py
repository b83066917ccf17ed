"""The paper's baseline: one-vs-rest linear SVMs over TF-IDF features."""

from __future__ import annotations

import time
import warnings
from dataclasses import dataclass

import numpy as np
from evaluation import Scores, choose_threshold, f1_by_group
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.multiclass import OneVsRestClassifier
from sklearn.svm import LinearSVC
from tfidf_features import Dataset, Part

SHIFTS: NDArray[np.float64] = np.arange(-10, 11) / 20


@dataclass(frozen=True)
class SvmResult:
    """Test scores with the hyperplane where training put it, and shifted for the best validation micro-F1.

    validation: scores of the unshifted.
    """

    validation: Scores
    unshifted: Scores
    shift: float
    shifted: Scores
    shifted_validation_micro_f1: float
    seconds: float


def train_svm(dataset: Dataset, *, balanced: bool) -> SvmResult:
    """LinearSVC with C = 1, with or without balanced class weights."""
    start = time.perf_counter()
    svm = OneVsRestClassifier(LinearSVC(C=1.0, class_weight="balanced" if balanced else None, random_state=0))
    with warnings.catch_warnings():
        # Reuters' training part lacks one label, and one SVM stops a little short of convergence.
        warnings.filterwarnings("ignore", "Label not", UserWarning)
        warnings.simplefilter("ignore", ConvergenceWarning)
        svm.fit(dataset.train.features, dataset.train.dense)
    # scikit-learn gives a label never trained on 0 everywhere, which any shift below 0 would predict for all documents.
    seen = dataset.train.dense.any(axis=0)

    def decision(part: Part) -> NDArray[np.float64]:
        return np.where(seen, svm.decision_function(part.features), -np.inf)

    validation, test = decision(dataset.validation), decision(dataset.test)
    shift, micro = choose_threshold(dataset.validation.dense, validation, SHIFTS)
    return SvmResult(
        validation=f1_by_group(dataset.validation.dense, validation > 0, dataset.groups),
        unshifted=f1_by_group(dataset.test.dense, test > 0, dataset.groups),
        shift=shift,
        shifted=f1_by_group(dataset.test.dense, test > shift, dataset.groups),
        shifted_validation_micro_f1=micro,
        seconds=time.perf_counter() - start,
    )
