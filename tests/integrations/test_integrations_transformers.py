"""The losses in transformers' Trainer: accumulated and distributed steps, evaluation, what becomes of targets."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from accelerate.utils import concatenate, send_to_device, slice_tensors
from tiny_bert import NUM_LABELS, documents, samples, tiny_classifier, tiny_tokenizer
from transformers import EvalPrediction, Trainer, TrainerCallback, TrainingArguments

from fused_balanced_loss import BalancedLoss, LabelStatistics, LossSpec, SparseTargets
from fused_balanced_loss.integrations.fused_head import fuse_classifier
from fused_balanced_loss.integrations.transformers import (
    DataCollatorForMultiLabel,
    PaddedLabelIds,
    compute_loss_func,
    compute_metrics,
)
from fused_balanced_loss.metrics import ThresholdedF1

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def make_loss(name="DB"):
    statistics = LabelStatistics.from_targets(documents(50)[1], num_labels=NUM_LABELS)
    return BalancedLoss(LossSpec.preset(name, corpus="reuters"), statistics)


def make_trainer(
    folder, *, loss=None, train=(), evaluation=None, sparse=True, metric=None, callbacks=None, **arguments
):
    arguments = {
        "per_device_train_batch_size": 5,
        "per_device_eval_batch_size": 4,
        "num_train_epochs": 1,
        "optim": "sgd",
        "learning_rate": 1.0,
        "max_grad_norm": 0.0,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "batch_eval_metrics": True,
    } | arguments
    return Trainer(
        tiny_classifier(),
        TrainingArguments(output_dir=str(folder), **arguments),
        train_dataset=list(train),
        eval_dataset=evaluation,
        data_collator=DataCollatorForMultiLabel(tiny_tokenizer(), NUM_LABELS, sparse=sparse),
        compute_loss_func=compute_loss_func(loss or make_loss()),
        compute_metrics=None if metric is None else compute_metrics(metric),
        callbacks=callbacks,
    )


def step(folder, **options):
    """The classifier's weights after an epoch of one step."""
    trainer = make_trainer(folder, train=samples(5), **options)
    trainer.train()
    assert trainer.state.global_step == 1
    return trainer.model.state_dict(), trainer.state.log_history


def test_the_package_does_not_import_transformers():
    code = "import fused_balanced_loss, sys; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_collator_pads_and_keeps_the_label_ids():
    batch = DataCollatorForMultiLabel(tiny_tokenizer(), NUM_LABELS)(
        [{"input_ids": [2, 7, 3], "labels": [4, 1]}, {"input_ids": [2, 7, 8, 9, 3], "labels": []}]
    )
    assert batch["input_ids"].tolist() == [[2, 7, 3, 0, 0], [2, 7, 8, 9, 3]]
    assert batch["attention_mask"].sum(1).tolist() == [3, 5]
    assert batch["labels"]["label_ids"].tolist() == [[1, 4], [-100, -100]]
    assert batch["labels"].to_targets(NUM_LABELS) == SparseTargets.from_lists([[1, 4], []], NUM_LABELS)
    dense = DataCollatorForMultiLabel(tiny_tokenizer(), 3, sparse=False)([{"input_ids": [2, 3], "labels": [1]}])
    assert dense["labels"].dtype == torch.uint8 and dense["labels"].tolist() == [[0, 1, 0]]
    empty = DataCollatorForMultiLabel(tiny_tokenizer(), 3)([{"input_ids": [2, 3], "labels": []}])
    assert empty["labels"]["label_ids"].tolist() == [[-100]]
    wide = DataCollatorForMultiLabel(tiny_tokenizer(), 3, pad_to_multiple_of=8)([{"input_ids": [2, 3], "labels": []}])
    assert wide["input_ids"].shape == (1, 8)


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        ({"input_ids": [2, 3], "labels": [NUM_LABELS]}, r"label ids in \[0, 7\), got 7 in row 0"),
        ({"input_ids": [2, 3], "labels": [1, 1]}, "got 1 twice in row 0"),
        ({"input_ids": [2, 3], "labels": 1}, "expected integer label ids, got int in row 0"),
        ({"input_ids": [2, 3]}, "mappings with key 'labels'"),
    ],
)
def test_collator_refuses_wrong_labels(sample, message):
    with pytest.raises((TypeError, ValueError), match=message):
        DataCollatorForMultiLabel(tiny_tokenizer(), NUM_LABELS)([sample])


