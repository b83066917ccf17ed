"""The records of runs in folders; those that may be compared; each method's mean and deviation over its seeds."""

import json
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePath

from files import Json, Say
from records import KINDS, METHODS, Run, make_run

from report.paper_scores import Scores

NO_ENCODER = "SVM"
# How an encoder is named: by its kind, of its model.
ENCODERS = {
    "tfidf": "TF-IDF features",
    "frozen": "frozen features of {}",
    "frozen+tfidf": "frozen features of {} and TF-IDF",
    "bert": "{} fine-tuned",
    NO_ENCODER: "TF-IDF features",
}


@dataclass(frozen=True)
class Figure:
    """Mean and sample standard deviation over the seeds, in percent; 0 for one seed."""

    mean: float
    std: float
    num_seeds: int

    def __str__(self) -> str:
        return f"{self.mean:.2f}±{self.std:.2f}" if self.num_seeds > 1 else f"{self.mean:.2f}"

    def __float__(self) -> float:
        return self.mean


Figures = dict[str, dict[str, Figure]]


@dataclass(frozen=True)
class Row:
    """The runs of one method with one choice of settings. by_label, by_instance: figures by group and kind of F1."""

    name: str
    method: str | None
    runs: Sequence[Run]
    by_label: Figures
    by_instance: Figures


@dataclass(frozen=True)
class Group:
    """Runs on one corpus with one encoder in one convention.

    rows: a method's first row is the one to compare; another stands for other settings. Those of other hyperplanes of
        the SVM come last and have no method.
    unfinished: runs without a result.
    """

    corpus: str
    fingerprint: str
    encoder: str
    convention: str
    rows: Sequence[Row]
    unfinished: Sequence[Run]

    @cached_property
    def by_method(self) -> dict[str, Row]:
        """The row to compare of each method: its first."""
        found: dict[str, Row] = {}
        for row in self.rows:
            if row.method is not None:
                found.setdefault(row.method, row)
        return found

    @property
    def about(self) -> str:
        """Corpus, encoder and convention in words."""
        kind, model = self._encoder
        convention = f", {self.convention} convention" if self.convention else ""
        return f"{self.corpus}, {ENCODERS.get(kind, self.encoder).format(model)}{convention}"

    @property
    def slug(self) -> str:
        return slug(" ".join((*self._encoder, self.convention)))

    @property
    def _encoder(self) -> tuple[str, str]:
        """Its kind and its model, of a local folder the last part."""
        kind, _, model = self.encoder.partition(":")
        local = model.startswith((".", "/", "~")) or model.count("/") > 1
        return kind, PurePath(model).name if local else model


def slug(text: str) -> str:
    """For the name of a file."""
    return "-".join("".join(c if c.isalnum() and c.isascii() else " " for c in text).split()).lower() or "unnamed"


def read_runs(folders: Iterable[Path], warn: Say) -> list[Run]:
    """The runs of all records below the folders, each once.

    A record is a JSON file in a folder named ``records``, or in a folder that is given itself.

    warn: told of each file that is left out, and why.
    """
    found: dict[str, Run] = {}
    for path in _files(folders):
        try:
            try:
                record = json.loads(path.read_text(encoding="utf-8"))
            except ValueError as error:
                raise ValueError(f"it is no JSON: {error}") from error
            if path.parent.name != "records" and not (isinstance(record, dict) and "settings" in record):
                continue
            run = make_run(path, record)
        except (OSError, ValueError) as error:
            warn(f"{path}: left out, {error}")
            continue
        settings = json.dumps(run.settings, sort_keys=True)
        other = found.get(settings)
        if other is None or (other.result is None and run.result is not None):
            found[settings] = run
        elif run.result is not None and run.result != other.result:
            warn(f"{path}: left out, {other.path} has the same settings")
    return list(found.values())


def _files(folders: Iterable[Path]) -> Iterator[Path]:
    seen = set()
    for folder in folders:
        for place in [folder, *sorted(path for path in folder.rglob("records") if path.is_dir())]:
            for path in sorted(place.glob("*.json")):
                if path.resolve() not in seen and not path.name.startswith("."):
                    seen.add(path.resolve())
                    yield path


