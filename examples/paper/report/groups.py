"""The records of runs in folders; those that may be compared; each method's mean and deviation over its seeds."""

import json
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePath

import pandas as pd
from files import Json
from progress import progress
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
    """The runs of one method with one choice of settings. scores: by group of labels or instances, and kind of F1."""

    name: str
    method: str | None
    runs: Sequence[Run]
    scores: Figures

    def scores_at(self, name: str) -> Figures | None:
        """Those at other thresholds: ``own``, ``by_group`` or ``by_label``; None where a run's record has none."""
        found = [(run.result or {}).get(name) for run in self.runs]
        parts = [one["test"] | one["test_by_instance"] for one in found if one]
        return summarize(parts) if len(parts) == len(found) else None


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


def read_runs(folders: Iterable[Path]) -> list[Run]:
    """The runs of all records below the folders, each once.

    A record is a JSON file in a folder named ``records``, or in a folder that is given itself. A warning says which
    file is left out, and why.
    """
    places = [place for folder in folders for place in (folder, *sorted(folder.rglob("records")))]
    files = {path.resolve(): path for place in places for path in sorted(place.glob("[!.]*.json"))}
    found: dict[str, Run] = {}
    for path in files.values():
        try:
            try:
                record = json.loads(path.read_text(encoding="utf-8"))
            except ValueError as error:
                raise ValueError(f"it is no JSON: {error}") from error
            if path.parent.name != "records" and not (isinstance(record, dict) and "settings" in record):
                continue
            run = make_run(path, record)
        except (OSError, ValueError) as error:
            progress.warn(f"{path}: left out, {error}")
            continue
        other = found.setdefault(_without(run), run)
        if other.result is None:
            found[_without(run)] = run
        elif run.result not in (None, other.result):
            progress.warn(f"{path}: left out, {other.path} has the same settings")
    return list(found.values())


def group_runs(runs: Iterable[Run]) -> list[Group]:
    """Groups in the order of their first runs. An SVM, which has no encoder, is in all groups of its corpus."""
    keys: dict[tuple[str, str, str], list[Run]] = {}
    for run in runs:
        settings = run.settings
        encoder, convention = settings.get("encoder", NO_ENCODER), settings.get("convention", "")
        keys.setdefault((settings["corpus_fingerprint"], str(encoder), str(convention)), []).append(run)
    groups = []
    for (fingerprint, encoder, convention), own in keys.items():
        if encoder == NO_ENCODER:
            if any(key[0] == fingerprint and key[1] != NO_ENCODER for key in keys):
                continue
            every = own
        else:
            every = keys.get((fingerprint, NO_ENCODER, ""), []) + own
        rows = _make_rows([run for run in every if run.result is not None])
        unfinished = [run for run in every if run.result is None]
        groups.append(Group(own[0].settings["corpus"], fingerprint, encoder, convention, rows, unfinished))
    return groups


def _make_rows(runs: Sequence[Run]) -> list[Row]:
    # Of several choices of settings the one that most runs share is compared.
    common = Counter(_without(run, "method", "seed", "loss") for run in runs)
    choices: dict[str, list[Run]] = {}
    for run in runs:
        choices.setdefault(_without(run, "seed"), []).append(run)

    def order(part: list[Run]) -> tuple[int, str, int, int]:
        method = part[0].method
        rank = METHODS.index(method) if method in METHODS else len(METHODS)
        return rank, method, -common[_without(part[0], "method", "seed", "loss")], -len(part)

    rows, hyperplanes = [], []
    compared: dict[str, Json] = {}
    for part in sorted(choices.values(), key=order):
        part = sorted(part, key=lambda run: run.seed)
        method, settings = part[0].method, part[0].settings
        changed = list(differences([compared.setdefault(method, settings), settings]).items())
        named = [f"{name.split('.')[-1]} {values[1]}" for name, values in changed[:3]] + ["..."][: len(changed) > 3]
        results = [run.result for run in part if run.result is not None]
        rows.append(_make_row(f"{method} ({', '.join(named)})" if named else method, method, part, results))
        for variant in results[0].get("variants", {}):
            # The headline is there already.
            if variant != method:
                variants = [result["variants"][variant] for result in results if variant in result["variants"]]
                hyperplanes.append(_make_row(variant, None, part, variants))
    return rows + hyperplanes


def _make_row(name: str, method: str | None, runs: Sequence[Run], results: Sequence[Json]) -> Row:
    scores = [one.get("test", {}) | one.get("test_by_instance", {}) for one in results]
    return Row(name, method, runs, summarize(scores))


def summarize(scores: Sequence[Scores]) -> Figures:
    """Mean and deviation by group, of the groups that all have."""
    return {
        group: {kind: figure([100 * one[group][kind] for one in scores]) for kind in KINDS}
        for group in scores[0]
        if all(group in one for one in scores)
    }


def figure(values: Sequence[float]) -> Figure:
    """Mean and deviation."""
    return Figure(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0, len(values))


def _without(run: Run, *names: str) -> str:
    """The settings but for those, as a key."""
    return json.dumps({key: value for key, value in run.settings.items() if key not in names}, sort_keys=True)


def differences(settings: Sequence[Mapping[str, object]]) -> dict[str, list[object]]:
    """Values of the settings that are not all the same, by dotted name; None where one has none."""
    flat = [pd.json_normalize(dict(one)).astype(object).iloc[0].to_dict() for one in settings]
    names = sorted({name for one in flat for name in one} - {"seed", "method"})
    values = {name: [one.get(name) for one in flat] for name in names}
    return {name: column for name, column in values.items() if any(value != column[0] for value in column)}
