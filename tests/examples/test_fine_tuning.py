"""The fine-tuning of examples/encoders/bert.py on a tiny encoder: resumption, search, broken files, processes."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("accelerate")
pytest.importorskip("datasets")
pytest.importorskip("transformers")

from agreement import assert_alike
from corpora.corpus import Split
from encoders import bert, pretrained, training
from encoders.bert import BertEncoder
from encoders.bert_options import BertSettings, add_bert_options, bert_settings
from encoders.encoder import EncoderError
from encoders.training import EpochReport, epochs_of, is_over, newest_checkpoint, progress_of
from fine_tuning_run import SETTINGS
from places import PAPER, ROOT
from progress import progress
from safetensors.torch import load_file, save_file
from tiny_bert import NUM_LABELS, save_tiny_encoder, tiny_corpus
from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer

from fused_balanced_loss import LossSpec

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).with_name("fine_tuning_run.py")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return save_tiny_encoder(tmp_path_factory.mktemp("encoder") / "tiny")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def fine_tune(encoder, cache, folder, *, method="DB", seed=0, keep=None, **changes):
    """Result and reported epochs of a run in this process; ``keep`` is a folder for its model."""
    corpus, epochs = tiny_corpus(), []
    runner = BertEncoder(str(encoder), BertSettings(**{**SETTINGS, **changes}), cache)
    runner.prepare(corpus)
    result = runner.run(corpus, LossSpec.preset(method, corpus="reuters"), seed, folder, epochs.append)
    model = result.pop("model")
    if keep is not None:
        keep.mkdir()
        model.write(keep)
    return {**result, "predictions": result["predictions"].to_lists()}, epochs


def without_times(result, epochs):
    """What must not depend on the machine's clock and memory."""
    kept = {name: value for name, value in result.items() if name not in ("seconds", "peak_memory_bytes", "epochs")}
    return kept, [{name: value for name, value in epoch.items() if name != "seconds"} for epoch in epochs]


def differing_labels(one, other):
    """Predicted in one of two results alone: a probability beside the threshold may be rounded to either side."""
    pairs = zip(one["predictions"], other["predictions"], strict=True)
    return sum(len({*first} ^ {*second}) for first, second in pairs)


def assert_same_run(one, other):
    """Results and epochs of two runs that did the same arithmetic at other addresses."""
    (result, epochs), (other_result, other_epochs) = without_times(*one), without_times(*other)
    assert differing_labels(result, other_result) <= 2
    assert_alike(result | {"predictions": None}, other_result | {"predictions": None}, 0.02)
    assert_alike(epochs, other_epochs, 0.02)
    assert_alike([epoch["loss"] for epoch in epochs], [epoch["loss"] for epoch in other_epochs], 1e-3)


def run_process(encoder, cache, folder, death="never", *changes, launcher=()):
    """Exit code, and result and epochs where there are any."""
    target = folder.with_suffix(".json")
    arguments = [str(SCRIPT), str(encoder), str(cache), str(folder), str(target), death, *changes]
    path = os.pathsep.join((str(ROOT), str(ROOT / "tests")))
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, *launcher, *arguments], env=environment, capture_output=True, text=True, timeout=300
    )
    if death == "never":
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    if not target.exists():
        return done.returncode, None, None
    result = json.loads(target.read_text())
    return done.returncode, result, result["epochs"]


def test_fused_classifier_gives_the_same_results(encoder, cache, tmp_path):
    plain, plain_epochs = fine_tune(encoder, cache, tmp_path / "plain")
    fused, fused_epochs = fine_tune(encoder, cache, tmp_path / "fused", fused_classifier=True)
    assert [epoch["loss"] for epoch in fused_epochs] == pytest.approx(
        [epoch["loss"] for epoch in plain_epochs], rel=1e-3
    )
    assert differing_labels(fused, plain) <= 2
    settings = [
        BertEncoder(str(encoder), BertSettings(fused_classifier=fused), cache).settings for fused in (False, True)
    ]
    assert settings[1] == {**settings[0], "fused_classifier": True}


