"""BalancedClassifier beside scikit-learn's one-vs-rest classifiers on TF-IDF features of Reuters and PubMed.

    python benchmarks/compare_sklearn.py reuters
    python benchmarks/compare_sklearn.py pubmed --bioasq FILE.json.gz --limit 3600

Each contestant runs in a process of its own, with the same features and labels: F1 on the test part, seconds of
training and of prediction, and the most memory beyond what the data takes. One that takes longer than ``--limit``
seconds is stopped, and the table says so; ``--labels`` keeps the most frequent labels alone, for all contestants.

Training and validation part together are the training data. BalancedClassifier holds out a tenth of them for threshold
and early stopping. The classifiers of scikit-learn train with all of them and predict at their own threshold; those
called "shifted" train without a tenth, and take the shift of all decisions that has the best micro-F1 on it. Needs the
packages of ``pip install '.[examples]'``; NLTK finds Reuters, as for examples/paper.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import scipy.sparse as sp

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "examples" / "paper")]
OURS = {
    "BalancedClassifier, DB": {"loss": "DB"},
    "BalancedClassifier, CB-NTR": {"loss": "CB-NTR"},
    "BalancedClassifier, BCE": {"loss": "BCE"},
    "BalancedClassifier, DB, 256 hidden units": {"loss": "DB", "hidden_layer_size": 256},
}
THEIRS = [f"OneVsRest({name}){shift}" for name in ("LinearSVC", "LogisticRegression") for shift in ("", ", shifted")]
CONTESTANTS = [*OURS, *THEIRS]
VALIDATION = 0.1


def make_data(
    corpus_name: str, bioasq: Path | None, num_labels: int | None, folder: Path
) -> tuple[Path, dict[str, Any]]:
    """Writes (X, Y, test X, test Y) to a file, and says what they are."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    if corpus_name == "reuters":
        from corpora.reuters import load_reuters

        corpus = load_reuters()
    else:
        from dataclasses import replace

        from corpora.bioasq import PARTITION, load_bioasq

        if bioasq is None:
            raise SystemExit("--bioasq: expected a BioASQ file for pubmed")
        corpus = load_bioasq(bioasq, None, "utf-8", replace(PARTITION, validation=1000, test=2000), folder / "cache")
    vectorizer = TfidfVectorizer(stop_words="english", sublinear_tf=True, min_df=3, dtype=np.float32)
    features = vectorizer.fit_transform([*corpus.train.texts, *corpus.validation.texts])
    test_features = vectorizer.transform(list(corpus.test.texts))
    parts = [split.targets.to_scipy() for split in (corpus.train, corpus.validation)]
    targets, test_targets = (
        sp.csr_array(one, dtype=np.int64) for one in (sp.vstack(parts), corpus.test.targets.to_scipy())
    )
    if num_labels is not None:
        kept = np.sort(np.argsort(-targets.sum(0), kind="stable")[:num_labels])
        targets, test_targets = targets[:, kept], test_targets[:, kept]
    path = folder / "data.joblib"
    joblib.dump((features, targets, test_features, test_targets), path)
    described = {
        "corpus": corpus.describe(),
        "training_samples": features.shape[0],
        "test_samples": test_features.shape[0],
        "features": features.shape[1],
        "labels": targets.shape[1],
    }
    return path, described


def run_contestant(name: str, data: Path, threads: int, seed: int) -> dict[str, Any]:
    """Trains and scores one contestant; runs in a process of its own."""
    import torch
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import f1_score
    from sklearn.model_selection import train_test_split
    from sklearn.multiclass import OneVsRestClassifier
    from sklearn.svm import LinearSVC

    from fused_balanced_loss.integrations.sklearn import BalancedClassifier

    torch.set_num_threads(threads)
    features, targets, test_features, test_targets = joblib.load(data)
    before = begin_peak()
    result: dict[str, Any] = {}
    start = time.perf_counter()
    if name in OURS:
        model = BalancedClassifier(random_state=seed, **OURS[name]).fit(features, targets)
        trained = time.perf_counter()
        predicted = model.predict(test_features)
        result |= {"epochs": model.n_iter_, "threshold": model.threshold_, "mu": model.spec_.mu}
    else:
        estimator = LinearSVC(random_state=seed) if "LinearSVC" in name else LogisticRegression()
        model = OneVsRestClassifier(estimator, n_jobs=threads)
        # Threads, so that this process's memory is all of it.
        with joblib.parallel_config(backend="threading"):
            if not name.endswith("shifted"):
                model.fit(features, targets)
                trained = time.perf_counter()
                predicted = model.predict(test_features)
            else:
                rows, held_out = train_test_split(
                    np.arange(len(targets.indptr) - 1), test_size=VALIDATION, random_state=seed
                )
                model.fit(features[rows], targets[rows])
                shift = best_shift(model.decision_function(features[held_out]), targets[held_out])
                trained = time.perf_counter()
                predicted = sp.csr_array(model.decision_function(test_features) > shift, dtype=np.int64)
                result["shift"] = shift
    done = time.perf_counter()
    counts = targets.sum(0)
    rare = counts <= np.quantile(counts, 1 / 3)
    return result | {
        "micro_f1": f1_score(test_targets, predicted, average="micro", zero_division=0),
        "macro_f1": f1_score(test_targets, predicted, average="macro", zero_division=0),
        "rarest_third_macro_f1": f1_score(test_targets[:, rare], predicted[:, rare], average="macro", zero_division=0),
        "fit_seconds": trained - start,
        "predict_seconds": done - trained,
        "peak_bytes": peak_bytes() - before,
    }


