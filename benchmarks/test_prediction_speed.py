"""Predictions a chunk of labels at a time, against F.linear followed by topk or a threshold over all logits.

pytest benchmarks/test_prediction_speed.py [--full]
"""

from __future__ import annotations

import gc

import pytest
import torch
import torch.nn.functional as F
from contest import Contestant, hold
from floors import classifier_floor
from problems import make_classifier
from records import title

from fused_balanced_loss.classifier.prediction import predict_above, predict_topk

THRESHOLD, K = 0.5, 5


def whole_topk(features, weight, bias):
    return F.linear(features, weight, bias).topk(K)


def whole_above(features, weight, bias):
    return (torch.sigmoid(F.linear(features, weight, bias)) > THRESHOLD).nonzero()


FORMS = {
    "top 5": (lambda *a: predict_topk(*a, K), whole_topk, lambda a, b: torch.equal(a.labels, b.indices)),
    "above 0.5": (
        lambda *a: predict_above(*a, THRESHOLD),
        whole_above,
        lambda a, b: torch.equal(torch.stack([a.labels.rows, a.labels.col], 1), b),
    ),
}


@pytest.mark.parametrize(
    "shape",
    [
        (32, 18_211, 768),
        (32, 131_072, 768),
        pytest.param((1024, 18_211, 768), marks=pytest.mark.full),
        pytest.param((128, 670_091, 768), marks=pytest.mark.full),
    ],
    ids=lambda shape: "x".join(map(str, shape)),
)
@pytest.mark.parametrize("form", FORMS)
def test_prediction(benchmark, keep, shape, form):
    num_rows, num_labels, num_features = shape
    settings = {"operation": "prediction", "rows": num_rows, "labels": num_labels, "features": num_features}
    settings |= {"dtype": "float32", "variant": form}
    benchmark.group = title(settings)
    arguments = [tensor.detach() for tensor in make_classifier(*shape, torch.float32)]
    ours, whole, equal = FORMS[form]
    agree = equal(ours(*arguments), whole(*arguments))
    found = [Contestant("ours", lambda _: ours(*arguments)), Contestant("F.linear, whole", lambda _: whole(*arguments))]
    record = hold(
        settings, found, {}, classifier_floor(*shape, torch.float32, "value"), seconds=2.0, benchmark=benchmark
    )
    keep(record)
    gc.collect()
    assert agree
    peaks = {name: one["peak_bytes"] for name, one in record["contestants"].items()}
    if num_labels > 100_000:
        assert peaks["ours"] < peaks["F.linear, whole"]
