"""All runs of an experiment: what is recorded is read, the rest is done and recorded; then the paper's tables."""

import argparse
import os
import platform
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import fmean

import torch
from corpora.corpus import Corpus, CorpusError, PaperCorpus
from encoders.encoder import Encoder, EncoderError
from encoders.features import tfidf_features
from encoders.svm import SETTINGS as SVM_SETTINGS
from encoders.svm import run_svm
from encoders.tfidf import SVM_TFIDF
from files import CacheError, Json
from machine import describe_memory, is_main, number_of_processes
from models import ModelStore
from progress import progress
from records import KINDS, RecordError, RecordStore, is_complete
from report.corpus_figures import corpus_sizes, write_corpus_figures
from report.document import make_report, tables_text
from report.tables import corpus_table

import fused_balanced_loss
from fused_balanced_loss import LossSpec
from fused_balanced_loss.spec import PAPER_MU

FAILED, INTERRUPTED = 1, 130
# The fields of LossSpec in the first records; those that came later count where they are not as by default.
FIRST_FIELDS = (
    *("gamma", "gamma_negative", "probability_margin", "weighting", "pooling", "beta_cb", "alpha", "beta", "mu"),
    *("kappa", "lam", "positive_factor", "negative_factor"),
)
DEFAULTS = asdict(LossSpec())
PACKAGES = ("accelerate", "datasets", "numpy", "scikit-learn", "torch", "transformers")


