"""The Reuters example: its parts, and a whole run on a small generated corpus."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest

for package in ("matplotlib", "scipy", "sklearn"):
    pytest.importorskip(package)
sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

import experiment  # noqa: E402
import reproduce_reuters  # noqa: E402
import reuters_corpus  # noqa: E402
from evaluation import THRESHOLDS, choose_threshold, f1_by_group  # noqa: E402
from generated_corpus import generate_corpus  # noqa: E402
from options import parse_options  # noqa: E402
from paper_table import PAPER_SCORES  # noqa: E402
from records import RecordStore, fingerprint, write_atomically  # noqa: E402
from sklearn.metrics import f1_score  # noqa: E402
from tables import markdown_table, summarize, text_table  # noqa: E402
from tfidf_features import TfidfSettings, make_dataset  # noqa: E402

SCORES = {group: {"micro": 0.5, "macro": 0.25} for group in ("total", "head", "medium", "tail")}
RESULT = {"validation": SCORES, "test": SCORES}
SETTINGS = {"method": "DB", "seed": 0, "epochs": 3}


@pytest.fixture
def arguments(tmp_path):
    return ["--generated", "--documents", "1000", "--epochs", "1", "--losses", "BCE", "DB", "--output", str(tmp_path)]


@pytest.fixture
def store(tmp_path):
    warnings = []
    return RecordStore(tmp_path / "records", warnings.append), warnings


def test_generated_corpus_has_the_shape_of_reuters():
    corpus = generate_corpus("generated")
    assert [len(part) for part in (corpus.train, corpus.validation, corpus.test)] == [6769, 1000, 3019]
    assert len(corpus.label_names) == 90
    documents = [ids for part in (corpus.train, corpus.validation, corpus.test) for ids in part.label_ids]
    assert all(ids == sorted(set(ids)) and ids for ids in documents)
    assert 1.15 < np.mean([len(ids) for ids in documents]) < 1.35  # Reuters: 1.24
    groups = make_dataset(corpus, TfidfSettings()).groups
    assert all(20 <= groups[name].sum() <= 45 for name in ("head", "medium", "tail"))


def test_generated_corpus_is_deterministic():
    first, second = (generate_corpus("generated", 1000) for _ in range(2))
    assert first == second
    assert first.fingerprint == second.fingerprint
    assert first.fingerprint != generate_corpus("generated", 1000, seed=1).fingerprint


def test_f1_by_group_counts_documents_without_the_groups_labels():
    rng = np.random.default_rng(0)
    targets = (rng.random((200, 12)) < 0.15).astype(np.uint8)
    predictions = rng.random((200, 12)) < 0.2
    predictions[:, 3] = False  # never predicted: macro-F1 counts it as 0
    mask = np.arange(12) < 5
    scores = f1_by_group(targets, predictions, {"some": mask})["some"]
    for average in ("micro", "macro"):
        expected = f1_score(targets[:, mask], predictions[:, mask], average=average, zero_division=0)
        assert scores[average] == pytest.approx(expected)
    true_positives = (targets[:, mask] * predictions[:, mask]).sum()
    assert scores["micro"] == pytest.approx(2 * true_positives / (targets[:, mask].sum() + predictions[:, mask].sum()))


def test_threshold_is_the_best_on_the_grid():
    targets = np.array([[1, 0], [1, 0], [0, 1]], np.uint8)
    scores = np.array([[0.9, 0.1], [0.47, 0.455], [0.2, 0.8]], np.float32)
    assert choose_threshold(targets, scores) == (0.46, 1.0)
    assert (THRESHOLDS[0], THRESHOLDS[-1], len(THRESHOLDS)) == (0.4, 0.6, 21)


def test_fingerprint_depends_on_every_setting_and_not_on_order():
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    assert fingerprint({"a": 1, "b": 2}) != fingerprint({"a": 1, "b": 3})


def test_record_is_found_for_its_settings_only(store):
    records, warnings = store
    records.save(SETTINGS, RESULT, {})
    assert records.load(SETTINGS) == RESULT
    assert records.load({**SETTINGS, "seed": 1}) is None
    assert not warnings


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "\x00",
        json.dumps({"settings": {"method": "FL"}, "result": RESULT}),
        json.dumps({"settings": SETTINGS, "result": {"test": SCORES}}),
    ],
)
def test_corrupt_or_foreign_record_is_reported(store, text):
    records, warnings = store
    records.save(SETTINGS, RESULT, {})
    records.path(SETTINGS).write_text(text)
    assert records.load(SETTINGS) is None
    assert len(warnings) == 1
    assert "redoing it" in warnings[0]


def test_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "record.json"
    path.write_text("old")

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, "new")
    assert [entry.read_text() for entry in tmp_path.iterdir()] == ["old"]


def test_tables_show_ours_beside_the_papers():
    row = summarize("DB", [SCORES, {group: {"micro": 0.6, "macro": 0.25} for group in SCORES}])
    assert row.figures["tail"]["micro"].mean == pytest.approx(55)
    for table in (text_table([row]), markdown_table([row])):
        assert "55.00±7.07/25.00±0.00" in table
        assert "48.89/31.39" in table
    assert set(PAPER_SCORES) == {"SVM", "BCE", "FL", "CB", "R-FL", "NTR-FL", "DB-0FL", "CB-NTR", "DB"}


def test_whole_run_then_nothing_left_to_do(arguments, tmp_path, capsys):
    assert reproduce_reuters.main(arguments) == 0
    lines = capsys.readouterr().out.strip().splitlines()
    for line in (lines[0], lines[-1]):
        assert line.startswith("GENERATED DATA: the figures are NOT on Reuters")
    assert {path.name for path in tmp_path.iterdir()} == {"records", "table2.json", "table2.md", "rare_labels.png"}
    assert set(json.loads((tmp_path / "table2.json").read_text())["f1_percent"]) == {"BCE", "DB"}
    record = json.loads(next((tmp_path / "records").glob("DB-*")).read_text())
    assert len(record["result"]["epochs"]) == 1
    assert record["versions"]["torch"]

    assert reproduce_reuters.main(arguments) == 0
    assert capsys.readouterr().out.count("done before, skipped") == 2


def test_interrupted_run_keeps_what_is_done_and_goes_on(arguments, tmp_path, capsys, monkeypatch):
    train = experiment.train

    def train_first_only(dataset, spec, *rest):
        if spec.gamma:
            raise KeyboardInterrupt
        return train(dataset, spec, *rest)

    monkeypatch.setattr(experiment, "train", train_first_only)
    assert reproduce_reuters.main(arguments) == 130
    output = capsys.readouterr().out
    assert "goes on from here" in output
    assert "\nBCE " in output
    assert [path.name.split("-")[0] for path in (tmp_path / "records").iterdir()] == ["BCE"]

    monkeypatch.undo()
    next((tmp_path / "records").iterdir()).write_text("half a rec")
    assert reproduce_reuters.main(arguments) == 0
    output = capsys.readouterr()
    assert "redoing it" in output.err
    assert "skipped" not in output.out


def test_without_reuters_the_figures_are_on_generated_data(monkeypatch, tmp_path):
    def unavailable():
        raise reuters_corpus.ReutersUnavailableError("no network")

    monkeypatch.setattr(reproduce_reuters, "load_reuters", unavailable)
    corpus = reproduce_reuters.choose_corpus(parse_options(["--documents", "1000", "--output", str(tmp_path)]))
    assert corpus.notice is not None
    assert "no network" in corpus.notice


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--losses", "MSE"], "invalid choice: 'MSE'"),
        (["--seeds", "0"], "expected an integer >= 1, got '0'"),
        (["--epochs", "many"], "expected an integer >= 1, got 'many'"),
        (["--dropout", "1"], "expected a number in [0, 1), got '1'"),
        (["--learning-rate", "nan"], "expected a number in (0, inf), got 'nan'"),
        (["--documents", "10"], "expected an integer >= 1000, got '10'"),
        (["--output", __file__], "cannot make the folder"),
    ],
)
def test_bad_options_say_what_was_expected(arguments, message, capsys):
    with pytest.raises(SystemExit) as exit_:
        parse_options(arguments)
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


def test_every_training_setting_is_in_the_fingerprint(tmp_path):
    options = parse_options(["--output", str(tmp_path)])
    corpus = generate_corpus("generated", 1000)
    store = RecordStore(tmp_path, print)
    settings = experiment.Experiment(corpus, options, store)._settings("DB", 0)
    assert settings["training"] == dataclasses.asdict(options.training)
    other = dataclasses.replace(options, convention="authors")
    assert fingerprint(experiment.Experiment(corpus, other, store)._settings("DB", 0)) != fingerprint(settings)
