"""Accelerate hands out batches of padded label ids and gathers them: by itself, and under torchrun (test_habits.py)."""

import sys

import torch
from accelerate import Accelerator, DataLoaderConfiguration
from torch.utils.data import DataLoader

from fused_balanced_loss import SparseTargets, SparseTargetsCollator

NUM_LABELS, WIDTH = 9, 4
IDS = [[k % NUM_LABELS] if k % 3 else sorted({k % 5, 5 + k % 4, 8}) for k in range(11)]


def main(dispatch: bool) -> None:
    accelerator = Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(dispatch_batches=dispatch))
    samples = [{"number": k, "labels": ids} for k, ids in enumerate(IDS)]
    loader = accelerator.prepare(
        DataLoader(samples, batch_size=2, collate_fn=SparseTargetsCollator(NUM_LABELS, pad_to=WIDTH))
    )
    numbers, rows = [], []
    for batch in loader:
        assert len(SparseTargets.from_padded(batch["labels"], NUM_LABELS)) == len(batch["number"])
        gathered = accelerator.gather_for_metrics((batch["number"], batch["labels"]))
        numbers += gathered[0].tolist()
        rows += SparseTargets.from_padded(gathered[1], NUM_LABELS).to_lists()
    # With two processes a batch of each comes in turn.
    assert dict(zip(numbers, rows, strict=True)) == dict(enumerate(IDS)) and len(numbers) == len(IDS)
    accelerator.end_training()
    if torch.distributed.is_initialized():
        # Otherwise gloo's threads now and then abort a process that ends before the other.
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1] == "dispatch")
