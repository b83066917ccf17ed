"""Models that runs leave: saved and loaded whole or refused, the best is kept, new texts are predicted."""

from __future__ import annotations

import csv
import gzip
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

for package in ("datasets", "scipy", "sklearn", "transformers"):
    pytest.importorskip(package)

import predict  # noqa: E402
import reproduce_reuters  # noqa: E402
import run_corpus  # noqa: E402
from classifier import DESCRIPTION, Classifier, ClassifierError, read_description  # noqa: E402
from corpora.generated import write_labelled  # noqa: E402
from encoders.bert import BertEncoder  # noqa: E402
from encoders.bert_options import BertSettings  # noqa: E402
from encoders.feature_encoder import FeatureEncoder  # noqa: E402
from encoders.head import HeadSettings  # noqa: E402
from encoders.tfidf import IDF, VOCABULARY, TfidfSettings  # noqa: E402
from models import ModelStore  # noqa: E402
from places import PAPER, ROOT  # noqa: E402
from progress import progress  # noqa: E402
from records import LATEST, RecordStore  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from tiny_bert import save_tiny_encoder, tiny_corpus  # noqa: E402

from fused_balanced_loss import LossSpec, SparseTargets  # noqa: E402
from fused_balanced_loss.metrics import ThresholdedF1  # noqa: E402

pytestmark = pytest.mark.slow

HEAD = HeadSettings(hidden=16, epochs=6, batch_size=8, learning_rate=3e-2, dropout=0.1)
BERT = BertSettings(epochs=2, patience=0, batch_size=8, learning_rate=3e-3, max_length=16, precision="fp32")
SPEC = LossSpec.preset("DB", corpus="reuters")
SETTINGS = {"method": "DB", "seed": 0, "corpus_fingerprint": "tiny-64"}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_encoder(tmp_path_factory.mktemp("model"))


def train(kind, model, folder, **changes):
    """Result of a run on the tiny corpus."""
    if kind == "bert":
        encoder = BertEncoder(str(model), BERT, folder / "cache")
    else:
        encoder = FeatureEncoder(kind, HEAD, TfidfSettings(min_df=1), str(model), 16, folder / "cache")
    corpus = tiny_corpus()
    encoder.prepare(corpus)
    return corpus, encoder.run(corpus, SPEC, 0, folder / "work", lambda epoch: None)


def keep(folder, corpus, result, thresholds="run", kept="best"):
    store = ModelStore(folder, kept, thresholds)
    return store, store.keep("DB-seed0-x", corpus, SETTINGS, SPEC, result)


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    """A saved head over TF-IDF, to be copied by whoever changes it."""
    folder = tmp_path_factory.mktemp("saved")
    corpus, result = train("tfidf", model, folder)
    return keep(folder, corpus, result)[1]