def group_runs(runs: Iterable[Run]) -> list[Group]:
    """Groups in the order of their first runs. An SVM, which has no encoder, is in all groups of its corpus."""
    by_key: dict[tuple[str, str, str], list[Run]] = {}
    shared: dict[str, list[Run]] = {}
    for run in runs:
        fingerprint, encoder = run.settings["corpus_fingerprint"], run.settings.get("encoder")
        if encoder is None:
            shared.setdefault(fingerprint, []).append(run)
        else:
            key = fingerprint, str(encoder), str(run.settings.get("convention", ""))
            by_key.setdefault(key, []).append(run)
    for fingerprint in shared:
        if all(key[0] != fingerprint for key in by_key):
            by_key[fingerprint, NO_ENCODER, ""] = []
    groups = []
    for (fingerprint, encoder, convention), own in by_key.items():
        every = shared.get(fingerprint, []) + own
        rows = _make_rows([run for run in every if run.result is not None])
        unfinished = [run for run in every if run.result is None]
        groups.append(Group(every[0].settings["corpus"], fingerprint, encoder, convention, rows, unfinished))
    return groups


def _make_rows(runs: Sequence[Run]) -> list[Row]:
    by_method: dict[str, dict[str, list[Run]]] = {}
    for run in runs:
        by_method.setdefault(run.method, {}).setdefault(_without(run, "seed"), []).append(run)
    # Of several choices of settings the one that most runs share is compared.
    common = Counter(_without(run, "method", "seed", "loss") for run in runs)
    rows, hyperplanes = [], []
    for method in sorted(by_method, key=lambda name: (METHODS.index(name) if name in METHODS else 99, name)):
        choices = sorted(
            by_method[method].values(),
            key=lambda part: (common[_without(part[0], "method", "seed", "loss")], len(part)),
            reverse=True,
        )
        names = _names(method, [part[0].settings for part in choices])
        for name, part in zip(names, choices, strict=True):
            part = sorted(part, key=lambda run: run.seed)
            results = [run.result for run in part if run.result is not None]
            rows.append(_make_row(name, method, part, results))
            for variant in results[0].get("variants", {}):
                # The headline is there already.
                if variant != method:
                    parts = [result["variants"][variant] for result in results if variant in result["variants"]]
                    hyperplanes.append(_make_row(variant, None, part, parts))
    return rows + hyperplanes


def _make_row(name: str, method: str | None, runs: Sequence[Run], results: Sequence[Json]) -> Row:
    tested, by_instance = ([one.get(key, {}) for one in results] for key in ("test", "test_by_instance"))
    return Row(name, method, runs, summarize(tested), summarize(by_instance))


def summarize(scores: Sequence[Scores]) -> Figures:
    """Mean and deviation by group, of the groups that all have."""
    return {
        group: {kind: _figure([100 * one[group][kind] for one in scores]) for kind in KINDS}
        for group in scores[0]
        if all(group in one for one in scores)
    }


def _figure(values: Sequence[float]) -> Figure:
    return Figure(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0, len(values))


def _without(run: Run, *names: str) -> str:
    """The settings but for those, as a key."""
    return json.dumps({key: value for key, value in run.settings.items() if key not in names}, sort_keys=True)


def _flat(settings: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Nested settings by dotted names."""
    flat: dict[str, object] = {}
    for key, value in settings.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def differences(settings: Sequence[Mapping[str, object]]) -> dict[str, list[object]]:
    """Values of the settings that are not all the same, by dotted name; None where one has none."""
    flat = [_flat(one) for one in settings]
    names = sorted({name for one in flat for name in one} - {"seed", "method"})
    values = {name: [one.get(name) for one in flat] for name in names}
    return {name: column for name, column in values.items() if any(value != column[0] for value in column)}


def _names(method: str, settings: Sequence[Json]) -> list[str]:
    """The first choice is the method by its name alone."""
    different = list(differences(settings).items())
    more = ", ..." if len(different) > 3 else ""
    suffixes = (
        ", ".join(f"{name.split('.')[-1]} {values[at]}" for name, values in different[:3])
        for at in range(1, len(settings))
    )
    return [method, *(f"{method} ({suffix}{more})" for suffix in suffixes)]