def best_shift(decisions: np.ndarray, targets: sp.csr_array) -> float:
    """The shift in [-6, 6] of all decisions with the best micro-F1."""
    import torch

    from fused_balanced_loss.metrics import ThresholdedF1

    metric = ThresholdedF1(targets.shape[1], np.arange(-120, 121) / 20, activation="none")
    metric.update(torch.from_numpy(decisions).float(), targets)
    return metric.best().threshold


def begin_peak() -> int:
    """Forgets the peak so far, where the system can, and gives what it is from here on."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return peak_bytes()


def peak_bytes() -> int:
    """The most memory that the process had. The kernel's ``ru_maxrss`` would count what its parent had."""
    with contextlib.suppress(OSError, TypeError):
        return 1024 * int(re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def compare(options: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        data, described = make_data(options.corpus, options.bioasq, options.labels, Path(folder))
        print(json.dumps(described), flush=True)
        results = {}
        for name in options.contestants:
            own = [
                "--contestant",
                name,
                "--data",
                str(data),
                "--threads",
                str(options.threads),
                "--seed",
                str(options.seed),
            ]
            environment = os.environ | {"OMP_NUM_THREADS": str(options.threads), "PYTHONWARNINGS": "ignore"}
            try:
                done = subprocess.run(
                    [sys.executable, __file__, options.corpus, *own],
                    env=environment,
                    capture_output=True,
                    text=True,
                    timeout=options.limit,
                )
            except subprocess.TimeoutExpired:
                results[name] = {"stopped_after_seconds": options.limit}
            else:
                if done.returncode:
                    results[name] = {"failed": done.stderr.strip().splitlines()[-1]}
                else:
                    results[name] = json.loads(done.stdout.splitlines()[-1])
            print(f"{name}: {json.dumps(results[name])}", flush=True)
    return {"data": described, "threads": options.threads, "seed": options.seed, "contestants": results}


def table(record: dict[str, Any]) -> str:
    """Markdown: a row for each contestant."""
    data = record["data"]
    lines = [
        f"{data['corpus']}: {data['training_samples']:,} training and {data['test_samples']:,} test documents, "
        f"{data['features']:,} TF-IDF features, {data['labels']:,} labels; {record['threads']} threads, "
        f"seed {record['seed']}.",
        "",
        "| | micro-F1, % | macro-F1, % | rarest third, macro-F1, % | training, s | prediction, s | peak memory, MB |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, one in record["contestants"].items():
        if "micro_f1" not in one:
            reason = f"stopped after {one['stopped_after_seconds']:,.0f} s" if "failed" not in one else one["failed"]
            lines.append(f"| {name} | {reason} | | | | | |")
            continue
        scores = (f"{100 * one[key]:.2f}" for key in ("micro_f1", "macro_f1", "rarest_third_macro_f1"))
        costs = f"{one['fit_seconds']:.1f} | {one['predict_seconds']:.2f} | {one['peak_bytes'] / 1e6:,.0f}"
        lines.append(f"| {name} | {' | '.join(scores)} | {costs} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", choices=("reuters", "pubmed"))
    parser.add_argument("--bioasq", type=Path, help="for pubmed: a BioASQ file")
    parser.add_argument("--labels", type=int, help="keep the most frequent labels alone (default: all)")
    parser.add_argument("--limit", type=float, default=3600, help="seconds that a contestant may take (default: 3600)")
    parser.add_argument("--threads", type=int, default=1, help="of each contestant (default: 1)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--contestants", nargs="+", choices=CONTESTANTS, default=CONTESTANTS, metavar="NAME")
    parser.add_argument("--output", type=Path, help="folder for NAME.json and NAME.md, where NAME is sklearn-CORPUS")
    parser.add_argument("--contestant", help=argparse.SUPPRESS)
    parser.add_argument("--data", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contestant is not None:
        print(json.dumps(run_contestant(options.contestant, options.data, options.threads, options.seed)))
        return
    record = compare(options)
    import sklearn
    from environment import device, today, versions

    record |= {"device": device(), "versions": versions() | {"scikit-learn": sklearn.__version__}, "date": today()}
    print(table(record))
    if options.output is not None:
        options.output.mkdir(parents=True, exist_ok=True)
        name = f"sklearn-{options.corpus}"
        (options.output / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
        (options.output / f"{name}.md").write_text(table(record))


if __name__ == "__main__":
    main()
