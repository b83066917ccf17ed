"""transformers' Trainer with a balanced loss, without a subclass: a collator, a loss function and a metric.

    python examples/trainer.py
    python examples/trainer.py FOLDER-OF-A-PRETRAINED-MODEL

Without a folder a tiny BERT with random weights is trained, offline and in seconds, on generated texts in which every
label has a word of its own.
"""

import sys
import tempfile

import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    BertTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainingArguments,
)

from fused_balanced_loss import DistributionBalancedLoss, LabelStatistics
from fused_balanced_loss.integrations.transformers import DataCollatorForMultiLabel, compute_loss_func, compute_metrics
from fused_balanced_loss.metrics import ThresholdedF1

WORDS = ["wheat", "corn", "oil", "gold", "silver", "cocoa", "coffee", "sugar", "cotton", "rubber", "zinc", "tin"]
OTHERS = ["the", "market", "said", "prices", "rose", "fell", "today"]


def documents(number: int, seed: int) -> tuple[list[str], list[list[int]]]:
    """Texts, and the ids of the labels of each: the first words are frequent, the last ones rare."""
    generator = torch.Generator().manual_seed(seed)
    frequency = 1 / torch.arange(1, len(WORDS) + 1) ** 1.5
    ids = [sorted(torch.multinomial(frequency, 2, generator=generator).tolist()) for _ in range(number)]
    fill = [torch.randint(len(OTHERS), (6,), generator=generator).tolist() for _ in range(number)]
    texts = [
        " ".join([*(OTHERS[k] for k in more), *(WORDS[k] for k in own)]) for own, more in zip(ids, fill, strict=True)
    ]
    return texts, ids


def load(folder: str | None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    if folder is not None:
        model = AutoModelForSequenceClassification.from_pretrained(
            folder, num_labels=len(WORDS), problem_type="multi_label_classification", local_files_only=True
        )
        return model, AutoTokenizer.from_pretrained(folder, local_files_only=True)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *OTHERS]
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
        id2label=dict(enumerate(WORDS)), problem_type="multi_label_classification",
    )  # fmt: skip
    return BertForSequenceClassification(config), BertTokenizer(vocab={word: at for at, word in enumerate(vocabulary)})


def main() -> None:
    torch.manual_seed(0)
    model, tokenizer = load(sys.argv[1] if len(sys.argv) > 1 else None)
    parts = []
    for number, seed in ((2000, 0), (500, 1)):
        texts, ids = documents(number, seed)
        tokens = tokenizer(texts)["input_ids"]
        parts.append([{"input_ids": row, "labels": labels} for row, labels in zip(tokens, ids, strict=True)])
    train_ids = [sample["labels"] for sample in parts[0]]
    statistics = LabelStatistics.from_targets(train_ids, num_labels=len(WORDS))
    loss = DistributionBalancedLoss(statistics)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model,
            TrainingArguments(
                folder, num_train_epochs=5, learning_rate=5e-3, per_device_train_batch_size=32, batch_eval_metrics=True,
                report_to="none", disable_tqdm=True, save_strategy="no", logging_strategy="no",
                dataloader_pin_memory=torch.cuda.is_available(),
            ),
            train_dataset=parts[0],
            eval_dataset=parts[1],
            data_collator=DataCollatorForMultiLabel(tokenizer, len(WORDS)),
            compute_loss_func=compute_loss_func(loss),
            compute_metrics=compute_metrics(ThresholdedF1(len(WORDS))),
        )  # fmt: skip
        trainer.remove_callback(PrinterCallback)
        before, _, after = trainer.evaluate(), trainer.train(), trainer.evaluate()
    for when, scores in (("before", before), ("after", after)):
        print(f"{when} training: loss {scores['eval_loss']:.4f}, micro-F1 {100 * scores['eval_micro_f1']:.1f} %")


if __name__ == "__main__":
    main()
