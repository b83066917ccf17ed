"""Calibration error against a loop over the bins."""

import numpy as np
import pytest
import torch

from fused_balanced_loss import thresholding
from fused_balanced_loss.metrics import CalibrationError


def problem(num_rows=60, num_labels=20, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    logits = (2 * torch.randn(num_rows, num_labels, generator=generator) - 1).to(dtype)
    # On the boundaries of 2 and of 4 bins, and beyond all others.
    logits[0, :3] = torch.tensor([0.0, 100.0, -200.0])
    return logits, torch.rand(num_rows, num_labels, generator=generator) < 0.3


def counted(logits, targets, num_bins=15, size=16):
    metric = CalibrationError(logits.shape[1], num_bins)
    for part in zip(torch.split(logits, size), torch.split(targets, size), strict=True):
        metric.update(*part)
    return metric


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("num_bins", [1, 2, 10, 15])
def test_equals_a_loop_over_the_bins(monkeypatch, num_bins, dtype):
    monkeypatch.setattr(thresholding, "CHUNK", 100)
    logits, targets = problem(dtype=dtype)
    probability = torch.cat([torch.sigmoid(part.float()) for part in torch.split(logits, 5)]).double().numpy()
    error, pairs = 0.0, []
    for b in range(num_bins):
        inside = (probability > b / num_bins) & (probability <= (b + 1) / num_bins)
        if b == 0:
            inside |= probability == 0
        pairs.append(inside.sum())
        if inside.any():
            error += inside.sum() * abs(probability[inside].mean() - targets.numpy()[inside].mean())
    metric = counted(logits, targets, num_bins)
    assert metric.bins().pairs.tolist() == pairs
    assert metric.value() == pytest.approx(error / probability.size, rel=1e-6)


def test_calibrated_probabilities_have_a_small_error():
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(2000, 50, generator=generator) - 1
    targets = torch.rand(2000, 50, generator=generator) < torch.sigmoid(logits)
    assert counted(logits, targets, size=500).value() < 0.01
    assert counted(logits + 1.5, targets, size=500).value() > 0.1
    found = counted(logits, targets, size=500).bins()
    np.testing.assert_allclose(found.probability, found.frequency, atol=0.03)


def test_merge_state_and_empty(tmp_path):
    logits, targets = problem()
    expected = counted(logits, targets).value()
    first, second = counted(logits[:32], targets[:32]), counted(logits[32:], targets[32:])
    torch.save(first.state_dict(), tmp_path / "state")
    first.merge(second)
    assert first.value() == pytest.approx(expected, rel=1e-9)
    second.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    second.update(logits[32:].t().contiguous().t(), targets[32:].to_sparse_csr())
    assert second.value() == pytest.approx(expected, rel=1e-6)
    second.reset()
    second.update(logits[:0], targets[:0])
    with pytest.raises(RuntimeError, match="no sample was counted yet"):
        second.value()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: CalibrationError(3, 0), "num_bins: expected an integer >= 1, got 0"),
        (lambda: CalibrationError(3).merge(CalibrationError(3, 10)), "other: expected the num_bins 15, got 10"),
        (lambda: CalibrationError(3).update(torch.zeros(1, 2), torch.zeros(1, 2)), r"logits: expected \[n, 3\]"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call()
