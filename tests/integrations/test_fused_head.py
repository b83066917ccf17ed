"""transformers' sequence classifiers with classifier and loss in one, beside the plain path."""

import pytest
import torch

pytest.importorskip("transformers")

from agreement import assert_same_but_for_rounding
from tiny_bert import NUM_LABELS, samples, tiny_classifier, tiny_config, tiny_tokenizer
from transformers import BertForSequenceClassification, RobertaForSequenceClassification, Trainer, TrainingArguments

from fused_balanced_loss import BalancedLoss, LabelStatistics, LossSpec
from fused_balanced_loss.integrations.fused_head import FusedClassifier, fuse_classifier
from fused_balanced_loss.integrations.transformers import DataCollatorForMultiLabel, compute_loss_func

DB = LossSpec.preset("DB", corpus="reuters")


@pytest.fixture
def statistics():
    counts = torch.zeros(NUM_LABELS, dtype=torch.int64)
    for sample in samples(40):
        counts[sample["labels"]] += 1
    return LabelStatistics.from_counts(counts, 40, degenerate="ignore")


def train(model, loss, folder, steps=6, **options):
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        learning_rate=1e-2,
        report_to=[],
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
        logging_steps=1,
        save_strategy="no",
        seed=3,
        **options,
    )
    trainer = Trainer(
        model,
        arguments,
        train_dataset=samples(40),
        eval_dataset=samples(12, seed=1),
        data_collator=DataCollatorForMultiLabel(tiny_tokenizer(), NUM_LABELS),
        compute_loss_func=loss,
    )
    trainer.train()
    return trainer


def test_trains_as_the_plain_path_does_and_loads_into_the_plain_model(tmp_path, statistics, device):
    plain = tiny_classifier()
    one = train(plain, compute_loss_func(BalancedLoss(DB, statistics).to(device)), tmp_path / "plain")
    model = tiny_classifier()
    head = fuse_classifier(model, DB, statistics, chunk_size=4)
    other = train(model, head.compute_loss, tmp_path / "fused")
    for name, expected in plain.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], expected, rtol=1e-3, atol=1e-5)
    assert one.evaluate()["eval_loss"] == pytest.approx(other.evaluate()["eval_loss"], rel=1e-4)
    model.save_pretrained(tmp_path / "saved")
    loaded = BertForSequenceClassification.from_pretrained(tmp_path / "saved").to(device).eval()
    batch = {"input_ids": torch.tensor([[2, 7, 9, 3]], device=device)}
    for name, saved in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], saved), name
    # The loaded weights lie at other addresses, for which a matrix product may take another path.
    assert_same_but_for_rounding(loaded(**batch).logits, model.eval()(**batch).logits)


def test_no_logits_in_training(statistics):
    model = tiny_classifier()
    head = fuse_classifier(model, DB, statistics)
    ids = torch.tensor([[2, 7, 9, 3]])
    assert model.train()(input_ids=ids).logits.shape == (1, 16)
    assert model.eval()(input_ids=ids).logits.shape == (1, NUM_LABELS)
    outputs = model(input_ids=ids)
    model.train()
    with pytest.raises(ValueError, match="outputs: expected the features"):
        head.compute_loss(outputs, torch.zeros(1, NUM_LABELS))
    with pytest.raises(TypeError, match="labels: expected"):
        head.compute_loss(model(input_ids=ids), None)


def test_mixed_precision_goes_on_in_the_loss(statistics):
    model = tiny_classifier()
    head = fuse_classifier(model, DB, statistics)
    labels = torch.zeros(1, NUM_LABELS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = model.train()(input_ids=torch.tensor([[2, 7, 9, 3]]))
    low = head.compute_loss({"logits": outputs.logits.float()}, labels)
    logits = torch.nn.functional.linear(outputs.logits.bfloat16(), head.weight.bfloat16(), head.bias.bfloat16())
    torch.testing.assert_close(low, BalancedLoss(DB, statistics)(logits, labels), rtol=1e-4, atol=0)


def test_models_without_a_linear_classifier_and_other_statistics(statistics):
    config = tiny_config()
    roberta = RobertaForSequenceClassification(
        type("Config", (RobertaForSequenceClassification.config_class,), {})(**config.to_diff_dict())
    )
    with pytest.raises(TypeError, match="model: expected one whose classifier or score is nn"):
        fuse_classifier(roberta, DB, statistics)
    with pytest.raises(ValueError, match=f"statistics: expected {NUM_LABELS} labels"):
        fuse_classifier(tiny_classifier(), DB, LabelStatistics.from_counts([1, 2], 5))
    assert isinstance(fuse_classifier(tiny_classifier(), LossSpec(), None), FusedClassifier)
