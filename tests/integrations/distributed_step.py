"""One step and an evaluation, saved to a folder: by itself, and under torchrun (test_integrations_transformers.py)."""

import os
import sys

import torch
from test_integrations_transformers import make_trainer
from tiny_bert import NUM_LABELS, samples

from fused_balanced_loss.metrics import ThresholdedF1

folder = sys.argv[1]
trainer = make_trainer(
    folder,
    train=samples(8),
    evaluation=samples(11, seed=1),
    metric=ThresholdedF1(NUM_LABELS),
    per_device_train_batch_size=2,
    gradient_accumulation_steps=4 // int(os.environ.get("WORLD_SIZE", "1")),
)
with torch.no_grad():
    trainer.model.classifier.bias.copy_(torch.linspace(-1, 1, NUM_LABELS))
trainer.train()
assert trainer.state.global_step == 1
metrics = trainer.evaluate()
if trainer.is_world_process_zero():
    torch.save({"weights": trainer.model.state_dict(), "metrics": metrics}, f"{folder}/result.pt")
if torch.distributed.is_initialized():
    # Otherwise gloo's threads now and then abort a process that ends before the other.
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
