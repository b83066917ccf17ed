"""What users of Trainer, accelerate and Lightning do with ordinary losses, done with ours."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from test_integrations_transformers import make_loss, make_trainer
from tiny_bert import NUM_LABELS, samples, tiny_classifier, tiny_tokenizer
from transformers import DataCollatorWithPadding

from fused_balanced_loss import (
    AdamWUpdate,
    BalancedLoss,
    DistributionBalancedLoss,
    LabelStatistics,
    LinearBalancedLoss,
    LossSpec,
    SparseTargets,
    SparseTargetsCollator,
)
from fused_balanced_loss.integrations.fused_head import fuse_classifier
from fused_balanced_loss.integrations.transformers import compute_metrics
from fused_balanced_loss.metrics import ThresholdedF1

ROOT = Path(__file__).parents[2]
SMOOTHS = hasattr(LossSpec(), "label_smoothing")


def multi_hot(number, dtype, seed=0):
    """Samples whose labels are lists of 0 and 1, as any tokenised dataset may have them."""
    return [
        sample | {"labels": [dtype(label in sample["labels"]) for label in range(NUM_LABELS)]}
        for sample in samples(number, seed)
    ]


def own_metrics(prediction, compute_result=True):
    """As a user writes it, for logits and multi-hot labels in tensors or arrays."""
    logits, labels = (np.asarray(part) for part in prediction)
    assert labels.shape == logits.shape
    return {"hits": int(((logits > 0) & (labels == 1)).sum()), "labels": int(labels.sum())}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [int, float])
def test_trainer_with_multi_hot_labels_of_an_ordinary_collator(tmp_path, dtype):
    """One step in two accumulated batches, and an evaluation, as with label ids and our collator."""
    results = []
    for name, make in (("ids", samples), ("multi-hot", lambda *a: multi_hot(a[0], dtype, *a[1:]))):
        trainer = make_trainer(
            tmp_path / name,
            train=make(5),
            evaluation=make(10, 1),
            metric=ThresholdedF1(NUM_LABELS),
            per_device_train_batch_size=3,
            gradient_accumulation_steps=2,
        )
        if name == "multi-hot":
            trainer.data_collator = DataCollatorWithPadding(tiny_tokenizer())
        trainer.train()
        results.append((trainer.model.state_dict(), trainer.evaluate()))
    (expected, scores), (weights, own) = results
    for key, value in expected.items():
        torch.testing.assert_close(weights[key], value, rtol=1e-4, atol=1e-6)
    assert own["eval_loss"] == pytest.approx(scores["eval_loss"], rel=1e-4)
    for key in ("eval_micro_f1", "eval_macro_f1", "eval_threshold"):
        assert own[key] == pytest.approx(scores[key])


@pytest.mark.slow
@pytest.mark.parametrize("batchwise", [True, False])
@pytest.mark.parametrize("sparse", [True, False])
def test_the_users_own_metrics(tmp_path, sparse, batchwise):
    trainer = make_trainer(tmp_path, evaluation=samples(10), sparse=sparse, batch_eval_metrics=batchwise)
    trainer.compute_metrics = compute_metrics(own_metrics)
    with torch.no_grad():
        trainer.model.classifier.bias.fill_(10.0)
    last = 2 if batchwise else 10
    expected = sum(len(sample["labels"]) for sample in samples(10)[-last:])
    scores = trainer.evaluate()
    assert scores["eval_labels"] == scores["eval_hits"] == expected


@pytest.mark.slow
@pytest.mark.parametrize("fused", [False, True])
def test_label_smoothing_of_trainer_is_used_or_refused(tmp_path, fused):
    def trained(factor, spec):
        loss = BalancedLoss(spec, make_loss().statistics)
        trainer = make_trainer(tmp_path / str(factor), loss=loss, train=samples(5), label_smoothing_factor=factor)
        if fused:
            head = fuse_classifier(trainer.model, spec, loss.statistics)
            trainer.compute_loss_func = head.compute_loss
        trainer.train()
        return trainer.model.state_dict()

    spec = LossSpec.preset("DB")
    if not SMOOTHS:
        with pytest.raises(ValueError, match=r"^label_smoothing_factor: expected 0, as LossSpec has no .*, got 0\.1"):
            trained(0.1, spec)
        return
    smoothed = spec.replace(label_smoothing=0.1)
    results = [trained(0.1, spec), trained(0.0, smoothed), trained(0.1, smoothed)]
    for key, value in results[0].items():
        torch.testing.assert_close(results[1][key], value, rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(results[2][key], value, rtol=1e-5, atol=1e-7)
    assert any(not torch.equal(value, trained(0.0, spec)[key]) for key, value in results[0].items())
    with pytest.raises(ValueError, match=r"^label_smoothing_factor: expected 0 or 0\.2, .*, got 0\.1"):
        trained(0.1, spec.replace(label_smoothing=0.2))


@pytest.mark.slow
def test_label_smoothing_of_trainer_is_refused_with_another_loss(tmp_path):
    bce = nn.BCEWithLogitsLoss()
    trainer = make_trainer(
        tmp_path,
        loss=lambda logits, targets: bce(logits, targets.float()),
        train=samples(5),
        sparse=False,
        label_smoothing_factor=0.1,
    )
    with pytest.raises(ValueError, match=r"^label_smoothing_factor: expected 0 with a loss that is no BalancedLoss"):
        trainer.train()


def test_collator_with_padded_label_ids():
    collate = SparseTargetsCollator(6, pad_to=3)
    batch = collate([{"x": 1.0, "labels": [4, 1]}, {"x": 2.0, "labels": []}, {"x": 3.0, "labels": [5]}])
    assert batch["labels"].dtype == torch.int64
    assert batch["labels"].tolist() == [[1, 4, -1], [-1, -1, -1], [5, -1, -1]]
    assert SparseTargets.from_padded(batch["labels"], 6).to_lists() == [[1, 4], [], [5]]
    assert collate([(1.0, [0])])[1].tolist() == [[0, -1, -1]]
    with pytest.raises(ValueError, match=r"^pad_to: expected at least 4, the label ids of sample no\. 1, got 3"):
        collate([(1.0, [0]), (1.0, [0, 1, 2, 3])])
    for wrong in (0, -1):
        with pytest.raises(ValueError, match=r"^pad_to: expected an integer >= 1"):
            SparseTargetsCollator(6, pad_to=wrong)


@pytest.mark.distributed
@pytest.mark.parametrize("how", ["dispatch", "shard"])
@pytest.mark.parametrize("processes", [1, 2])
def test_accelerate_hands_out_and_gathers_padded_label_ids(how, processes):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"] if processes == 2 else []
    command = [sys.executable, *launch, str(Path(__file__).with_name("accelerate_ranks.py")), how]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


class Module(nn.Module):
    """As a LightningModule is loaded: made anew, without what training alone has, before a strict load_state_dict."""

    def __init__(self, statistics=None, fused=False):
        super().__init__()
        self.net = nn.Linear(3, 4)
        spec = LossSpec.preset("DB")
        self.loss = (
            LinearBalancedLoss(spec, statistics, 3, num_labels=4) if fused else DistributionBalancedLoss(statistics)
        )


STATISTICS = LabelStatistics.from_counts([5, 2, 1, 3], 10, mu=0.4)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("assign", [False, True])
def test_a_checkpoint_loads_without_statistics_at_hand(fused, assign):
    saved, loaded = Module(STATISTICS, fused), Module(fused=fused)
    values = torch.randn(2, 3 if fused else 4)
    targets = torch.tensor([[1, 0, 0, 1], [0, 1, 0, 0]])
    with pytest.raises(ValueError, match=r"^statistics: expected LabelStatistics, .*load_state_dict"):
        loaded.loss(values, targets)
    loaded.load_state_dict(saved.state_dict(), assign=assign)
    assert loaded.loss.statistics == STATISTICS
    torch.testing.assert_close(loaded.loss(values, targets), saved.loss(values, targets))
    # It saves what it has loaded, and goes on as one that was made with them.
    again = Module(STATISTICS, fused)
    again.load_state_dict(loaded.state_dict())
    loaded.loss.statistics = other = LabelStatistics.from_counts([1, 2, 3, 4], 10, mu=0.3)
    assert loaded.loss.statistics == other


def test_statistics_that_come_by_assignment():
    module = Module()
    module.loss.statistics = STATISTICS
    assert set(module.state_dict()) == set(Module(STATISTICS).state_dict())


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({"loss.counts": torch.tensor([11, 1, 1, 1])}, "expected integers in"),
        ({"loss.num_samples": torch.tensor(1)}, "num_samples: expected at least 2"),
        ({"loss.counts": torch.ones(2, 2, dtype=torch.int64)}, "expected one dimension"),
    ],
)
def test_broken_counts_leave_a_module_without_them(broken, message):
    module, state = Module(), Module(STATISTICS).state_dict()
    with pytest.raises(RuntimeError, match=message):
        module.load_state_dict(state | broken)
    assert module.loss.counts is None and module.loss.statistics is None
    module.load_state_dict(state)
    assert module.loss.statistics == STATISTICS
    with pytest.raises(RuntimeError, match="Missing key"):
        Module(STATISTICS).load_state_dict(Module().state_dict())


@pytest.mark.parametrize("assign", [False, True])
def test_a_head_with_update_loads_one_without_statistics_and_back(assign):
    """All in one: a head that was trained in place, strictly into a bare one for prediction, and back."""
    spec, features = LossSpec.preset("DB"), torch.randn(4, 3)
    trained = nn.ModuleDict({"head": LinearBalancedLoss(spec, STATISTICS, 3, update=AdamWUpdate(0.1))})
    trained["head"](features, torch.eye(4)).backward()
    bare = nn.ModuleDict({"head": LinearBalancedLoss(spec, None, 3, num_labels=4)})
    bare.load_state_dict(trained.state_dict(), assign=assign)
    torch.testing.assert_close(bare["head"].logits(features), trained["head"].logits(features))
    trained.load_state_dict(bare.state_dict())
    assert trained["head"].update.steps == 1


def test_an_ordinary_model_is_not_taken_for_a_trainer():
    """The factor is looked for among the callers: a loop of the user's own has none."""

    class Loop:
        compute_loss_func = None
        args = None

        def training_step(self):
            head = fuse_classifier(tiny_classifier(), LossSpec.preset("FL"), None)
            return head.compute_loss(torch.randn(2, head.in_features), torch.zeros(2, NUM_LABELS))

    assert Loop().training_step().isfinite()