@pytest.fixture
def copy(saved, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    for path in saved.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


@pytest.mark.parametrize("kind", ["tfidf", "frozen", "frozen+tfidf", "bert"])
def test_a_saved_model_predicts_as_the_run_did(model, tmp_path, kind):
    corpus, result = train(kind, model, tmp_path)
    _, folder = keep(tmp_path, corpus, result)
    assert {path.suffix for path in folder.rglob("*") if path.is_file()} == {".json", ".safetensors"}
    classifier = Classifier.load(folder)
    assert list(classifier.label_names) == corpus.label_names
    assert classifier.thresholds.tolist() == [result["own"]["threshold"]]
    assert classifier.spec == SPEC and classifier.statistics == corpus.statistics
    ids = {name: label for label, name in enumerate(corpus.label_names)}
    found = classifier.predict(corpus.test.texts)
    predicted = [sorted(ids[name] for name in prediction.labels) for prediction in found]
    # A probability beside the threshold may be rounded to either side.
    f1 = ThresholdedF1(corpus.num_labels, [0.5], activation="none")
    f1.update(SparseTargets.from_lists(predicted, corpus.num_labels).to_dense().float(), corpus.test.targets)
    assert f1.micro()[0] == pytest.approx(result["own"]["test"]["total"]["micro"], abs=0.02)
    assert sum(map(len, predicted)) > 0
    for prediction in found:
        assert prediction.probabilities == sorted(prediction.probabilities, reverse=True)
        assert all(value > result["own"]["threshold"] for value in prediction.probabilities)


def test_thresholds_of_groups_and_labels(model, tmp_path):
    corpus, result = train("tfidf", model, tmp_path)
    trained = result["model"]
    for by in ("group", "label"):
        _, folder = keep(tmp_path / by, corpus, {**result, "model": trained}, by)
        classifier = Classifier.load(folder)
        assert classifier.thresholds.tolist() == trained.own[f"by_{by}"].tolist()
        logits = classifier.body.logits(corpus.test.texts)
        expected = (torch.sigmoid(logits).double() > trained.own[f"by_{by}"]).sum(1).tolist()
        assert [len(one.labels) for one in classifier.stream(corpus.test.texts)] == expected


def test_options_of_a_prediction(saved):
    classifier = Classifier.load(saved)
    texts = ["w0 w1", "", "w2 \ud800", "unknown words"]
    for prediction in classifier.predict(texts, top=3):
        assert len(set(prediction.labels)) == 3
    assert all(len(one.labels) == 7 for one in classifier.predict(iter(texts), top=99))
    assert [len(one.labels) for one in classifier.predict(texts, threshold=0.0)] == [7] * 4
    assert classifier.predict([]) == []
    for wrong, error, message in (
        ("one text", TypeError, "expected several strings, got one"),
        ([b"bytes"], TypeError, "expected strings, got bytes"),
    ):
        with pytest.raises(error, match=message):
            classifier.predict(wrong)
    with pytest.raises(ValueError, match="top: expected at least 1, got 0"):
        classifier.predict(texts, top=0)


def rewrite(change):
    def on_file(folder):
        path = folder / DESCRIPTION
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return on_file


def reshape(folder):
    path = folder / "model.safetensors"
    weights = load_file(path)
    weights["output.bias"] = weights["output.bias"][:3].clone()
    save_file(weights, path)
    rewrite(lambda content: content["files"].update({path.name: path.stat().st_size}))(folder)


def shorten_words(folder):
    path = folder / VOCABULARY
    content = json.loads(path.read_text())
    content["words"].pop()
    path.write_text(json.dumps(content))
    rewrite(lambda content: content["files"].update({path.name: path.stat().st_size}))(folder)


def overwrite(name, content):
    return lambda folder: (folder / name).write_bytes(content)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / DESCRIPTION).unlink(), "classifier.json: missing; expected the folder that a run"),
        (lambda folder: (folder / IDF).unlink(), "idf.safetensors: missing, expected"),
        (lambda folder: os.truncate(folder / "model.safetensors", 100), "model.safetensors: has 100 bytes, expected"),
        (overwrite(DESCRIPTION, b'{"format": '), "classifier.json: Expecting value"),
        (overwrite(DESCRIPTION, b"[]"), "classifier.json: expected the format"),
        (rewrite(lambda content: content.update(version=2)), "it is of version 2, this program reads 1"),
        (rewrite(lambda content: content["label_names"].pop()), "statistics: expected 6 labels, got 7"),
        (rewrite(lambda content: content.update(threshold=[0.1, 0.2])), "threshold: expected 1 or 7, got 2"),
        (rewrite(lambda content: content.update(threshold=float("nan"))), "threshold: expected numbers in"),
        (rewrite(lambda content: content.update(files={"idf.safetensors": "x"})), "files: expected the size of each"),
        (rewrite(lambda content: content.update(label_names=None)), "label_names: expected a list of strings"),
        (rewrite(lambda content: content.update(body=[1])), "body: expected an object"),
        (rewrite(lambda content: content["loss"].update(gama=1)), "classifier.json: .*gama"),
        (rewrite(lambda content: content["body"].update(kind="svm")), "expected 'head' or 'bert', got 'svm'"),
        (reshape, r"model.safetensors: output.bias: expected shape \[7\], got \[3\]"),
        (shorten_words, r"idf.safetensors: expected \d+ numbers, one a word"),
    ],
)
def test_a_folder_that_is_not_whole_is_refused(copy, change, message):
    assert Classifier.load(copy).label_names
    change(copy)
    with pytest.raises(ClassifierError, match=message):
        Classifier.load(copy)


