"""All runs of the experiment: what is recorded is read, the rest is done and recorded."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from statistics import fmean

import sklearn
import torch
from corpus import Corpus
from evaluation import KINDS, THRESHOLDS, Scores
from options import Options
from progress import Progress
from records import Json, RecordStore
from svm_baseline import SHIFTS, train_svm
from tables import Row, summarize
from tfidf_features import SVM_TFIDF, Dataset, TfidfSettings, make_dataset
from tfidf_network import train

import fused_balanced_loss
from fused_balanced_loss import LossSpec


def versions() -> Json:
    return {
        "fused_balanced_loss": fused_balanced_loss.__version__,
        "python": platform.python_version(),
        "scikit-learn": sklearn.__version__,
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
    }


@dataclass
class Experiment:
    corpus: Corpus
    options: Options
    store: RecordStore

    @cached_property
    def dataset(self) -> Dataset:
        return make_dataset(self.corpus, TfidfSettings())

    def run_missing(self) -> None:
        """Does and records every run without a record; may be interrupted at any time."""
        progress = Progress(len(list(self._runs())))
        for method, seed in self._runs():
            settings = self._settings(method, seed)
            progress.start(method if method == "SVM" else f"{method} seed {seed}")
            if self.store.load(settings) is not None:
                progress.finish("done before, skipped")
                continue
            result = self._run_svm() if method == "SVM" else self._run_loss(method, seed, progress)
            self.store.save(settings, result, versions())
            total, tail = result["test"]["total"], result["test"]["tail"]
            progress.finish(
                f"test micro/macro-F1 {100 * total['micro']:.2f}/{100 * total['macro']:.2f}, "
                f"tail {100 * tail['micro']:.2f}/{100 * tail['macro']:.2f}, {result['seconds']:.0f} s"
            )

    def rows(self) -> list[Row]:
        """The table's rows from what is recorded, the SVM's variants last."""
        found: dict[str, list[Scores]] = {}
        variants: dict[str, list[Scores]] = {}
        for method, result in self._results():
            found.setdefault(method, []).append(result["test"])
            for name, scores in result.get("variants", {}).items():
                variants.setdefault(name, []).append(scores)
        return [summarize(method, runs) for method, runs in (found | variants).items()]

    def validation_mean(self) -> dict[str, float]:
        """Mean micro- and macro-F1 on validation over all recorded runs of the losses: what the tuning went by."""
        totals = [result["validation"]["total"] for method, result in self._results() if method != "SVM"]
        return {kind: fmean(total[kind] for total in totals) for kind in KINDS} if totals else {}

    def _results(self) -> Iterator[tuple[str, Json]]:
        for method, seed in self._runs():
            result = self.store.load(self._settings(method, seed))
            if result is not None:
                yield method, result

    def _runs(self) -> Iterator[tuple[str, int]]:
        for seed in range(self.options.seeds):
            for method in self.options.methods:
                if method != "SVM" or seed == 0:
                    yield method, seed

    def _spec(self, method: str) -> LossSpec:
        return LossSpec.preset(method, corpus="reuters", convention=self.options.convention)

    def _settings(self, method: str, seed: int) -> Json:
        """All that the result depends on."""
        common = {
            "method": method,
            "seed": seed,
            "corpus": self.corpus.name,
            "corpus_fingerprint": self._corpus_fingerprint,
            "library": fused_balanced_loss.__version__,
        }
        if method == "SVM":
            return {**common, "features": asdict(SVM_TFIDF), "shifts": SHIFTS.tolist()}
        return {
            **common,
            "features": asdict(TfidfSettings()),
            "training": asdict(self.options.training),
            "convention": self.options.convention,
            "loss": asdict(self._spec(method)),
            "thresholds": THRESHOLDS.tolist(),
        }

    @cached_property
    def _corpus_fingerprint(self) -> str:
        return self.corpus.fingerprint

    def _run_loss(self, method: str, seed: int, progress: Progress) -> Json:
        training = self.options.training
        result = train(
            self.dataset, self._spec(method), training, seed, lambda epoch: progress.epoch(epoch, training.epochs)
        )
        return asdict(result)

    def _run_svm(self) -> Json:
        dataset = make_dataset(self.corpus, SVM_TFIDF)
        balanced, plain = train_svm(dataset, balanced=True), train_svm(dataset, balanced=False)
        return {
            "validation": balanced.validation,
            "test": balanced.unshifted,
            "variants": {
                f"SVM, shift {balanced.shift:+.2f}": balanced.shifted,
                "SVM, unweighted": plain.unshifted,
                f"SVM, unweighted, shift {plain.shift:+.2f}": plain.shifted,
            },
            "balanced": asdict(balanced),
            "unweighted": asdict(plain),
            "seconds": balanced.seconds + plain.seconds,
        }
