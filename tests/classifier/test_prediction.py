"""Prediction without logits, against that from logits."""

import pytest
import torch
import torch.nn.functional as F

from fused_balanced_loss import LinearBalancedLoss, LossSpec
from fused_balanced_loss.classifier.prediction import predict_above, predict_topk


@pytest.fixture
def classifier():
    torch.manual_seed(0)
    return torch.randn(5, 8), torch.randn(101, 8), torch.randn(101)


@pytest.mark.parametrize("chunk_size", [1, 7, 100, 101, None])
@pytest.mark.parametrize("bias", [True, False])
def test_topk_and_above_equal_those_of_logits(classifier, chunk_size, bias):
    features, weight, b = classifier
    b = b if bias else None
    logits = F.linear(features, weight, b)
    for k in (1, 3, 101):
        top = predict_topk(features, weight, b, k, chunk_size=chunk_size)
        expected = logits.topk(k, dim=1)
        torch.testing.assert_close(top.logits, expected.values, rtol=1e-5, atol=1e-6)
        assert torch.equal(top.labels, expected.indices)
    for threshold in (0.0, 0.5, 0.9, 1.0):
        found = predict_above(features, weight, b, threshold, chunk_size=chunk_size)
        above = torch.sigmoid(logits) > threshold
        assert torch.equal(found.labels.to_dense(torch.bool), above)
        torch.testing.assert_close(found.logits, logits[above], rtol=1e-5, atol=1e-6)
        found.labels.check()


def test_module_predicts_and_empty_batches_do(classifier):
    module = LinearBalancedLoss(LossSpec(), None, 8, num_labels=101, chunk_size=16)
    top = module.predict_topk(classifier[0], 4)
    assert torch.equal(top.labels, module.logits(classifier[0]).topk(4).indices)
    assert module.predict_above(classifier[0], 0.5).labels.shape == (5, 101)
    assert module.predict_topk(classifier[0][:0], 4).labels.shape == (0, 4)
    assert module.predict_above(classifier[0][:0], 0.5).labels.shape == (0, 101)


@pytest.mark.parametrize(
    ("message", "call"),
    [
        ("k: expected", lambda f, w, b: predict_topk(f, w, b, 0)),
        ("k: expected", lambda f, w, b: predict_topk(f, w, b, 102)),
        ("k: expected", lambda f, w, b: predict_topk(f, w, b, True)),
        ("threshold: expected", lambda f, w, b: predict_above(f, w, b, 1.5)),
        ("chunk_size: expected", lambda f, w, b: predict_above(f, w, b, 0.5, chunk_size=0)),
        ("features: expected", lambda f, w, b: predict_topk(f[:, :7], w, b, 1)),
        ("bias: expected", lambda f, w, b: predict_topk(f, w, b[1:], 1)),
    ],
)
def test_bad_input(classifier, message, call):
    with pytest.raises(ValueError, match=message):
        call(*classifier)