def test_what_lies_there_when_saving_fails_stays(model, tmp_path, monkeypatch):
    warnings = []
    monkeypatch.setattr(progress, "warn", warnings.append)
    corpus, result = train("tfidf", model, tmp_path)
    trained = result["model"]
    store, folder = keep(tmp_path, corpus, dict(result))
    before = read_description(folder)

    def half(partial):
        (partial / "model.safetensors").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    better = trained._replace(write=half, own=trained.own | {"micro_f1": 2.0})
    assert store.keep("DB-seed1-x", corpus, SETTINGS, SPEC, {**result, "model": better}) is None
    assert "No space left on device; the run's results are kept" in warnings[0]
    assert read_description(folder) == before
    assert [path.name for path in tmp_path.glob("*model*")] == ["best_model"], "half a folder was left"
    # A worse one does not take its place; of another corpus, any one does.
    worse = trained._replace(own=trained.own | {"micro_f1": 0.0})
    assert store.keep("DB-seed1-x", corpus, SETTINGS, SPEC, {**result, "model": worse}) is None
    assert store.score("", corpus) == pytest.approx(result["own"]["validation"]["total"]["micro"])
    (folder / DESCRIPTION).unlink()
    assert store.score("", corpus) == -1
    assert store.keep("DB-seed1-x", corpus, SETTINGS, SPEC, {**result, "model": worse}) == folder


def test_which_models_a_command_keeps(tmp_path, capsys):
    arguments = ["--generated", "--documents", "1000", "--losses", "BCE", "DB", "--epochs", "1"]
    arguments += ["--output", str(tmp_path / "run"), "--cache", str(tmp_path / "cache")]
    assert reproduce_reuters.main([*arguments, "--save-models", "none"]) == 0
    assert not list((tmp_path / "run").glob("*model*"))
    assert reproduce_reuters.main(arguments) == 0
    output = capsys.readouterr().out
    assert "no model of these runs" in output and "done before, skipped" in output
    assert reproduce_reuters.main([*arguments, "--redo"]) == 0
    assert capsys.readouterr().out.count("done before, skipped") == 1, "the best run alone is done again"
    best = read_description(tmp_path / "run" / "best_model")["made_from"]
    records = [json.loads(path.read_text())["result"] for path in (tmp_path / "run" / "records").glob("*.json")]
    assert best["validation"]["total"]["micro"] == pytest.approx(
        max(result["own"]["validation"]["total"]["micro"] for result in records), abs=1e-3
    )
    assert reproduce_reuters.main([*arguments, "--redo", "--save-models", "all"]) == 0
    assert len(list((tmp_path / "run" / "models").iterdir())) == 2
    assert reproduce_reuters.main([*arguments, "--redo", "--save-models", "all"]) == 0
    assert capsys.readouterr().out.count("done before, skipped") == 2


def test_a_record_without_the_figures_of_this_version_is_kept_and_shown(tmp_path, capsys, monkeypatch):
    arguments = [
        "--generated",
        "--documents",
        "1000",
        "--losses",
        "BCE",
        "DB",
        "--epochs",
        "1",
        "--save-models",
        "none",
    ]
    arguments += ["--output", str(tmp_path / "run"), "--cache", str(tmp_path / "cache")]
    assert reproduce_reuters.main(arguments) == 0
    path = next((tmp_path / "run" / "records").glob("DB-*.json"))
    record = json.loads(path.read_text())
    for name in LATEST:
        record["result"].pop(name)
    path.write_text(json.dumps(record))
    capsys.readouterr()
    assert reproduce_reuters.main(arguments) == 0
    output = capsys.readouterr().out
    assert output.count("done before, skipped") == 2
    assert "1 of 2 records lack figures of this version: --redo does their runs again" in output
    before = path.read_bytes()

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RecordStore, "save_done", interrupted)
        assert reproduce_reuters.main([*arguments, "--redo"]) == 130
    assert path.read_bytes() == before, "the earlier result was lost"
    capsys.readouterr()
    assert reproduce_reuters.main([*arguments, "--redo"]) == 0
    assert capsys.readouterr().out.count("done before, skipped") == 1
    assert set(json.loads(path.read_text())["result"]) >= LATEST


