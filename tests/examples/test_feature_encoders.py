"""TF-IDF, frozen features, the head's training and the SVM of the examples."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

for package in ("joblib", "scipy", "sklearn", "transformers"):
    pytest.importorskip(package)

from agreement import assert_alike  # noqa: E402
from corpora.corpus import Corpus, Split  # noqa: E402
from corpora.generated import generate_corpus  # noqa: E402
from encoders import features as feature_files  # noqa: E402
from encoders import head  # noqa: E402
from encoders.encoder import EncoderError  # noqa: E402
from encoders.feature_encoder import FeatureEncoder  # noqa: E402
from encoders.features import frozen_features, tfidf_features  # noqa: E402
from encoders.frozen import FrozenEncoder, model_name  # noqa: E402
from encoders.head import Head, HeadSettings, Inputs, rate_share  # noqa: E402
from encoders.scoring import epochs_since_best, score_own, score_test, score_validation  # noqa: E402
from encoders.svm import run_svm  # noqa: E402
from encoders.tfidf import SVM_TFIDF, TfidfSettings  # noqa: E402
from files import AppendedRows  # noqa: E402
from progress import progress  # noqa: E402
from sklearn.feature_extraction.text import TfidfVectorizer  # noqa: E402
from sklearn.metrics import f1_score  # noqa: E402
from sklearn.multiclass import OneVsRestClassifier  # noqa: E402
from sklearn.svm import LinearSVC  # noqa: E402
from tiny_bert import NUM_LABELS, documents, save_tiny_encoder, tiny_tokenizer  # noqa: E402

from fused_balanced_loss import LossSpec, SparseTargets  # noqa: E402

pytestmark = pytest.mark.slow

HEAD = HeadSettings(hidden=16, epochs=3)
DB = LossSpec.preset("DB", corpus="reuters")


def quiet(_):
    pass


@pytest.fixture(scope="module")
def corpus():
    return generate_corpus("generated", 1000)


@pytest.fixture(scope="module")
def words(corpus, tmp_path_factory):
    return tfidf_features(corpus, TfidfSettings(), tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def small_corpus():
    """What a tiny BERT has words for."""
    splits = []
    for seed, number in enumerate((70, 20, 20)):
        texts, ids = documents(number, seed)
        splits.append(Split(texts, SparseTargets.from_lists(ids, NUM_LABELS)))
    names = [f"label {k}" for k in range(NUM_LABELS)]
    return Corpus("Small", names, *splits, fingerprint="small", head=30, tail=10, instance_groups={"all": (0, None)})


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(save_tiny_encoder(tmp_path_factory.mktemp("model")))


def train_head(corpus, inputs, spec, settings, seed, folder, report, fused_classifier=False):
    return head.HeadTraining(corpus, inputs, spec, settings, seed, fused_classifier).run(folder, report)


def inputs_of(words):
    return {part: Inputs(rows) for part, rows in words.items()}


@pytest.mark.parametrize("settings", [TfidfSettings(), SVM_TFIDF])
def test_tfidf_is_that_of_scikit_learn(corpus, tmp_path, settings):
    found = tfidf_features(corpus, settings, tmp_path)
    vectorizer = TfidfVectorizer(stop_words="english", dtype=np.float32, **dataclasses.asdict(settings))
    vectorizer.fit(corpus.train.texts)
    for part, split in corpus.splits.items():
        expected = vectorizer.transform(split.texts)
        assert found[part].shape == expected.shape
        assert abs(found[part] - expected).max() < 1e-6
        array = found[part].data
        while array is not None and not isinstance(array, np.memmap):
            array = array.base
        assert array is not None, "read into memory"


def test_tfidf_without_words_is_refused(corpus, tmp_path):
    with pytest.raises(EncoderError, match="no word occurs in 9999 training documents"):
        tfidf_features(corpus, TfidfSettings(min_df=9999), tmp_path)


def test_frozen_features_are_the_mean_over_the_tokens(small_corpus, model, tmp_path):
    from transformers import AutoModel

    found = frozen_features(small_corpus, model, 8, tmp_path)
    assert {part: rows.shape for part, rows in found.items()} == {
        "train": (70, 16),
        "validation": (20, 16),
        "test": (20, 16),
    }
    encoder, tokenizer = AutoModel.from_pretrained(model).eval(), tiny_tokenizer()
    for row in (0, 13, 69):
        tokens = tokenizer(small_corpus.train.texts[row], truncation=True, max_length=8, return_tensors="pt")
        with torch.inference_mode():
            expected = encoder(**tokens).last_hidden_state[0].mean(0)
        np.testing.assert_allclose(found["train"][row], expected, rtol=1e-4, atol=1e-5)


def test_interrupted_frozen_features_go_on(small_corpus, model, tmp_path, monkeypatch):
    encoded = []
    encode = FrozenEncoder._encode

    def counted(encoder, texts):
        if len(encoded) == 2:
            encoded.append(0)
            raise KeyboardInterrupt
        encoded.append(len(texts))
        return encode(encoder, texts)

    monkeypatch.setattr(FrozenEncoder, "_encode", counted)
    monkeypatch.setattr(feature_files, "BLOCK", feature_files.BATCH)
    with pytest.raises(KeyboardInterrupt):
        frozen_features(small_corpus, model, 8, tmp_path)
    found = frozen_features(small_corpus, model, 8, tmp_path)
    assert sum(encoded) == 110, "a text was encoded twice, or not at all"
    whole = frozen_features(small_corpus, model, 8, tmp_path / "other")
    for part in whole:
        # The encoder is loaded anew, at other addresses.
        np.testing.assert_allclose(found[part], whole[part], rtol=1e-5, atol=1e-6)


def test_model_name_follows_the_weights(model, tmp_path):
    assert model_name("bert-base-cased") == "bert-base-cased"
    assert model_name(model).startswith(Path(model).name + "@")
    other = save_tiny_encoder(tmp_path / Path(model).name)
    assert model_name(str(other)) == model_name(model)
    (other / "model.safetensors").write_bytes(b"other weights")
    assert model_name(str(other)) != model_name(model)


@pytest.mark.parametrize("what", ["an empty folder", "an unknown name"])
def test_unknown_model(small_corpus, tmp_path, monkeypatch, what):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    name = str(tmp_path) if what == "an empty folder" else "nobody/such-a-model"
    with pytest.raises(EncoderError, match=r"--model .*(expected what save_pretrained|the hub)"):
        frozen_features(small_corpus, name, 8, tmp_path / "cache")


def test_more_tokens_than_the_model_takes(small_corpus, model, tmp_path):
    with pytest.raises(EncoderError, match=r"--max-length: .* takes at most 32 tokens, got 33"):
        frozen_features(small_corpus, model, 33, tmp_path)


@pytest.mark.parametrize("kind", ["tfidf", "frozen", "frozen+tfidf"])
def test_every_feature_encoder_learns(small_corpus, model, tmp_path, kind):
    head = HeadSettings(hidden=32, epochs=8, batch_size=8, dropout=0.1)
    encoder = FeatureEncoder(kind, head, TfidfSettings(min_df=1), model, 32, tmp_path)
    encoder.prepare(small_corpus)
    epochs = []
    result = encoder.run(small_corpus, LossSpec.preset("BCE"), 0, tmp_path / "work", epochs.append)
    assert [epoch["number"] for epoch in epochs] == list(range(1, 9))
    assert epochs[-1]["loss"] < 0.8 * epochs[0]["loss"]
    assert result["validation"]["total"]["micro"] == max(epoch["micro_f1"] for epoch in epochs)
    assert encoder.name == kind if kind == "tfidf" else encoder.name == f"{kind}:{model_name(model)}"
    assert set(result) == {
        *("best_epoch", "threshold", "validation", "test", "test_by_instance", "confused", "predictions"),
        *("at_edge", "own", "by_group", "by_label", "own_epoch", "model", "labels", "ranking"),
        *("seconds", "peak_memory_bytes"),
    }


def test_dense_features_are_brought_to_one_scale():
    rng = np.random.default_rng(0)
    features = (rng.standard_normal((5000, 3)) * [1, 1e-3, 100] + [0, 5, -7]).astype(np.float32)
    head = Head.for_inputs(Inputs(features=features), 2, HEAD)
    scaled = (torch.from_numpy(features) - head.mean) / head.std
    assert torch.allclose(scaled.mean(0), torch.zeros(3), atol=1e-2)
    assert torch.allclose(scaled.std(0), torch.ones(3), atol=1e-2)


def test_scores_are_those_of_scikit_learn(corpus):
    generator = torch.Generator().manual_seed(0)
    logits = {part: torch.randn(len(split), 90, generator=generator) - 1 for part, split in corpus.splits.items()}
    validation = score_validation(corpus, logits["validation"].split(10))
    threshold = validation["protocol"]["threshold"]
    scores = score_test(corpus, logits["test"].split(7), threshold)
    predicted = (logits["test"].sigmoid() > threshold).numpy()
    dense = corpus.test.targets.to_dense().numpy()
    for name, mask in corpus.label_groups.items():
        for average in ("micro", "macro"):
            expected = f1_score(dense[:, mask], predicted[:, mask], average=average, zero_division=0)
            assert scores["test"][name][average] == expected
    several = dense.sum(1) > 1
    expected = f1_score(dense[several], predicted[several], average="macro", zero_division=0)
    assert scores["test_by_instance"]["multi"]["macro"] == expected
    assert torch.equal(scores["predictions"].to_dense(torch.bool), torch.from_numpy(predicted))
    with pytest.raises(ValueError, match="expected 93 rows"):
        score_validation(corpus, logits["validation"][:50].split(10))


def test_training_is_the_same_again(corpus, words, tmp_path):
    losses = []
    for run, seed in enumerate((0, 0, 1)):
        epochs = []
        train_head(corpus, inputs_of(words), DB, HEAD, seed, tmp_path / str(run), epochs.append)
        losses.append([epoch["loss"] for epoch in epochs])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert losses[0] != pytest.approx(losses[2], rel=1e-3)


def test_killed_training_goes_on_to_the_same_end(corpus, words, tmp_path, monkeypatch):
    monkeypatch.setattr(head, "CHECKPOINT_SECONDS", 0.0)
    whole, epochs = [], []
    expected = train_head(corpus, inputs_of(words), DB, HEAD, 0, tmp_path / "whole", whole.append)

    def kill(epoch):
        if epoch["number"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_head(corpus, inputs_of(words), DB, HEAD, 0, tmp_path / "run", kill)
    trained = []
    train_epoch = head.HeadTraining.train_epoch
    monkeypatch.setattr(head.HeadTraining, "train_epoch", lambda run: trained.append(1) or train_epoch(run))
    found = train_head(corpus, inputs_of(words), DB, HEAD, 0, tmp_path / "run", epochs.append)
    assert len(trained) == 1
    assert [epoch["number"] for epoch in epochs] == [1, 2, 3]
    assert [epoch["loss"] for epoch in epochs] == pytest.approx([epoch["loss"] for epoch in whole], rel=1e-5)
    assert_alike(found["test"], expected["test"], 0.02)


def test_fused_classifier_gives_the_same_results(corpus, words, tmp_path):
    settings = HeadSettings(hidden=64, epochs=6)
    epochs = {True: [], False: []}
    for fused, reported in epochs.items():
        train_head(corpus, inputs_of(words), DB, settings, 0, tmp_path, reported.append, fused_classifier=fused)
    fused, plain = ([(epoch["loss"], epoch["micro_f1"]) for epoch in epochs[kind]] for kind in epochs)
    np.testing.assert_allclose(fused, plain, rtol=1e-3, atol=1e-3)
    assert plain[-1][1] > 0.1


def test_fused_training_makes_no_logits(corpus, words, tmp_path, monkeypatch):
    forward, modes = Head.forward, []

    def noted(self, inputs):
        modes.append(self.training)
        return forward(self, inputs)

    monkeypatch.setattr(Head, "forward", noted)
    train_head(corpus, inputs_of(words), DB, HEAD, 0, tmp_path, quiet, fused_classifier=True)
    assert modes
    assert not any(modes)


def test_broken_checkpoint_begins_anew(corpus, words, tmp_path, capsys):
    (tmp_path / head.CHECKPOINT).write_bytes(b"half a check")
    expected = train_head(corpus, inputs_of(words), DB, HEAD, 0, tmp_path / "other", quiet)
    found = train_head(corpus, inputs_of(words), DB, HEAD, 0, tmp_path, quiet)
    assert_alike(found["test"], expected["test"], 0.02)
    assert "the run begins anew" in capsys.readouterr().err


def test_full_disk_costs_the_checkpoint_alone(corpus, words, tmp_path, monkeypatch, capsys):
    def no_space(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(head, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(torch, "save", no_space)
    result = train_head(corpus, inputs_of(words), DB, HEAD, 0, tmp_path, quiet)
    assert result["test"]["total"]["micro"] > 0
    assert "no checkpoint could be saved" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_svm_is_one_against_the_rest(corpus, tmp_path):
    features = tfidf_features(corpus, SVM_TFIDF, tmp_path / "cache")
    result = run_svm(corpus, features, tmp_path / "work", 1)
    svm = OneVsRestClassifier(LinearSVC(C=1.0, class_weight="balanced", random_state=0))
    svm.fit(features["train"], corpus.train.targets.to_dense().numpy())
    predicted, dense = svm.predict(features["test"]), corpus.test.targets.to_dense().numpy()
    for average in ("micro", "macro"):
        expected = f1_score(dense, predicted, average=average, zero_division=0)
        assert result["test"]["total"][average] == pytest.approx(expected, abs=1e-3)
    assert len(result["variants"]) == 3
    shifted = next(name for name in result["variants"] if name.startswith("SVM, shift"))
    assert result["variants"][shifted]["validation"]["total"]["micro"] >= result["validation"]["total"]["micro"], (
        "the shift is chosen on validation"
    )


def test_killed_svm_goes_on(corpus, tmp_path, monkeypatch):
    from encoders import svm

    monkeypatch.setattr(svm, "BLOCK", 16)
    features = tfidf_features(corpus, SVM_TFIDF, tmp_path / "cache")
    said, again = [], []

    def kill(text):
        said.append(text)
        if len(said) == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(progress, "say", kill)
    with pytest.raises(KeyboardInterrupt):
        run_svm(corpus, features, tmp_path / "work", 1)
    monkeypatch.setattr(progress, "say", again.append)
    found = run_svm(corpus, features, tmp_path / "work", 1)
    assert len(again) == 2 * 6 - 4
    assert found["test"] == run_svm(corpus, features, tmp_path / "other", 1)["test"]


def test_rows_that_were_not_appended_as_a_whole_are_cut_off(tmp_path, monkeypatch):
    def no_space(*_):
        raise OSError(28, "No space left on device")

    rows = AppendedRows(tmp_path / "rows", (5, 3), 2)
    rows.append(np.ones((2, 3), np.float32))
    monkeypatch.setattr("os.fsync", no_space)
    with pytest.raises(OSError, match=r"No space left on device: .*rows"):
        rows.append(np.ones((1, 3), np.float32))
    monkeypatch.undo()
    with open(rows.path, "ab") as file:
        file.write(b"half a row")
    again = AppendedRows(rows.path, (5, 3), 2)
    assert again.done == 2
    again.append(np.full((2, 3), 2, np.float32))
    again.append(np.full((1, 3), 3, np.float32))
    assert again.values().tolist() == [[1.0] * 3] * 2 + [[2.0] * 3] * 2 + [[3.0] * 3]
    assert AppendedRows(rows.path, (5, 3), 2).done == 5, "the last block may be shorter"


def test_svm_without_a_label_in_training(small_corpus, tmp_path):
    dense = small_corpus.train.targets.to_dense()
    dense[:, 0], dense[:, 1] = 0, 1
    train = Split(small_corpus.train.texts, SparseTargets.from_dense(dense))
    corpus = dataclasses.replace(small_corpus, train=train, fingerprint="other")
    features = tfidf_features(corpus, SVM_TFIDF, tmp_path / "cache")
    predicted = run_svm(corpus, features, tmp_path / "work", 1)["predictions"].to_dense()
    assert not predicted[:, 0].any()
    assert predicted[:, 1].all()


def test_training_as_long_as_validation_improves(corpus, words, tmp_path, monkeypatch):
    """It stops after ``patience`` epochs without a gain, also where it was broken off and goes on."""
    settings = dataclasses.replace(HEAD, epochs=60, patience=2, learning_rate=0.05)
    inputs = {part: Inputs(matrix) for part, matrix in words.items()}
    monkeypatch.setattr(head, "CHECKPOINT_SECONDS", 0.0)
    whole, again = [], []
    result = train_head(corpus, inputs, DB, settings, 0, tmp_path / "whole", whole.append)
    assert 3 <= len(whole) < 60 and epochs_since_best(whole) == 2
    assert epochs_since_best(whole[:-1]) < 2

    def broken_off(epoch):
        if epoch["number"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_head(corpus, inputs, DB, settings, 0, tmp_path / "parts", broken_off)
    other = train_head(corpus, inputs, DB, settings, 0, tmp_path / "parts", again.append)
    assert [epoch["micro_f1"] for epoch in again] == [epoch["micro_f1"] for epoch in whole]
    assert other["own"] == result["own"]
    assert rate_share(1, 100, 4, falls=False) == 0.5 and rate_share(99, 100, 4, falls=False) == 1.0


def test_a_gain_at_either_threshold_counts():
    """BCE predicts nothing above 0.40 for epochs, and learns all the same."""
    epochs = [{"micro_f1": 0.0, "own_micro_f1": number / 10} for number in range(5)]
    assert epochs_since_best(epochs) == 0
    assert epochs_since_best([*epochs, {"micro_f1": 0.0, "own_micro_f1": 0.1}]) == 1
    assert epochs_since_best([*epochs, {"micro_f1": 0.1, "own_micro_f1": 0.1}]) == 0
    assert epochs_since_best([{"micro_f1": 0.1}, {"micro_f1": 0.0}]) == 1, "epochs of an earlier version"


def test_thresholds_of_the_protocol_and_of_the_method(corpus):
    """A model whose probabilities are all below 0.40 has nothing in the paper's grid, and its best far below."""
    generator = torch.Generator().manual_seed(0)
    logits = {
        part: torch.randn(len(split), 90, generator=generator) - 6 + 3 * split.targets.to_dense(torch.float32)
        for part, split in corpus.splits.items()
    }
    found = score_validation(corpus, logits["validation"].split(10))
    protocol, own = found["protocol"], found["own"]
    assert protocol["at_edge"] and protocol["threshold"] == 0.4
    assert own["threshold"] < 0.2 and not own["at_edge"] and own["micro_f1"] > protocol["micro_f1"] + 0.2
    scored = score_own(corpus, logits["test"].split(7), own)
    dense, probability = corpus.test.targets.to_dense().numpy(), logits["test"].sigmoid().double()
    for name, thresholds in (("own", own["threshold"]), ("by_group", own["by_group"]), ("by_label", own["by_label"])):
        expected = f1_score(dense, (probability > thresholds).numpy(), average="micro", zero_division=0)
        assert scored[name]["test"]["total"]["micro"] == pytest.approx(expected, abs=1e-12)
    assert [row.label for row in scored["labels"]] == list(corpus.label_names)
    assert sum(row.support for row in scored["labels"]) == dense.sum()
    top = logits["test"].topk(3).indices.numpy()
    precision = np.take_along_axis(dense, top, 1).mean()
    assert scored["ranking"]["P@3"] == pytest.approx(precision)
    assert {"nDCG@5", "PSP@1", "mAP", "label mAP", "ECE"} < set(scored["ranking"])
    assert all(0 <= value <= 1 for value in scored["ranking"].values())
    other = score_validation(corpus, logits["validation"].split(10), (0.05, 0.1, 0.3))
    assert other["protocol"]["threshold"] in (0.05, 0.1, 0.3) and other["own"]["threshold"] == own["threshold"]
