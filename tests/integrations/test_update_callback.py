"""A head with an update in place under Trainer: resumed, scheduled, and what is refused."""

from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from safetensors.torch import load_file
from tiny_bert import NUM_LABELS, samples, tiny_classifier, tiny_tokenizer
from transformers import BertForSequenceClassification, Trainer, TrainingArguments

from fused_balanced_loss import AdamWUpdate, BalancedLoss, LabelStatistics, LossSpec, SGDUpdate, SparseTargets
from fused_balanced_loss.integrations.fused_head import fuse_classifier
from fused_balanced_loss.integrations.transformers import DataCollatorForMultiLabel, compute_loss_func
from fused_balanced_loss.integrations.update_callback import ClassifierUpdateCallback

pytestmark = pytest.mark.slow

DB = LossSpec.preset("DB", corpus="reuters")
STATISTICS = LabelStatistics.from_targets([sample["labels"] for sample in samples(40)], num_labels=NUM_LABELS)
STEPS = 11


def trainer_of(model, loss, folder, callbacks=(), **options):
    arguments = {
        "output_dir": str(folder),
        "max_steps": STEPS,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "max_grad_norm": 0.0,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "save_strategy": "no",
        "seed": 3,
    } | options
    return Trainer(
        model,
        TrainingArguments(**arguments),
        train_dataset=samples(40),
        data_collator=DataCollatorForMultiLabel(tiny_tokenizer(), NUM_LABELS),
        compute_loss_func=loss,
        callbacks=list(callbacks),
    )


def updated(folder, update=None, callback=None, **options):
    """A Trainer of a model whose classifier has an update."""
    model = tiny_classifier(dropout=0.1)
    head = fuse_classifier(model, DB, STATISTICS, update=update or AdamWUpdate(0.02, seed=5))
    return trainer_of(model, head.compute_loss, folder, [callback or ClassifierUpdateCallback()], **options)


def plain(folder, dropout=0.1, **options):
    return trainer_of(tiny_classifier(dropout), compute_loss_func(BalancedLoss(DB, STATISTICS)), folder, **options)


def assert_weights(one, other, **tolerance):
    tolerance = {"rtol": 1e-4, "atol": 1e-5} | tolerance
    for name, expected in other.state_dict().items():
        torch.testing.assert_close(one.state_dict()[name], expected, **tolerance, msg=name)


@pytest.mark.parametrize(
    "make",
    [
        lambda: AdamWUpdate(0.02, seed=5),
        lambda: AdamWUpdate(0.02, state="row"),
        lambda: SGDUpdate(2.0, momentum=0.9, state="bfloat16"),
    ],
    ids=["adamw", "adamw by row", "momentum"],
)
def test_a_resumed_run_ends_where_one_uninterrupted_does(tmp_path, make):
    whole = updated(tmp_path, make(), save_strategy="steps", save_steps=5)
    whole.train()
    resumed = updated(tmp_path, make())
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    assert_weights(resumed.model, whole.model)
    update, expected = resumed.model.classifier.update, whole.model.classifier.update
    assert update.steps == expected.steps == STEPS and update.lr_factor == 1
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(update.state_dict()[name], value, rtol=1e-2, atol=1e-4, msg=name)


def test_a_checkpoint_loads_into_the_plain_model_and_the_plain_trainer(tmp_path):
    trainer = updated(tmp_path, save_strategy="steps", save_steps=STEPS)
    trainer.train()
    checkpoint = tmp_path / f"checkpoint-{STEPS}"
    model = tiny_classifier()
    model.load_state_dict(load_file(checkpoint / "model.safetensors"), strict=True)
    assert_weights(model, trainer.model, rtol=0, atol=0)
    _, info = BertForSequenceClassification.from_pretrained(checkpoint, output_loading_info=True)
    assert not info["unexpected_keys"] and not info["missing_keys"] and not info["mismatched_keys"]
    other = plain(tmp_path, max_steps=STEPS + 2)
    other.train(resume_from_checkpoint=str(checkpoint))
    assert other.state.global_step == STEPS + 2