def test_own_corpus_from_file_to_predictions_in_a_new_process(tmp_path):
    """A gzipped table without a header whose fields begin with quotes: two commands."""
    file, texts = tmp_path / "own.tsv.gz", tmp_path / "new.tsv.gz"
    write_labelled(file, 600, 150)
    with gzip.open(file, "rt", encoding="utf-8", newline="") as rows:
        lines = rows.read().splitlines()
    assert sum(line.startswith('"') for line in lines) > 200 and any('"' in line.split("\t")[1] for line in lines)
    with gzip.open(texts, "wt", encoding="utf-8") as new:
        new.write("\n".join(line.split("\t")[0] for line in lines[:50]))
    form = ["--no-header", "--quoting", "none"]
    arguments = [str(file), *form, "--losses", "DB", "--epochs", "8", "--learning-rate", "0.03", "--batch-size", "16"]
    arguments += ["--output", str(tmp_path / "run"), "--cache", str(tmp_path / "cache")]
    assert run_corpus.main(arguments) == 0
    result = tmp_path / "labels.csv"
    command = [sys.executable, str(PAPER / "predict.py"), str(tmp_path / "run" / "best_model"), str(texts), *form]
    done = subprocess.run(
        [*command, "--output", str(result)], env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "50 texts" in done.stdout
    with open(result, encoding="utf-8", newline="") as table:
        rows = list(csv.DictReader(table))
    assert [row["row"] for row in rows] == [str(number) for number in range(1, 51)]
    names = set(Classifier.load(tmp_path / "run" / "best_model").label_names)
    assert any(name.startswith('"') for name in names), "quotes belong to the names"
    hits = 0
    for row, line in zip(rows, lines, strict=False):
        found = [name for name in row["labels"].split(";") if name]
        assert set(found) <= names and len(found) == len([one for one in row["probabilities"].split(";") if one])
        hits += len(set(found) & set(line.split("\t")[1].split(";")))
    assert hits > 25


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.jsonl", "a.csv", "a.tsv.gz"])
def test_predict_takes_texts_in_all_forms(saved, tmp_path, capsys, name):
    texts = ["w0 w3", 'he said "w1, w2"', "w4"]
    content = {
        ".txt": "\n".join(texts),
        ".jsonl": "\n".join(json.dumps({"text": text, "id": 3}) for text in texts),
        ".csv": "id,text\n" + "\n".join(f'1,"{text.replace(chr(34), 2 * chr(34))}"' for text in texts),
        ".tsv": "text\tlabels\n" + "\n".join(f'"{text.replace(chr(34), 2 * chr(34))}"\tx' for text in texts),
    }["." + name.split(".")[1]].encode()
    file = tmp_path / name
    file.write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    assert predict.main([str(saved), str(file), "--threshold", "0"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["row"] for row in rows] == [1, 2, 3]
    expected = Classifier.load(saved).predict(texts, threshold=0.0)
    assert [row["labels"] for row in rows] == [one.labels for one in expected]
    for row, one in zip(rows, expected, strict=True):
        np.testing.assert_allclose(row["probabilities"], one.probabilities, atol=1e-6)


@pytest.mark.parametrize(
    ("content", "arguments", "message"),
    [
        (b"title\na\n", [], "expected the column 'text', got ['title']"),
        (b'text\n"a\n', [], "--quoting none takes quotes as text"),
        (b"text\n\xff\n", [], "expected UTF-8"),
        (b"text\na\n", ["--label-separator", "el 1", "--output", "out.csv"], "the label 'label 1' holds 'el 1'"),
    ],
)
def test_predict_says_what_is_wrong(saved, tmp_path, monkeypatch, capsys, content, arguments, message):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "a.csv"
    file.write_bytes(content)
    assert predict.main([str(saved), str(file), *arguments]) == 1
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["a.csv"]


def test_predict_without_a_model(tmp_path, capsys):
    file = tmp_path / "a.txt"
    file.write_text("a")
    assert predict.main([str(tmp_path), str(file)]) == 1
    assert "classifier.json: missing" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        predict.main([str(tmp_path), str(file), "--output", "a.xlsx"])
    assert "expected a name that ends in .jsonl or .csv" in capsys.readouterr().err


def test_generated_table_is_the_same_each_time(tmp_path):
    for name in ("a.tsv", "b.tsv.gz"):
        write_labelled(tmp_path / name, 200, 20)
    assert gzip.decompress((tmp_path / "b.tsv.gz").read_bytes()) == (tmp_path / "a.tsv").read_bytes()
