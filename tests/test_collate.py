"""Samples with label ids become batches with SparseTargets."""

import pytest
import torch
from torch.utils.data import DataLoader

from fused_balanced_loss import SparseTargets, SparseTargetsCollator

IDS = [[0, 2], [], [2, 3, 5], [5], [0, 1, 2, 3, 4, 5], []]


def test_loader_of_mappings():
    samples = [{"x": torch.full((2,), float(k)), "labels": row, "id": k} for k, row in enumerate(IDS)]
    batches = list(DataLoader(samples, batch_size=4, num_workers=0, collate_fn=SparseTargetsCollator(6)))
    assert [batch["labels"].to_lists() for batch in batches] == [IDS[:4], IDS[4:]]
    assert [batch["labels"].shape for batch in batches] == [(4, 6), (2, 6)]
    assert batches[0]["x"].shape == (4, 2)
    assert batches[1]["id"].tolist() == [4, 5]
    assert all("labels" in sample for sample in samples)


def test_loader_of_tuples():
    samples = [(torch.full((2,), float(k)), k, torch.tensor(row, dtype=torch.int64)) for k, row in enumerate(IDS)]
    loader = DataLoader(samples, batch_size=4, num_workers=0, collate_fn=SparseTargetsCollator(6))
    (x, k, targets), (_, _, rest) = loader
    assert x.shape == (4, 2)
    assert k.tolist() == [0, 1, 2, 3]
    assert targets == SparseTargets.from_lists(IDS[:4], 6)
    assert rest.to_lists() == IDS[4:]


def test_collator_with_another_key_and_collate():
    seen = []

    def collate(samples):
        seen.extend(samples)
        return {"n": len(samples)}

    batch = SparseTargetsCollator(3, label_key="y", collate=collate)([{"y": [2], "x": 1}, {"y": [], "x": 2}])
    assert seen == [{"x": 1}, {"x": 2}]
    assert batch == {"n": 2, "y": SparseTargets.from_lists([[2], []], 3)}


@pytest.mark.parametrize("sample", [torch.zeros(3), [1, [2]], {"x": 1}, 3, ()])
def test_collator_rejects_other_samples(sample):
    with pytest.raises(TypeError, match=r"samples: expected tuples ending in label ids, or mappings with key 'labels'"):
        SparseTargetsCollator(3)([sample])


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([{"labels": [0]}, (1, [0])], r"samples: expected samples of one kind, a mapping like the first, got tuple"),
        ([(1, [0]), {"labels": [0]}], r"samples: expected .* a tuple like the first, got dict with keys .* as no. 1"),
        ([(1, [0]), [1, [0]]], r"samples: expected samples of one kind, a tuple like the first, got list as no. 1"),
        ([(1, [0]), ()], r"samples: expected tuples ending in label ids, .* got tuple as no. 1"),
        (
            [{"labels": [0]}, {"label": [0]}],
            r"samples: .*mappings with key 'labels', got dict with keys \['label'\] as",
        ),
    ],
)
def test_collator_rejects_samples_of_several_kinds(samples, message):
    with pytest.raises(TypeError, match=message):
        SparseTargetsCollator(3)(samples)


def test_collator_rejects_an_empty_batch():
    with pytest.raises(ValueError, match=r"samples: expected at least one, got none"):
        SparseTargetsCollator(3)([])


def test_collator_rejects_a_collate_that_gives_no_mapping():
    with pytest.raises(TypeError, match=r"collate: expected to return a mapping for samples that are, got tuple"):
        SparseTargetsCollator(3, collate=tuple)([{"labels": [0]}])


@pytest.mark.parametrize("num_labels", [0, True, 2.0, None, 2**70])
def test_collator_rejects_another_number_of_labels(num_labels):
    with pytest.raises((TypeError, ValueError), match=r"^num_labels: expected an integer"):
        SparseTargetsCollator(num_labels)


def test_collator_names_the_row_of_a_wrong_label():
    with pytest.raises(ValueError, match=r"targets: expected label ids in \[0, 3\), got 3 in row 1"):
        SparseTargetsCollator(3)([{"labels": [0]}, {"labels": [3]}])