def test_a_run_that_would_lose_the_state_does_not_resume(tmp_path):
    updated(tmp_path / "weights", save_strategy="steps", save_steps=5, save_only_model=True).train()
    plain(tmp_path / "plain", save_strategy="steps", save_steps=5).train()
    for name in ("weights", "plain"):
        resumed = updated(tmp_path / name)
        with pytest.raises(ValueError, match=r"update: expected its state in the checkpoint .* at step 5, got none"):
            resumed.train(resume_from_checkpoint=str(tmp_path / name / "checkpoint-5"))
    updated(tmp_path / "sgd", SGDUpdate(1.0), save_strategy="steps", save_steps=5).train()
    resumed = updated(tmp_path / "sgd")
    with pytest.raises(RuntimeError, match=r"Missing key.*exp_avg"):
        resumed.train(resume_from_checkpoint=str(tmp_path / "sgd" / "checkpoint-5"))


def test_the_schedule_and_adamw_are_those_of_the_trainer(tmp_path):
    """With the same rate, betas and decay the whole model trains as by the Trainer's optimizer alone."""
    options = {"warmup_steps": 3, "lr_scheduler_type": "linear"}
    expected = plain(tmp_path / "plain", dropout=0.0, **options)
    expected.train()
    model = tiny_classifier()
    head = fuse_classifier(model, DB, STATISTICS, update=AdamWUpdate(1e-2, weight_decay=0.0))
    trainer_of(model, head.compute_loss, tmp_path, [ClassifierUpdateCallback()], **options).train()
    assert_weights(model, expected.model, rtol=1e-3, atol=1e-5)
    assert head.weight.grad is None and head.update.lr == 1e-2


def test_the_schedule_may_be_ignored(tmp_path):
    """The first step of a warm-up has a learning rate of 0."""
    moved = {}
    for follow in (True, False):
        callback = ClassifierUpdateCallback(follow_schedule=follow)
        trainer = updated(tmp_path, SGDUpdate(1.0), callback, max_steps=1, warmup_steps=10)
        before = trainer.model.classifier.weight.detach().clone()
        trainer.train()
        moved[follow] = not torch.equal(trainer.model.classifier.weight, before)
    assert moved == {True: False, False: True}


def test_without_the_callback_nothing_is_trained(tmp_path):
    model = tiny_classifier()
    head = fuse_classifier(model, DB, STATISTICS, update=SGDUpdate(1.0))
    before = head.weight.detach().clone()
    trainer = trainer_of(model, head.compute_loss, tmp_path)
    with pytest.raises(RuntimeError, match=r"expected Trainer\(callbacks=\[ClassifierUpdateCallback\(\)\]\)"):
        trainer.train()
    assert torch.equal(head.weight, before) and head.update.steps == 0


def test_accumulation_is_refused(tmp_path):
    trainer = updated(tmp_path, gradient_accumulation_steps=2)
    with pytest.raises(ValueError, match=r"gradient_accumulation_steps: expected 1 .*got 2; raise per_device_train_b"):
        trainer.train()
    assert trainer.model.classifier.update.steps == 0


def test_a_second_call_in_a_step_is_refused(tmp_path):
    trainer = updated(tmp_path)
    loss = trainer.compute_loss_func
    trainer.compute_loss_func = lambda *given, **named: loss(*given, **named) + loss(*given, **named)
    with pytest.raises(RuntimeError, match="one call for each of its steps"):
        trainer.train()
    assert trainer.model.classifier.update.steps == 0


@pytest.mark.parametrize("other", [{"world_size": 2}, {"n_gpu": 2}, {"deepspeed": "zero"}, {"fsdp": "full_shard"}])
def test_replicas_are_refused(other):
    arguments = SimpleNamespace(**{"gradient_accumulation_steps": 1, "world_size": 1, "n_gpu": 0} | other)
    with pytest.raises(ValueError, match="update: expected one process with one device"):
        ClassifierUpdateCallback().on_train_begin(arguments, None, None)