def test_label_ids_survive_what_trainer_and_accelerate_do_to_a_batch():
    targets = SparseTargets.from_lists([[0, 3, 5], [], [6]], NUM_LABELS)
    labels = PaddedLabelIds.from_targets(targets)
    trainer_like = PaddedLabelIds({name: part.clone() for name, part in labels.items()})
    for moved in (
        send_to_device({"labels": labels}, "cpu")["labels"],
        trainer_like,
        pickle.loads(pickle.dumps(labels)),
    ):
        assert isinstance(moved, PaddedLabelIds) and moved.to_targets(NUM_LABELS) == targets
    assert slice_tensors(labels, slice(0, 2)).to_targets(NUM_LABELS) == targets[:2]
    assert concatenate([labels, labels]).to_targets(NUM_LABELS) == targets[[0, 1, 2, 0, 1, 2]]
    assert int(labels.ne(-100).sum()) == 3 * NUM_LABELS == int(targets.to_dense().ne(-100).sum())
    assert send_to_device({"labels": targets}, "cpu")["labels"] == targets
    assert PaddedLabelIds.from_targets(targets[:0]).to_targets(NUM_LABELS) == targets[:0]


@pytest.mark.parametrize("name", ["BCE", "DB", "CB-NTR"])
@pytest.mark.parametrize("sparse", [True, False])
def test_accumulated_batches_are_one_large_batch(tmp_path, name, sparse):
    """2 + 2 + 1 samples of a step against 5: the short last batch does not count more."""
    large, log = step(tmp_path / "a", loss=make_loss(name), sparse=sparse)
    small, small_log = step(
        tmp_path / "b",
        loss=make_loss(name),
        sparse=sparse,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=3,
    )
    start = tiny_classifier().state_dict()
    assert any(not torch.equal(large[key], start[key]) for key in start)
    for key, value in large.items():
        torch.testing.assert_close(small[key], value, rtol=1e-4, atol=1e-7)
    assert small_log[-1]["train_loss"] == pytest.approx(log[-1]["train_loss"], rel=1e-5)


def test_the_step_is_that_of_the_loss_alone(tmp_path):
    batch = DataCollatorForMultiLabel(tiny_tokenizer(), NUM_LABELS)(samples(5))
    model, loss = tiny_classifier(), make_loss()
    labels = batch.pop("labels")
    loss(model(**batch).logits, labels.to_targets(NUM_LABELS)).backward()
    expected = {name: value.detach() - value.grad for name, value in model.named_parameters() if value.grad is not None}
    trained, _ = step(tmp_path)
    for name, value in expected.items():
        torch.testing.assert_close(trained[name], value, rtol=1e-5, atol=1e-7)