def versions() -> Json:
    found: Json = {"fused_balanced_loss": fused_balanced_loss.__version__, "python": platform.python_version()}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    found["device"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    return found


def loss_settings(spec: LossSpec, paper: PaperCorpus | None) -> Json:
    """All fields as the first records have them, so that what was run with the same settings is not run again."""
    settings = asdict(spec)
    if spec.mu is None:
        # There it stands for losses too that do not depend on it.
        settings["mu"] = PAPER_MU[paper or "reuters"]
    return {name: value for name, value in settings.items() if name in FIRST_FIELDS or value != DEFAULTS[name]}


@dataclass
class Experiment:
    """All runs that ``options`` ask for; checkpoints lie in ``work`` below the output, one folder a run, until it is
    recorded."""

    corpus: Corpus
    options: argparse.Namespace

    def __post_init__(self) -> None:
        self.encoder: Encoder = self.options.encoder
        options = self.options
        self.store = RecordStore(options.output / "records")
        self.models = ModelStore(options.output, options.save_models, options.model_thresholds)

    def run_missing(self) -> None:
        """Does and records every run without a record; may be interrupted at any time.

        Raises:
            RecordError: where a result could not be recorded as a whole.
        """
        if is_main():
            self.store.open()
        runs = list(self._runs())
        missing = {run: self._is_missing(*run) for run in runs}
        if any(missing[method, seed] for method, seed in runs if method != "SVM"):
            self.encoder.prepare(self.corpus)
            progress.finish(f"memory with the encoder's inputs at hand: {describe_memory()}")
        for number, (method, seed) in enumerate(runs, 1):
            progress.start(f"[{number}/{len(runs)}] " + (method if method == "SVM" else f"{method} seed {seed}"))
            if missing[method, seed]:
                self._run(method, seed)
            else:
                progress.finish("done before, skipped")
        if is_main():
            self.store.close()
            self._say_what_redo_adds()

    def _is_missing(self, method: str, seed: int) -> bool:
        settings = self._settings(method, seed)
        record = self.store.load(settings)
        if record is None or not self.options.redo or method == "SVM":
            return record is None
        return not is_complete(record) or not self._has_model(settings, record)

    def _has_model(self, settings: Json, record: Json) -> bool:
        """Whether the run has left the model that is asked for, or another the better one."""
        if self.options.save_models == "none" or "own" not in record["result"]:
            return self.options.save_models == "none"
        there = self.models.score(self.store.stem(settings), self.corpus)
        best = record["result"]["own"]["validation"]["total"]["micro"]
        if self.options.save_models == "all":
            return there >= 0
        if there < 0:
            every = (one["result"] for one in self.records() if "own" in one["result"])
            return best < max(one["own"]["validation"]["total"]["micro"] for one in every)
        return there >= best

    def _say_what_redo_adds(self) -> None:
        records = [record for record in self.records() if record["settings"]["method"] != "SVM"]
        if old := sum(not is_complete(record) for record in records):
            progress.note(f"{old} of {len(records)} records lack figures of this version: --redo does their runs again")
        elif not all(self._has_model(record["settings"], record) for record in records):
            progress.note(f"no model of these runs in {self.models.folder('')}: --redo does again what it takes")

    def records(self) -> list[Json]:
        """The records of this experiment's runs, as far as they are done."""
        found = (self.store.load(self._settings(method, seed)) for method, seed in self._runs())
        return [record for record in found if record is not None]

    def validation_mean(self) -> dict[str, float]:
        """Mean micro- and macro-F1 on validation over all recorded runs of the losses: what the tuning went by."""
        records = [record for record in self.records() if record["settings"]["method"] != "SVM"]
        totals = [record["result"]["validation"]["total"] for record in records]
        return {kind: fmean(total[kind] for total in totals) for kind in KINDS} if totals else {}

    def _runs(self) -> Iterator[tuple[str, int]]:
        for seed in range(self.options.seeds):
            for method in self.options.methods:
                if method != "SVM" or seed == 0:
                    yield method, seed

    def _run(self, method: str, seed: int) -> None:
        options, settings = self.options, self._settings(method, seed)
        folder = options.output / "work" / self.store.stem(settings)
        spec = self._spec("DB" if method == "SVM" else method)
        epochs: list[Json] = []
        # Of a run that is done again, the record stays until the new one is there.
        recorded = self.store.load(settings) is not None

        def report(epoch: Json) -> None:
            if is_main():
                epochs.append(epoch)
                if not recorded:
                    self.store.save_running(settings, versions(), epochs)
                progress.epoch(epoch, self.encoder.num_epochs)

        if method != "SVM":
            result = self.encoder.run(self.corpus, spec, seed, folder, report)
        elif is_main():
            features = tfidf_features(self.corpus, SVM_TFIDF, options.cache)
            result = run_svm(self.corpus, features, folder, options.threads)
        if not is_main():
            return
        kept = self.models.keep(folder.name, self.corpus, settings, spec, result)
        self.store.save_done(settings, versions(), epochs, result)
        shutil.rmtree(folder, ignore_errors=True)
        self._say_result(result, kept)

    def _say_result(self, result: Json, kept: Path | None) -> None:
        total, tail = result["test"]["total"], result["test"]["tail"]
        edge = ", the edge of the grid" if result.get("at_edge") else ""
        own = ""
        if "own" in result:
            micro, macro = (100 * result["own"]["test"]["total"][kind] for kind in KINDS)
            own = f"; at its own threshold {result['own']['threshold']:.3f} {micro:.2f}/{macro:.2f}"
        progress.finish(
            f"test micro/macro-F1 {100 * total['micro']:.2f}/{100 * total['macro']:.2f}, "
            f"tail {100 * tail['micro']:.2f}/{100 * tail['macro']:.2f}, "
            f"at threshold {result['threshold']:.2f}{edge}{own}; "
            f"{result['seconds']:.0f} s, peak {result['peak_memory_bytes'] / 2**30:.2f} GiB"
            + (f"; model in {kept}" if kept else "")
        )

    @cached_property
    def mu(self) -> float | None:
        """Midpoint of the rebalanced weights: of a corpus of one's own the one that its training part suggests."""
        if self.options.mu is not None:
            return float(self.options.mu)
        own = self.corpus.statistics.mu
        return PAPER_MU[self.corpus.paper] if self.corpus.paper else own and round(own, 4)

    def _spec(self, method: str) -> LossSpec:
        spec = LossSpec.preset(method, corpus=self.corpus.paper or "reuters", convention=self.options.convention)
        return spec.replace(mu=self.mu) if spec.weighting == "rebalanced" else spec

    def _settings(self, method: str, seed: int) -> Json:
        """All that the result depends on."""
        common = {
            "method": method,
            "seed": seed,
            "corpus": self.corpus.name,
            "corpus_fingerprint": self.corpus.fingerprint,
        }
        if method == "SVM":
            return {**common, **SVM_SETTINGS}
        return {
            **common,
            "encoder": self.encoder.name,
            **self.encoder.settings,
            "convention": self.options.convention,
            "loss": loss_settings(self._spec(method), self.corpus.paper),
            "thresholds": list(self.options.thresholds),
        }


def run_command(options: argparse.Namespace, load: Callable[[argparse.Namespace], Corpus]) -> int:
    """Loads the corpus, does all runs and prints the paper's tables; the exit code."""
    if not options.encoder.distributed and number_of_processes() > 1:
        if not is_main():
            return 0
        print(f"--encoder {options.encoder.name} trains in one process; the others have ended", flush=True)
    torch.set_num_threads(options.threads)
    # The moments of features that a batch lacks decay into denormal numbers, with which a CPU is slow.
    torch.set_flush_denormal(True)
    notice = None
    try:
        corpus = load(options)
        notice = corpus.notice
        if notice:
            progress.note(notice)
        return _run(Experiment(corpus, options))
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError as error:
        try:
            os.write(sys.stdout.fileno(), b"\n")
            print(f"error: {error}", file=sys.stderr)
        except BrokenPipeError:
            # Whoever read the output has gone, as ``head`` does.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except (CacheError, CorpusError, EncoderError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return FAILED
    finally:
        if notice:
            progress.note(notice)


def _run(experiment: Experiment) -> int:
    corpus, options = experiment.corpus, experiment.options
    start = time.perf_counter()
    if not is_main():
        experiment.run_missing()
        return 0
    progress.note(corpus.describe())
    print(f"\n{corpus_table(corpus_sizes(corpus)).text()}\n")
    print(f"memory with the corpus at hand: {describe_memory()}", flush=True)
    failure = ""
    try:
        write_corpus_figures(corpus, options.output)
        experiment.run_missing()
    except KeyboardInterrupt:
        failure = "Interrupted."
    except (RecordError, EncoderError, CacheError, OSError) as error:
        failure = f"error: {error}"
    progress.note("")
    if tables := tables_text(experiment.records(), corpus.paper):
        print(f"{tables}\n")
    if failure:
        print(failure, file=sys.stderr, flush=True)
        print(f"The same command goes on from here: {shlex.join(['python', *sys.argv])}")
        return INTERRUPTED if failure == "Interrupted." else FAILED
    if validation := experiment.validation_mean():
        micro, macro = (100 * validation[kind] for kind in KINDS)
        print(f"validation micro/macro-F1, mean of the losses: {micro:.2f}/{macro:.2f}")
    for path in make_report([options.output], options.output / "report")[-3:]:
        print(f"wrote {path}")
    print(f"{time.perf_counter() - start:.0f} s in all")
    return 0