def test_several_processes_of_an_own_loop_are_refused(monkeypatch):
    model = tiny_classifier().train()
    head = fuse_classifier(model, DB, STATISTICS, update=SGDUpdate(1.0))
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    outputs = model(input_ids=torch.tensor([[2, 7, 9, 3]]))
    with pytest.raises(RuntimeError, match=r"update: expected one process.*got 2"):
        head.compute_loss(outputs, torch.zeros(1, NUM_LABELS))


def test_an_own_loop_needs_no_callback():
    model = tiny_classifier().train()
    head = fuse_classifier(model, DB, STATISTICS, update=SGDUpdate(1.0))
    outputs = model(input_ids=torch.tensor([[2, 7, 9, 3]]))
    with pytest.raises(TypeError, match="labels: expected a tensor or PaddedLabelIds, got SparseTargets"):
        head.compute_loss(outputs, SparseTargets.from_lists([[1]], NUM_LABELS))
    head.compute_loss(outputs, torch.zeros(1, NUM_LABELS)).backward()
    assert head.update.steps == 1


def test_a_model_without_update_and_an_optimizer_without_hooks_are_refused(tmp_path):
    trainer = plain(tmp_path)
    trainer.add_callback(ClassifierUpdateCallback())
    with pytest.raises(ValueError, match="model: expected one whose classifier fuse_classifier"):
        trainer.train()

    class Bare(torch.optim.SGD):
        def state_dict(self):
            return {"state": {}, "param_groups": [{"lr": 1.0, "params": []}]}

    trainer = updated(tmp_path)
    callback = ClassifierUpdateCallback()
    bare = Bare(trainer.model.parameters(), lr=1.0)
    with pytest.raises(TypeError, match=r"optimizer: expected one whose state_dict runs hooks.*got Bare"):
        callback.on_train_begin(trainer.args, trainer.state, trainer.control, model=trainer.model, optimizer=bare)


def test_a_schedule_from_zero_is_refused(tmp_path):
    trainer = updated(tmp_path, learning_rate=0.0)
    with pytest.raises(ValueError, match="learning_rate: expected one above 0 for update to follow"):
        trainer.train()


def test_the_scale_of_fp16_is_taken_out(tmp_path):
    trainer = updated(tmp_path, SGDUpdate(1.0))
    model, callback = trainer.model, ClassifierUpdateCallback()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    given = (trainer.args, trainer.state, trainer.control)
    callback.on_train_begin(*given, model=model, optimizer=optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    wrapped = SimpleNamespace(scaler=scaler, param_groups=optimizer.param_groups)
    callback.on_step_begin(*given, optimizer=wrapped)
    assert model.classifier.update.loss_scale == 256.0
    callback.on_train_end(*given)
    assert model.classifier.update.loss_scale == 1.0


def test_one_trainer_trains_twice_and_models_made_anew(tmp_path):
    trainer = updated(tmp_path, max_steps=2)
    trainer.train()
    trainer.train()
    assert trainer.model.classifier.update.steps == 4
    heads = []

    def new_model():
        model = tiny_classifier()
        heads.append(fuse_classifier(model, DB, STATISTICS, update=AdamWUpdate(0.02)))
        return model

    trainer = Trainer(
        model_init=new_model,
        args=trainer.args,
        train_dataset=samples(40),
        data_collator=DataCollatorForMultiLabel(tiny_tokenizer(), NUM_LABELS),
        compute_loss_func=lambda *given, **named: heads[-1].compute_loss(*given, **named),
        callbacks=[ClassifierUpdateCallback()],
    )
    trainer.train()
    trainer.train()
    assert [int(head.update.steps) for head in heads[-2:]] == [2, 2]


def test_the_update_moves_with_the_model():
    model = tiny_classifier()
    head = fuse_classifier(model, DB, STATISTICS, update=AdamWUpdate(0.02))
    model.to("meta")
    assert {buffer.device.type for buffer in head.update.buffers()} == {"meta"}
    assert set(model.state_dict()) == set(tiny_classifier().state_dict())
