"""Targets of NumPy, pandas and scipy are taken as they are, wherever a loss takes targets; sparse features are not."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

from fused_balanced_loss import (
    BalancedLoss,
    LabelStatistics,
    LinearBalancedLoss,
    LossSpec,
    SparseTargets,
    balanced_loss,
    linear_balanced_loss,
)

N, C, D = 6, 5, 3
TARGETS = (np.random.default_rng(0).random((N, C)) < 0.4).astype(np.int64)
STATISTICS = LabelStatistics.from_targets(TARGETS)
SPEC = LossSpec.preset("DB")
LOGITS = torch.randn(N, C, generator=torch.Generator().manual_seed(0))
FEATURES = torch.randn(N, D, generator=torch.Generator().manual_seed(1))
WEIGHT = torch.randn(C, D, generator=torch.Generator().manual_seed(2))

FORMS = {
    "int64": TARGETS,
    "bool": TARGETS.astype(bool),
    "uint8": TARGETS.astype(np.uint8),
    "uint16": TARGETS.astype(np.uint16),
    "float32": TARGETS.astype(np.float32),
    "transposed": np.asfortranarray(TARGETS),
    "reversed": TARGETS[::-1].copy()[::-1],
    "read-only": np.frombuffer(TARGETS.tobytes(), np.int64).reshape(N, C),
    "DataFrame": pd.DataFrame(TARGETS),
    "csr_matrix": sparse.csr_matrix(TARGETS),
    "csr_array": sparse.csr_array(TARGETS.astype(bool)),
    "csc": sparse.csc_array(TARGETS),
    "coo": sparse.coo_array(TARGETS.astype(np.float64)),
}


def value_and_gradient(call, leaf):
    leaf = leaf.clone().requires_grad_()
    loss = call(leaf)
    loss.backward()
    return loss.detach(), leaf.grad


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("call", "leaf"),
    [
        (lambda z, y: balanced_loss(z, y, SPEC, STATISTICS), LOGITS),
        (lambda z, y: balanced_loss(z, y, SPEC, STATISTICS, gradient="backward"), LOGITS),
        (lambda z, y: BalancedLoss(SPEC, STATISTICS)(z, y), LOGITS),
        (lambda x, y: linear_balanced_loss(x, WEIGHT, None, y, SPEC, STATISTICS), FEATURES),
    ],
    ids=["function", "backward", "module", "classifier"],
)
def test_the_same_as_a_tensor(form, call, leaf):
    expected = value_and_gradient(lambda x: call(x, torch.from_numpy(TARGETS)), leaf)
    torch.testing.assert_close(value_and_gradient(lambda x: call(x, FORMS[form]), leaf), expected)


def test_of_more_dimensions():
    loss = balanced_loss(LOGITS.reshape(2, 3, C), TARGETS.reshape(2, 3, C), SPEC, STATISTICS)
    torch.testing.assert_close(loss, balanced_loss(LOGITS, torch.from_numpy(TARGETS), SPEC, STATISTICS))


def test_ignored_elements():
    given = np.where(np.arange(C) == 1, -100, TARGETS)
    mask = torch.arange(C) != 1
    expected = balanced_loss(LOGITS, torch.from_numpy(TARGETS), SPEC, STATISTICS, label_mask=mask)
    spec = SPEC.replace(weighting="none")
    torch.testing.assert_close(
        balanced_loss(LOGITS, given, spec, STATISTICS, ignore_index=-100),
        balanced_loss(LOGITS, torch.from_numpy(TARGETS), spec, STATISTICS, label_mask=mask),
    )
    assert expected.isfinite()


@pytest.mark.parametrize(
    ("targets", "error", "message"),
    [
        (TARGETS + 1, ValueError, r"targets: expected 0 or 1, got 2"),
        (sparse.csr_array(2.0 * TARGETS), ValueError, r"targets: expected 0 or 1, got 2"),
        (np.ma.array(TARGETS, mask=TARGETS == 1), TypeError, "an array without a mask"),
        (TARGETS + 0j, TypeError, "expected bool, an integer or a floating-point dtype"),
    ],
)
def test_others_are_refused(targets, error, message):
    with pytest.raises(error, match=message):
        balanced_loss(LOGITS, targets, SPEC, STATISTICS)


@pytest.mark.parametrize("layout", [torch.sparse_csr, torch.sparse_coo])
def test_sparse_features_are_refused_with_a_way_out(layout):
    head = LinearBalancedLoss(SPEC, STATISTICS, D)
    features = FEATURES.to_sparse(layout=layout)
    with pytest.raises(TypeError, match=r"^features: expected a dense tensor, got layout .*torch\.sparse\.mm"):
        head(features, TARGETS)
    # The way out that the message names.
    logits = torch.sparse.mm(features, head.weight.t()) + head.bias
    torch.testing.assert_close(balanced_loss(logits, TARGETS, SPEC, STATISTICS), head(FEATURES, TARGETS))


def test_padded_label_ids():
    targets = SparseTargets.from_dense(TARGETS)
    rows = targets.to_lists()
    padded = torch.tensor([row + [-1] * (C - len(row)) for row in rows])
    assert SparseTargets.from_padded(padded, C) == targets
    assert SparseTargets.from_padded(padded.int(), C) == targets
    ignored = torch.where(padded < 0, -100, padded)
    assert SparseTargets.from_padded(ignored, C, padding=-100) == targets
    assert SparseTargets.from_padded(padded[:0], C) == targets[:0]
    with pytest.raises(ValueError, match=r"label ids in \[0, 5\), got -100 in row"):
        SparseTargets.from_padded(ignored, C)
    for wrong in (padded.float(), padded[0], rows, padded == 1):
        with pytest.raises(TypeError, match=r"^ids: expected an integer tensor \[N, K\]"):
            SparseTargets.from_padded(wrong, C)