def test_any_mean_over_the_elements_will_do(tmp_path):
    ours, _ = step(tmp_path / "a", loss=make_loss("BCE"), sparse=False)
    bce = nn.BCEWithLogitsLoss()
    theirs, _ = step(tmp_path / "b", loss=lambda logits, targets: bce(logits, targets.float()), sparse=False)
    for key, value in ours.items():
        torch.testing.assert_close(theirs[key], value, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("average", [True, False])
def test_data_parallel_counts(average):
    """Trainer hands over a number a device: all items, and then multiplies the loss by the devices, or its share."""
    loss, (devices, rows) = make_loss(), (2, 6)
    logits = torch.randn(rows, NUM_LABELS)
    targets = SparseTargets.from_lists(documents(rows)[1], NUM_LABELS)
    items = torch.tensor(rows * NUM_LABELS if average else rows * NUM_LABELS // devices)
    value = compute_loss_func(loss)((logits,), targets, items.unsqueeze(0).expand(devices, -1))
    assert value.dim() == 0
    assert float(value * (devices if average else 1)) == pytest.approx(float(loss(logits, targets)), rel=1e-6)


@pytest.mark.parametrize("outputs", [lambda z: {"logits": z}, lambda z: (z, None), lambda z: z])
def test_outputs_in_any_form(outputs):
    logits, targets = torch.randn(3, NUM_LABELS), torch.zeros(3, NUM_LABELS, dtype=torch.uint8)
    loss = make_loss()
    assert compute_loss_func(loss)(outputs(logits), targets) == loss(logits, targets)


def test_wrong_use_is_refused(tmp_path):
    loss, logits = make_loss(), torch.randn(1, NUM_LABELS)
    with pytest.raises(ValueError, match="loss: expected reduction 'mean', got 'sum'"):
        compute_loss_func(BalancedLoss(loss.spec, loss.statistics, reduction="sum"))
    compute = compute_loss_func(loss)
    with pytest.raises(TypeError, match="got SparseTargets"):
        compute({"logits": logits}, SparseTargets.from_lists([[0]], NUM_LABELS))
    with pytest.raises(TypeError, match="got None"):
        compute({"logits": logits}, None)
    with pytest.raises(TypeError, match=r"model output with logits, got \['loss'\]"):
        compute({"loss": logits}, None)


@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize("batchwise", [True, False])
def test_evaluation_is_that_of_the_whole_at_once(tmp_path, sparse, batchwise):
    """10 samples in batches of 4, of different widths: loss, F1 and threshold."""
    data, loss = samples(10, seed=1), make_loss()
    groups = {"head": [True, True, *[False] * (NUM_LABELS - 2)]}
    metric = ThresholdedF1(NUM_LABELS, label_groups=groups)
    trainer = make_trainer(
        tmp_path, loss=loss, evaluation=data, sparse=sparse, metric=metric, batch_eval_metrics=batchwise
    )
    with torch.no_grad():
        # Of both signs, so that there are predictions.
        trainer.model.classifier.bias.copy_(torch.linspace(-1, 1, NUM_LABELS))
        batch = DataCollatorForMultiLabel(tiny_tokenizer(), NUM_LABELS)(data)
        targets = batch.pop("labels").to_targets(NUM_LABELS)
        logits = trainer.model.eval()(**batch).logits
    expected = ThresholdedF1(NUM_LABELS, label_groups=groups)
    expected.update(logits, targets)
    threshold, micro, _ = expected.best()
    scores = expected.scores(threshold)
    for _ in range(2):
        result = trainer.evaluate()
        assert result["eval_micro_f1"] == micro > 0
        assert result["eval_threshold"] == threshold
        assert result["eval_macro_f1"] == scores["total"]["macro"]
        assert result["eval_head_micro_f1"] == scores["head"]["micro"]
        assert result["eval_loss"] == pytest.approx(float(loss(logits, targets)), rel=1e-5)
    if not batchwise:
        predicted = trainer.predict(data)
        np.testing.assert_allclose(predicted.predictions, logits.numpy(), rtol=1e-4, atol=1e-6)


def test_evaluation_keeps_no_logits(tmp_path):
    """With batch_eval_metrics nothing of a batch is kept, whatever the number of batches."""
    held = []

    class Watch(TrainerCallback):
        def on_prediction_step(self, args, state, control, **_):
            import gc

            held.append(
                sum(t.shape[-1:] == (NUM_LABELS,) and t.dim() == 2 for t in gc.get_objects() if type(t) is torch.Tensor)
            )

    trainer = make_trainer(tmp_path, evaluation=samples(40), metric=ThresholdedF1(NUM_LABELS), callbacks=[Watch()])
    trainer.evaluate()
    assert len(held) == 10 and held[-1] <= held[1]


@pytest.mark.distributed
def test_two_processes_are_one(tmp_path):
    """Under torchrun, 2 processes of 2 samples, with accumulation, end where one process with all samples ends."""
    pytest.importorskip("torch.distributed")
    if not torch.distributed.is_gloo_available():
        pytest.skip("gloo is not in this build of torch")
    script = Path(__file__).with_name("distributed_step.py")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests"))), "OMP_NUM_THREADS": "1"}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for command, name in ((launch, "two"), ([sys.executable], "one")):
        done = subprocess.run(
            [*command, str(script), str(tmp_path / name)], env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    one, two = (torch.load(tmp_path / name / "result.pt", weights_only=True) for name in ("one", "two"))
    for key, value in one["weights"].items():
        torch.testing.assert_close(two["weights"][key], value, rtol=1e-4, atol=1e-7)
    for key in ("eval_micro_f1", "eval_macro_f1", "eval_threshold"):
        assert one["metrics"][key] == two["metrics"][key]
    assert one["metrics"]["eval_micro_f1"] > 0


OTHER = 3 * NUM_LABELS


def by_hand(ids, num_labels=NUM_LABELS):
    ids = torch.tensor(ids)
    return PaddedLabelIds(label_ids=ids, num_labels=torch.full((len(ids),), num_labels))


def collated(number=3, num_labels=OTHER):
    return PaddedLabelIds.from_targets(SparseTargets.from_lists([[0, 2]] * number, num_labels))


FORMS = {
    "collated": collated,
    "moved": lambda: collated().to("cpu"),
    "rebuilt by Trainer": lambda: PaddedLabelIds(dict(collated())),
    "from a worker": lambda: pickle.loads(pickle.dumps(collated())),
    "gathered": lambda: concatenate([collated(), collated()]),
    "as arrays": lambda: PaddedLabelIds({name: part.numpy() for name, part in collated().items()}),
    "by hand": lambda: by_hand([[0, 2], [1, -100]], OTHER),
}


@pytest.mark.parametrize("form", FORMS)
def test_labels_of_another_number_than_the_models_are_refused(form):
    """In the loss, in the fused head and in the metrics; before any kernel reads an id."""
    labels, message = FORMS[form](), f"labels: expected label ids of {NUM_LABELS} labels.*got ids of {OTHER} labels"
    logits = torch.randn(len(labels["label_ids"]), NUM_LABELS, requires_grad=True)
    with pytest.raises(ValueError, match=message):
        compute_loss_func(make_loss())({"logits": logits}, labels, torch.tensor(7))
    head = fuse_classifier(tiny_classifier(), LossSpec.preset("FL"), None)
    with pytest.raises(ValueError, match=message):
        head.compute_loss({"logits": torch.randn(len(logits), head.in_features)}, labels)
    with pytest.raises(ValueError, match=message):
        compute_metrics(ThresholdedF1(NUM_LABELS))(EvalPrediction(logits.detach(), labels))


def test_a_trainer_with_another_number_of_labels_stops_at_the_first_step(tmp_path):
    trainer = make_trainer(tmp_path, train=samples(5))
    trainer.data_collator = DataCollatorForMultiLabel(tiny_tokenizer(), OTHER)
    with pytest.raises(ValueError, match=f"got ids of {OTHER} labels"):
        trainer.train()


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([[0, 10**9]], rf"label ids in \[0, {NUM_LABELS}\), got 1000000000 in row 0"),
        ([[0, 1], [-5, 1]], "got -5 in row 1"),
        ([[2, 2]], "got 2 twice in row 0"),
    ],
)
def test_label_ids_made_by_hand_are_looked_at(ids, message):
    with pytest.raises(ValueError, match=message):
        by_hand(ids).to_targets(NUM_LABELS)
    changed = collated(1, NUM_LABELS)
    changed["label_ids"] = torch.tensor(ids)
    with pytest.raises(ValueError, match=message):
        changed.to_targets(NUM_LABELS)


def test_collated_label_ids_become_targets_without_waiting_for_the_device():
    """As Trainer brings them: from a worker, pinned, moved, and in a new mapping of the same tensors.

    A fake tensor has no values, so that whatever would have to read one raises.
    """
    targets = SparseTargets.from_lists([[0, 3, 5], [], [6]], NUM_LABELS)
    labels = copy.copy(pickle.loads(pickle.dumps(PaddedLabelIds.from_targets(targets))))
    with FakeTensorMode() as mode:
        labels.update({name: mode.from_tensor(part) for name, part in labels.items()})
        moved = PaddedLabelIds({name: part.to("cpu") for name, part in labels.to("cpu").items()})
        made = moved.to_targets(NUM_LABELS)
        assert (made.crow.shape, made.col.shape) == ((4,), (4,))
        with pytest.raises(ValueError, match=f"got ids of {NUM_LABELS} labels"):
            moved.to_targets(OTHER)
        with pytest.raises(DataDependentOutputException):
            PaddedLabelIds({name: part.clone() for name, part in moved.items()}).to_targets(NUM_LABELS)