@pytest.fixture(scope="module")
def whole(encoder, cache, tmp_path_factory):
    """A run that nothing interrupts, its folder, result and epochs."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    return folder, *run_process(encoder, cache, folder)[1:]


def test_a_run_is_whole(whole):
    folder, result, epochs = whole
    assert [epoch["number"] for epoch in epochs] == [1, 2, 3]
    assert all(epoch["loss"] > 0 and 0.4 <= epoch["threshold"] <= 0.6 for epoch in epochs)
    assert [epoch["seconds"] for epoch in epochs] == sorted(epoch["seconds"] for epoch in epochs)
    best = max(epochs, key=lambda epoch: epoch["micro_f1"])
    assert (result["best_epoch"], result["threshold"]) == (best["number"], best["threshold"])
    assert result["validation"]["total"]["micro"] == pytest.approx(best["micro_f1"], abs=1e-9)
    assert set(result["test"]) == {"total", "head", "medium", "tail"}
    assert set(result["test_by_instance"]) == {"single", "multi"}
    assert len(result["predictions"]) == 24 and any(result["predictions"])
    assert result["learning_rate"] == SETTINGS["learning_rate"] and result["search"] == []
    classifier = AutoModelForSequenceClassification.from_pretrained(newest_checkpoint(folder))
    assert classifier.config.id2label[2] == "label 2"
    assert classifier.config.problem_type == "multi_label_classification"


@pytest.mark.parametrize(
    "deaths",
    [
        # Within an epoch, before its first checkpoint and while one is written.
        ["step:2", "optimizer.pt:2"],
        # Within an epoch, after a checkpoint, and while one is written at the end of one.
        ["step:5", "training_args.bin:4"],
    ],
)
def test_a_killed_run_goes_on_as_if_it_had_not_been(encoder, cache, tmp_path, whole, deaths):
    folder = tmp_path / "run"
    for death in deaths:
        code, result, _ = run_process(encoder, cache, folder, death)
        assert code == -signal.SIGKILL and result is None
    _, result, epochs = run_process(encoder, cache, folder)
    assert_same_run((result, epochs), whole[1:])


def test_a_run_killed_after_training_is_only_scored(encoder, cache, tmp_path, whole, monkeypatch):
    moved = tmp_path / "elsewhere" / "run"
    shutil.copytree(whole[0], moved)
    monkeypatch.setattr(Trainer, "train", lambda *_, **__: pytest.fail("trained again"))
    result, epochs = fine_tune(encoder, cache, moved)
    assert_same_run((result, epochs), whole[1:])
    assert progress_of(moved)[2].parent == moved


NEEDED = (
    "model.safetensors",
    "optimizer.pt",
    "scheduler.pt",
    "rng_state.pth",
    "training_args.bin",
    "trainer_state.json",
)


@pytest.mark.parametrize("file", NEEDED)
@pytest.mark.parametrize("how", ["missing", "empty", "half"])
def test_broken_checkpoints_are_skipped_and_removed(tmp_path, whole, file, how):
    folder = tmp_path / "run"
    shutil.copytree(whole[0], folder)
    checkpoints = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    assert newest_checkpoint(folder) == checkpoints[-1]
    broken = checkpoints[-1] / file
    if how == "missing":
        broken.unlink()
    else:
        os.truncate(broken, 0 if how == "empty" else broken.stat().st_size // 2)
    best = json.loads((checkpoints[-2] / "trainer_state.json").read_text())["best_global_step"]
    expected = checkpoints[-2] if best != int(checkpoints[-1].name.split("-")[1]) else None
    assert newest_checkpoint(folder) == expected
    assert not checkpoints[-1].exists()


def test_no_checkpoint(tmp_path):
    assert newest_checkpoint(tmp_path / "none") is None
    (tmp_path / "checkpoint-x").mkdir()
    (tmp_path / "checkpoint-8").mkdir()
    (tmp_path / "checkpoint-8" / "trainer_state.json").write_text("[]")
    assert newest_checkpoint(tmp_path) is None and not list(tmp_path.iterdir())


def test_epochs_and_when_they_are_over():
    history = [
        {"loss": 4.0, "step": 3, "seconds": 1.0},
        {"loss": 1.0, "step": 4, "seconds": 1.5},
        {"eval_micro_f1": 0.5, "eval_threshold": 0.4, "step": 4, "seconds": 2.0},
        {"loss": float("nan"), "step": 8, "seconds": 3.0},
        {"eval_micro_f1": 0.25, "eval_threshold": 0.5, "step": 8, "seconds": 4.0},
        {"train_loss": 9.0, "step": 8, "seconds": 4.0},
    ]
    first, second = epochs_of(history)
    assert first == {"number": 1, "loss": 3.25, "micro_f1": 0.5, "threshold": 0.4, "seconds": 2.0}
    assert second["loss"] is None
    assert is_over([first, second], 9, 0)
    worse = {**second, "loss": 1.0}
    assert not is_over([], 3, 1) and not is_over([first, worse], 9, 0) and not is_over([first, worse], 9, 2)
    assert is_over([first, worse], 9, 1) and is_over([first, worse], 2, 0)
    assert not is_over([worse, first], 9, 1)


def test_stops_early_and_stays_stopped(encoder, cache, tmp_path, monkeypatch):
    result, epochs = fine_tune(encoder, cache, tmp_path / "run", epochs=9, patience=1, learning_rate=1e-8)
    assert len(epochs) == 2 and result["best_epoch"] == 1
    monkeypatch.setattr(Trainer, "train", lambda *_, **__: pytest.fail("trained again"))
    again, _ = fine_tune(encoder, cache, tmp_path / "run", epochs=9, patience=1, learning_rate=1e-8)
    assert_alike(again["test"], result["test"], 0.02)


def test_training_that_diverges_ends_with_a_result(encoder, cache, tmp_path):
    result, epochs = fine_tune(encoder, cache, tmp_path / "run", learning_rate=1e30)
    assert epochs[-1]["loss"] is None and len(epochs) < 3
    assert result["test"]["total"] == {"micro": 0.0, "macro": 0.0}


def test_learns_and_seeds_differ(encoder, cache, tmp_path):
    results = [
        fine_tune(encoder, cache, tmp_path / str(seed), method="BCE", seed=seed, epochs=2)[1][-1]["loss"]
        for seed in (0, 0, 1)
        if not shutil.rmtree(tmp_path / str(seed), ignore_errors=True)
    ]
    assert results[0] == pytest.approx(results[1], rel=1e-3)
    assert results[0] != pytest.approx(results[2], rel=1e-3)


def test_a_part_of_the_training_documents(encoder, cache, tmp_path):
    runner = BertEncoder(str(encoder), BertSettings(**SETTINGS, train_documents=10), cache)
    corpus = tiny_corpus()
    runner.prepare(corpus)
    part, statistics = runner.training_part
    assert len(part) == 10 == statistics.num_samples
    counted = torch.zeros(NUM_LABELS, dtype=torch.int64)
    for labels in part["labels"]:
        counted[labels] += 1
    assert torch.equal(statistics.counts.long(), counted)


def test_accumulated_batches_train_alike(encoder, cache, tmp_path):
    """Without dropout: 8 documents at once, and 2 at a time."""
    plain = shutil.copytree(encoder, tmp_path / "plain")
    config = json.loads((plain / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (plain / "config.json").write_text(json.dumps(config))
    _, large = fine_tune(plain, cache, tmp_path / "a", epochs=2)
    _, small = fine_tune(plain, cache, tmp_path / "b", epochs=2, accumulation=4)
    _, two, epochs = run_process(
        plain, cache, tmp_path / "c", "never", "epochs=2",
        launcher=("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
    )  # fmt: skip
    for other in (small, epochs):
        assert [epoch["loss"] for epoch in other] == pytest.approx([epoch["loss"] for epoch in large], rel=1e-3)
        assert [epoch["micro_f1"] for epoch in other] == pytest.approx([e["micro_f1"] for e in large], abs=0.05)
    assert len(two["predictions"]) == 24
    with pytest.raises(EncoderError, match=r"--bert-batch-size: expected a multiple of 3, .*got 8"):
        fine_tune(encoder, cache, tmp_path / "d", accumulation=3)


def test_search_tries_each_rate_once_and_goes_on_after_an_interruption(encoder, tmp_path, monkeypatch):
    tried, begin = [], EpochReport.on_train_begin

    def counted(self, args, state, *rest, **given):
        if "search-" in args.output_dir:
            tried.append(args.learning_rate)
            if len(tried) == 2:
                raise KeyboardInterrupt
        begin(self, args, state, *rest, **given)

    monkeypatch.setattr(EpochReport, "on_train_begin", counted)
    settings = {"learning_rate": None, "search_rates": (1e-8, 1e-3, 3e-3), "search_epochs": 2, "epochs": 1}
    with pytest.raises(KeyboardInterrupt):
        fine_tune(encoder, tmp_path, tmp_path / "a", **settings)
    result, _ = fine_tune(encoder, tmp_path, tmp_path / "a", **settings)
    # The one that was interrupted is done again.
    assert tried[:2] == [1e-8, 1e-3] and sorted(tried[2:]) == [1e-3, 3e-3]
    assert sorted(trial["learning_rate"] for trial in result["search"]) == [1e-8, 1e-3, 3e-3]
    assert result["learning_rate"] == result["search"][0]["learning_rate"]
    scores = [trial["micro_f1"] for trial in result["search"]]
    assert scores == sorted(scores, reverse=True) and all(trial["seconds"] > 0 for trial in result["search"])
    # Another seed takes the same rate, another loss searches its own.
    again, _ = fine_tune(encoder, tmp_path, tmp_path / "b", seed=1, **settings)
    assert len(tried) == 4 and again["search"] == result["search"]
    fine_tune(encoder, tmp_path, tmp_path / "c", method="BCE", **settings)
    assert len(tried) == 7


def test_broken_search_file_is_named(encoder, tmp_path):
    settings = {"learning_rate": None, "search_rates": (1e-3,), "search_epochs": 1, "epochs": 1}
    fine_tune(encoder, tmp_path, tmp_path / "run", **settings)
    (file,) = tmp_path.glob("search-*/rates.json")
    file.write_text(file.read_text()[:20])
    with pytest.raises(EncoderError, match=r"rates\.json: the search's record cannot be read .*remove it"):
        fine_tune(encoder, tmp_path, tmp_path / "run", **settings)


def test_tokens_are_made_once_and_by_what_makes_them(encoder, tmp_path, monkeypatch):
    corpus, said, warned = tiny_corpus(), [], []
    monkeypatch.setattr(progress, "say", said.append)
    monkeypatch.setattr(progress, "warn", warned.append)
    tokenizer = pretrained.load_tokenizer(str(encoder), 16)

    def make(corpus=corpus, max_length=16):
        said.clear()
        return pretrained.tokenize(corpus, tokenizer, max_length, tmp_path)

    first = make()
    assert said and first["train"][3] == {
        "input_ids": tokenizer(corpus.train.texts[3], truncation=True, max_length=16)["input_ids"],
        "labels": corpus.train.targets[3:4].to_lists()[0],
    }
    assert [len(first[part]) for part in corpus.splits] == [64, 24, 24]
    make()
    assert not said and len(list(tmp_path.glob("tokens-*.lock"))) == 1
    assert max(map(len, make(max_length=5)["train"]["input_ids"])) == 5 and said
    make(dataclasses.replace(corpus, fingerprint="other"))
    assert said and not warned
    arrow = Path(first["train"].cache_files[0]["filename"])
    os.truncate(arrow, arrow.stat().st_size // 2)
    assert len(make()["train"]) == 64 and said and "it is rebuilt" in warned[0]


def test_empty_texts_and_documents_without_labels(encoder, tmp_path):
    corpus = tiny_corpus()
    texts = list(corpus.train.texts)
    texts[5] = ""
    corpus = dataclasses.replace(corpus, train=Split(texts, corpus.train.targets), fingerprint="empty")
    assert [] in corpus.train.targets.to_lists()
    runner = BertEncoder(str(encoder), BertSettings(**{**SETTINGS, "epochs": 1}), tmp_path)
    runner.prepare(corpus)
    assert (
        runner.run(corpus, LossSpec.preset("DB", corpus="reuters"), 0, tmp_path / "run", lambda epoch: None)[
            "best_epoch"
        ]
        == 1
    )


def test_keeps_models_and_logs(encoder, cache, tmp_path):
    """The model is a plain checkpoint of transformers."""
    result, _ = fine_tune(encoder, cache, tmp_path / "DB-0", keep=tmp_path / "kept", epochs=1, logs=tmp_path / "logs")
    classifier = AutoModelForSequenceClassification.from_pretrained(tmp_path / "kept", use_safetensors=True).eval()
    assert classifier.config.id2label == dict(enumerate(tiny_corpus().label_names))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "kept")
    batch = tokenizer(tiny_corpus().test.texts, truncation=True, max_length=16, padding=True, return_tensors="pt")
    with torch.no_grad():
        predicted = torch.sigmoid(classifier(**batch).logits) > result["threshold"]
    found = {"predictions": [row.nonzero()[:, 0].tolist() for row in predicted]}
    assert differing_labels(found, result) <= 2
    lines = [json.loads(line) for line in (tmp_path / "logs" / "DB-0.jsonl").read_text().splitlines()]
    assert any("loss" in line for line in lines) and any("eval_own_micro_f1" in line for line in lines)


def test_full_disk_is_said_and_the_run_goes_on(encoder, cache, tmp_path, whole, monkeypatch):
    save = torch.save

    def full(value, path, *rest):
        if "checkpoint-16" in str(path):
            raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0")
        save(value, path, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        patch.setattr(training.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 0))
        with pytest.raises(OSError, match="no room for a checkpoint, which takes"):
            fine_tune(encoder, cache, tmp_path / "run")
    result, epochs = fine_tune(encoder, cache, tmp_path / "run")
    assert len(epochs) == 3 and result["best_epoch"] == whole[1]["best_epoch"]


def test_unknown_encoders_are_explained(encoder, tmp_path, monkeypatch):
    def offline(*_, **__):
        raise ConnectionError("Name or service not known")

    def load(model, max_length=16):
        pretrained.load_tokenizer(str(model), max_length)
        return pretrained.load_classifier(str(model), ["a", "b"], max_length)

    monkeypatch.setattr(pretrained.HfApi, "model_info", offline)
    with pytest.raises(
        EncoderError, match="--model no/such-model: not a local folder, not in the hub's cache, and the"
    ):
        load("no/such-model")
    monkeypatch.undo()
    with pytest.raises(EncoderError, match="--model /no/such/folder: cannot be had"):
        load("/no/such/folder")
    with pytest.raises(EncoderError, match=r"--bert-max-length: .* takes at most"):
        load(encoder, 33)
    (tmp_path / "empty").mkdir()
    with pytest.raises(EncoderError, match="the folder cannot be loaded; expected what save_pretrained"):
        load(tmp_path / "empty")
    broken = shutil.copytree(encoder, tmp_path / "broken")
    os.truncate(broken / "model.safetensors", 1000)
    with pytest.raises(EncoderError, match="the folder cannot be loaded"):
        load(broken)
    partial = shutil.copytree(encoder, tmp_path / "partial")
    weights = {name: value for name, value in load_file(partial / "model.safetensors").items() if "layer.1" not in name}
    save_file(weights, partial / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(EncoderError, match=r"its weights lack 16 of the encoder's, such as bert\.encoder\.layer\.1"):
        load(partial)


def test_a_half_precision_checkpoint_is_trained_in_float32(encoder, tmp_path):
    half = shutil.copytree(encoder, tmp_path / "half")
    weights = {name: value.half() for name, value in load_file(half / "model.safetensors").items()}
    save_file(weights, half / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((half / "config.json").read_text()) | {"dtype": "float16"}
    (half / "config.json").write_text(json.dumps(config))
    assert {value.dtype for value in pretrained.load_classifier(str(half), ["a"], 16).parameters()} == {torch.float32}


def test_initial_bias_is_of_a_new_classifier_alone(encoder, tmp_path):
    new = pretrained.load_classifier(str(encoder), ["a", "b", "c"], 16, -4.0)
    assert new.classifier.bias.tolist() == [-4.0] * 3
    assert pretrained.load_classifier(str(encoder), ["a", "b", "c"], 16).classifier.bias.tolist() == [0.0] * 3
    torch.nn.init.constant_(new.classifier.bias, 1.5)
    new.save_pretrained(tmp_path)
    pretrained.load_tokenizer(str(encoder), 16).save_pretrained(tmp_path)
    again = pretrained.load_classifier(str(tmp_path), ["a", "b", "c"], 16)
    assert again.classifier.bias.tolist() == [1.5] * 3
    with pytest.raises(EncoderError, match=r"--bert-initial-bias: .* gets no new classifier"):
        pretrained.load_classifier(str(tmp_path), ["a", "b", "c"], 16, -4.0)


def test_options_and_what_a_record_depends_on(tmp_path):
    import argparse

    parser = argparse.ArgumentParser()
    add_bert_options(parser)
    assert bert_settings(parser.parse_args([])) == BertSettings()
    given = ["--bert-learning-rate", "1e-4", "--bert-logs", "logs", "--bert-precision", "fp32", "--bert-epochs", "2"]
    settings = bert_settings(parser.parse_args(given))
    assert (settings.learning_rate, settings.logs, settings.epochs) == (1e-4, Path("logs"), 2)
    said = settings.as_json()
    assert not {"logs", "checkpoint_steps", "search_rates"} & set(said) and json.dumps(said)
    rates = bert_settings(parser.parse_args(["--bert-search-rates", "3e-5", "1e-5", "3e-5"]))
    assert rates.search_rates == (1e-5, 3e-5) and rates.as_json()["search_rates"] == [1e-5, 3e-5]
    for wrong in ("--bert-learning-rate=0", "--bert-epochs=0", "--bert-warmup=1", "--bert-max-length=2"):
        with pytest.raises(SystemExit):
            parser.parse_args([wrong])
    assert bert.BertEncoder("x", BertSettings(), tmp_path).settings["training"]["precision"] != "auto"


def test_mixed_precision(encoder, cache, tmp_path):
    """bf16, which is to be had on a CPU too."""
    if torch.cuda.is_available():
        pytest.skip("for a machine without a GPU")
    _, epochs = fine_tune(encoder, cache, tmp_path / "bf16", precision="bf16")
    _, plain_epochs = fine_tune(encoder, cache, tmp_path / "fp32")
    assert epochs[0]["loss"] != plain_epochs[0]["loss"]
    assert epochs[0]["loss"] == pytest.approx(plain_epochs[0]["loss"], rel=0.05)


def test_the_command_on_two_processes(encoder, tmp_path):
    """The whole of reproduce_reuters.py under torchrun, search included: one of the processes writes and prints."""
    arguments = [
        "--generated", "--documents", "1000", "--encoder", "bert", "--model", str(encoder), "--losses", "BCE", "DB",
        "--bert-epochs", "1", "--bert-search-rates", "1e-3", "1e-8", "--bert-search-epochs", "1",
        "--bert-max-length", "16", "--output", str(tmp_path / "run"), "--cache", str(tmp_path / "cache"),
    ]  # fmt: skip
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*launch, str(PAPER / "reproduce_reuters.py"), *arguments],
        env=environment, capture_output=True, text=True, timeout=400,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    records = [json.loads(path.read_text()) for path in (tmp_path / "run" / "records").glob("*.json")]
    assert sorted(record["settings"]["method"] for record in records) == ["BCE", "DB"]
    for record in records:
        assert record["status"] == "done" and len(record["epochs"]) == 1
        assert [trial["learning_rate"] for trial in record["result"]["search"]] in ([1e-3, 1e-8], [1e-8, 1e-3])
        assert (tmp_path / "run" / "records" / record["result"]["predictions"]).exists()
    assert done.stdout.count("[2/2] DB seed 0") == 1
    assert not list((tmp_path / "run" / "work").glob("*"))
