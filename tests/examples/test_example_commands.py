"""The commands of the examples: records, options, whole runs on small corpora, what is left by those that end early."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time

import pytest

for package in ("datasets", "ijson", "matplotlib", "pandas", "pydantic", "scipy", "sklearn", "tabulate"):
    pytest.importorskip(package)

import experiment  # noqa: E402
import records as records_module  # noqa: E402
import reproduce_pubmed  # noqa: E402
import reproduce_reuters  # noqa: E402
import run_corpus  # noqa: E402
from corpora import reuters  # noqa: E402
from corpora.generated import generate_corpus  # noqa: E402
from encoders.head import HeadTraining  # noqa: E402
from places import PAPER, ROOT  # noqa: E402
from progress import progress  # noqa: E402
from records import RecordError, RecordStore, fingerprint  # noqa: E402

from fused_balanced_loss import SparseTargets  # noqa: E402

pytestmark = pytest.mark.slow

SCORES = {group: {"micro": 0.5, "macro": 0.25} for group in ("total", "head", "medium", "tail")}
RESULT = {"validation": SCORES, "test": SCORES}
SETTINGS = {"method": "DB", "seed": 0, "corpus": "Small", "corpus_fingerprint": "0123", "epochs": 3}
PREDICTIONS = SparseTargets.from_lists([[0, 2], []], 3)


@pytest.fixture
def arguments(tmp_path):
    folders = ["--output", str(tmp_path / "run"), "--cache", str(tmp_path / "cache")]
    return ["--generated", "--documents", "1000", "--epochs", "1", "--losses", "BCE", "DB", *folders]


@pytest.fixture
def store(tmp_path, monkeypatch):
    warnings = []
    monkeypatch.setattr(progress, "warn", warnings.append)
    store = RecordStore(tmp_path / "records")
    store.open()
    return store, warnings


def save(store, settings=SETTINGS):
    store.save_done(settings, {}, [], {**RESULT, "predictions": PREDICTIONS})


def test_fingerprint_depends_on_every_setting_and_not_on_order():
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    assert fingerprint({"a": 1, "b": 2}) != fingerprint({"a": 1, "b": 3})


def test_record_is_found_for_its_settings_only(store):
    records, warnings = store
    save(records)
    assert records.load(SETTINGS)["result"] == {**RESULT, "predictions": f"{records.stem(SETTINGS)}.npz"}
    assert records.load({**SETTINGS, "seed": 1}) is None
    assert not warnings


def test_unfinished_record_is_none(store):
    records, warnings = store
    records.save_running(SETTINGS, {}, [{"number": 1}])
    assert json.loads(records.path(SETTINGS).read_text())["epochs"] == [{"number": 1}]
    assert records.load(SETTINGS) is None
    assert not warnings


def test_what_a_killed_process_has_left_is_removed(store):
    records, _ = store
    save(records)
    (records.folder / f".{records.stem(SETTINGS)}.4711.json").write_text("{")
    records.open()
    assert sorted(path.suffix for path in records.folder.iterdir()) == [".bin", ".json", ".npz"]


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
    save(records)
    records.path(SETTINGS).write_text(text)
    assert records.load(SETTINGS) is None
    assert len(warnings) == 1
    assert "redoing it" in warnings[0]


def fill_disk(monkeypatch, room):
    """Writing fails while ``room()`` is false; what was written before stays."""
    atomic_file = records_module.atomic_file

    def on_full_disk(path):
        if not room(path):
            raise OSError(errno.ENOSPC, "No space left on device")
        return atomic_file(path)

    monkeypatch.setattr(records_module, "atomic_file", on_full_disk)


def test_full_disk_at_the_end_of_a_run_takes_the_reserve(store, monkeypatch):
    records, _ = store
    (reserve,) = records.folder.iterdir()
    assert reserve.stat().st_size == records_module.RESERVE_BYTES
    fill_disk(monkeypatch, lambda path: not reserve.exists() and path.suffix == ".json")
    with pytest.raises(RecordError, match="No space left on device; the result is recorded, its predictions are not"):
        save(records)
    assert records.load(SETTINGS)["result"] == {**RESULT, "predictions": None}


def test_result_that_no_file_takes_is_printed(store, monkeypatch):
    records, warnings = store
    fill_disk(monkeypatch, lambda path: False)
    records.save_running(SETTINGS, {}, [])
    assert "cannot be written yet: No space left on device" in warnings[0]
    with pytest.raises(RecordError) as error:
        save(records)
    assert json.loads(str(error.value).splitlines()[1])["result"] == {**RESULT, "predictions": None}


def test_full_disk_ends_the_command_with_its_tables(arguments, tmp_path, capsys, monkeypatch):
    fill_disk(monkeypatch, lambda path: path.suffix != ".npz")
    assert reproduce_reuters.main(arguments) == 1
    output = capsys.readouterr()
    assert "No space left on device" in output.err
    assert "Table 2 of the paper" in output.out
    assert "goes on from here" in output.out
    monkeypatch.undo()
    assert reproduce_reuters.main(arguments) == 0
    assert capsys.readouterr().out.count("done before, skipped") == 1


def test_whole_run_then_nothing_left_to_do(arguments, tmp_path, capsys):
    assert reproduce_reuters.main(arguments) == 0
    output = capsys.readouterr().out
    lines = output.strip().splitlines()
    for line in (lines[0], lines[-1]):
        assert line.startswith("GENERATED DATA: the figures are NOT on Reuters")
    assert "48.89/31.39" in output.replace("*", ""), "the paper's figures stand beside ours"
    for table in ("Table 1 of the paper", "Table 2 of the paper", "Table 3 of the paper"):
        assert table in output
    run = tmp_path / "run"
    left = {"best_model", "corpus.json", "label_counts.npz", "records", "report"}
    assert {path.name for path in run.iterdir()} == left
    assert {"report.md", "report.json"} < {path.name for path in (run / "report").iterdir()}
    assert list((run / "report").rglob("*.png"))
    record = json.loads(next((run / "records").glob("DB-*.json")).read_text())
    assert record["status"] == "done"
    assert len(record["epochs"]) == 1
    assert record["versions"]["torch"]
    assert (run / "records" / record["result"]["predictions"]).exists()

    assert reproduce_reuters.main(arguments) == 0
    assert capsys.readouterr().out.count("done before, skipped") == 2


def test_interrupted_run_keeps_what_is_done_and_goes_on(arguments, tmp_path, capsys, monkeypatch):
    run = HeadTraining.run

    def run_first_only(training, *rest):
        if training.spec.gamma:
            raise KeyboardInterrupt
        return run(training, *rest)

    monkeypatch.setattr(HeadTraining, "run", run_first_only)
    assert reproduce_reuters.main(arguments) == 130
    output = capsys.readouterr()
    assert "Interrupted." in output.err
    assert "goes on from here" in output.out
    assert "\nBCE " in output.out
    folder = tmp_path / "run" / "records"
    assert [path.name.split("-")[0] for path in folder.glob("*.json")] == ["BCE"]

    monkeypatch.undo()
    next(folder.glob("*.json")).write_text("half a rec")
    assert reproduce_reuters.main(arguments) == 0
    output = capsys.readouterr()
    assert "redoing it" in output.err
    assert "skipped" not in output.out


def test_killed_run_goes_on(tmp_path):
    command = [sys.executable, str(PAPER / "reproduce_reuters.py"), "--generated", "--documents", "1000"]
    command += ["--losses", "BCE", "DB", "--epochs", "1", "--output", str(tmp_path), "--cache", str(tmp_path / "cache")]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not list((tmp_path / "records").glob("BCE*.npz")):
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "DB seed 0" in done.stdout
    assert len(list((tmp_path / "records").glob("*.json"))) == 2
    assert not list((tmp_path / "records").glob(".reserve*"))


def test_features_train_in_one_process_of_several(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [str(PAPER / "reproduce_reuters.py"), "--generated", "--documents", "1000", "--epochs", "1"]
    command += ["--losses", "SVM", "BCE", "--output", str(tmp_path), "--cache", str(tmp_path / "cache")]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.startswith("--encoder tfidf trains in one process; the others have ended")
    for run in ("[1/2] SVM", "[2/2] BCE seed 0", "s in all"):
        assert done.stdout.count(run) == 1
    assert len(list((tmp_path / "records").glob("*.json"))) == 2


def test_pubmed_command_on_a_generated_file(tmp_path, capsys):
    arguments = ["--generated", "--articles", "1000", "--headings", "100", "--validation-size", "100", "--test-size"]
    arguments += ["0.1", "--losses", "SVM", "CB-NTR", "--epochs", "1", "--seeds", "2", "--threads", "2"]
    arguments += ["--output", str(tmp_path / "run"), "--cache", str(tmp_path / "cache")]
    assert reproduce_pubmed.main(arguments) == 0
    output = capsys.readouterr().out
    assert output.startswith("GENERATED DATA: the figures are NOT on PubMed")
    assert "1,000 documents (800 train, 100 validation, 100 test)" in output
    assert "61.07/18.40" in output.replace("*", ""), "the paper's figures on PubMed stand beside ours"
    assert {path.name.split("-seed")[0] for path in (tmp_path / "run" / "records").iterdir()} == {"SVM", "CB-NTR"}


def test_own_corpus(tmp_path, capsys):
    corpus = generate_corpus("", 1000)
    rows = (
        {"text": text, "labels": [corpus.label_names[label] for label in ids], "split": part}
        for part, split in corpus.splits.items()
        for text, ids in zip(split.texts, split.targets.to_lists(), strict=True)
    )
    file = tmp_path / "own.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    arguments = [str(file), "--losses", "DB", "--epochs", "1", "--head", "35", "--tail", "8", "--min-label-count", "0"]
    arguments += ["--output", str(tmp_path / "run"), "--cache", str(tmp_path / "cache")]
    assert run_corpus.main(arguments) == 0
    assert "own: 1,000 documents (627 train, 93 validation, 280 test), 90 labels" in capsys.readouterr().out
    record = json.loads(next((tmp_path / "run" / "records").glob("DB-*.json")).read_text())
    suggested = corpus.statistics.suggest_mu(corpus.train.targets)
    assert record["settings"]["loss"]["mu"] == pytest.approx(suggested, abs=1e-3)


def test_own_corpus_without_a_header(tmp_path, capsys):
    file = tmp_path / "own.tsv"
    file.write_text("\n".join(f'"quoted {k} word\tred;blue{k % 2}' for k in range(40)))
    arguments = [str(file), "--no-header", "--quoting", "none", "--losses", "DB", "--epochs", "1", "--head", "9"]
    arguments += ["--tail", "1", "--output", str(tmp_path / "run"), "--cache", str(tmp_path / "cache")]
    assert run_corpus.main(arguments) == 0
    assert "own: 40 documents (32 train, 4 validation, 4 test), 3 labels" in capsys.readouterr().out
    options = run_corpus.corpus_options([*arguments, "--text-field", "3"])
    assert (options.text_field, options.label_field) == ("3", "2")


@pytest.mark.parametrize("name", ["truncated", "no model"])
def test_what_cannot_be_used_ends_the_command_with_a_message(tmp_path, capsys, monkeypatch, name):
    folders = ["--output", str(tmp_path / "run"), "--cache", str(tmp_path / "cache")]
    if name == "truncated":
        file = tmp_path / "articles.json"
        file.write_text('{"articles": [{"pmid": "1", "title": "a", "abstractText": "b"')
        assert reproduce_pubmed.main([str(file), *folders]) == 1
        assert "error: " + str(file) in capsys.readouterr().err
    else:
        arguments = ["--generated", "--documents", "1000", "--encoder", "frozen", "--model", str(tmp_path)]
        assert reproduce_reuters.main([*arguments, "--losses", "SVM", "DB", *folders]) == 1
        assert (
            f"error: --model {tmp_path}: the folder cannot be loaded; expected what save_pretrained"
            in capsys.readouterr().err
        )


def test_without_reuters_the_figures_are_on_generated_data(monkeypatch, tmp_path):
    def unavailable():
        raise reuters.ReutersUnavailableError("no network")

    monkeypatch.setattr(reproduce_reuters, "load_reuters", unavailable)
    arguments = ["--documents", "1000", "--output", str(tmp_path), "--cache", str(tmp_path)]
    corpus = reproduce_reuters.choose_corpus(reproduce_reuters.reuters_options(arguments))
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
        (["--encoder", "word2vec"], "invalid choice: 'word2vec'"),
        (["--model", "bert-base-cased"], "--encoder tfidf has no model"),
    ],
)
def test_bad_options_say_what_was_expected(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit_:
        reproduce_reuters.reuters_options(arguments)
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected a BioASQ file or --generated"),
        (["none.json"], "expected a file, got 'none.json'"),
        (["--generated", "--years", "2021-2020"], "expected years such as 2020-2021, or all, got '2021-2020'"),
        (["--generated", "--test-size", "1.5"], "expected a share below 1 or a number of documents, got '1.5'"),
        (["--generated", "--encoding", "utf-9"], "expected the name of an encoding, got 'utf-9'"),
    ],
)
def test_bad_pubmed_options_say_what_was_expected(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit_:
        reproduce_pubmed.pubmed_options(arguments)
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


INSTALL = "pip install 'fused_balanced_loss[examples]' installs all that the examples need"


@pytest.mark.parametrize(
    ("package", "command"),
    [
        ("transformers", "reproduce_reuters --encoder frozen"),
        *(
            (package, "reproduce_reuters --encoder bert --bert-logs logs")
            for package in ("transformers", "accelerate", "datasets", "tensorboard")
        ),
        ("ijson", "reproduce_pubmed --generated"),
        ("datasets", "reproduce_pubmed --generated"),
        ("datasets", f"run_corpus {__file__}"),
    ],
)
def test_missing_package_is_named_before_anything_is_done(package, command, tmp_path, monkeypatch):
    name, *arguments = command.split()
    for other in ("transformers", "accelerate", "tensorboard"):
        if other != package and "bert" in arguments:
            pytest.importorskip(other)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(SystemExit) as exit_:
        sys.modules[name].main(arguments)
    assert exit_.value.code.startswith(f"error: {package} cannot be imported")
    assert exit_.value.code.endswith(INSTALL)


@pytest.mark.parametrize("command", ["reproduce_reuters", "reproduce_pubmed", "run_corpus", "make_report"])
def test_missing_package_of_every_command(command):
    code = f"import runpy, sys; sys.modules['sklearn'] = None; runpy.run_path({str(PAPER / command)!r} + '.py')"
    environment = os.environ | {"PYTHONPATH": f"{PAPER}{os.pathsep}{ROOT}"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("error: scikit-learn cannot be imported")
    assert done.stderr.endswith(f"{INSTALL}\n")


def test_output_that_nobody_reads_ends_without_a_traceback(tmp_path):
    command = [sys.executable, str(PAPER / "reproduce_reuters.py"), "--generated", "--documents", "1000"]
    command += ["--losses", "BCE", "--epochs", "1", "--output", str(tmp_path), "--cache", str(tmp_path / "cache")]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1


def test_every_setting_is_in_the_fingerprint(tmp_path):
    folders = ["--output", str(tmp_path), "--cache", str(tmp_path)]
    corpus = generate_corpus("generated", 1000)

    def settings(*arguments):
        options = reproduce_reuters.reuters_options([*arguments, *folders])
        return experiment.Experiment(corpus, options)._settings("DB", 0)

    default = settings()
    assert default["training"] == reproduce_reuters.HEADS["tfidf"].as_json()
    changes = ("--convention authors", "--mu 0.5", "--hidden 8", "--fused-classifier", "--patience 3")
    changes += ("--thresholds full", "--thresholds 0.1,0.2")
    others = [settings(*change.split()) for change in changes]
    assert len({fingerprint(one) for one in (default, *others)}) == 1 + len(changes)
    assert fingerprint(settings("--save-models", "all", "--redo")) == fingerprint(default)
    for path in (PAPER / "results" / "reuters" / "records").glob("DB-seed0-*.json"):
        recorded = json.loads(path.read_text())["settings"]
        if recorded["encoder"] == "tfidf":
            same = {name: recorded[name] for name in ("corpus", "corpus_fingerprint")}
            assert recorded == default | same, "the committed runs would be done again"
            break
    else:
        pytest.fail("no committed run")
