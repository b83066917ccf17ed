"""What is wrong with an input is said by name, with what was expected and what came."""

import math
import os

import numpy as np
import pytest
import torch

from fused_balanced_loss import (
    BalancedLoss,
    ClassBalancedFocalLoss,
    DistributionBalancedLoss,
    LabelStatistics,
    LossSpec,
    SparseTargets,
    balanced_loss,
)

N, C = 4, 3
STATISTICS = LabelStatistics.from_counts([1, 30, 70], 100, mu=0.9)
DB = LossSpec.preset("DB", corpus="reuters")
LOGITS = torch.randn(N, C, generator=torch.Generator().manual_seed(0))
TARGETS = torch.tensor([[1, 0, 0], [0, 0, 0], [1, 1, 0], [0, 0, 1]], dtype=torch.uint8)
SPARSE = SparseTargets.from_dense(TARGETS)
NESTED = torch.nested.nested_tensor(list(LOGITS), layout=torch.jagged)


def call(logits=LOGITS, targets=TARGETS, statistics=STATISTICS, spec=DB, **options):
    return balanced_loss(logits, targets, spec, statistics, **options)


def through_module(logits=LOGITS, targets=TARGETS, statistics=STATISTICS, spec=DB, **options):
    arguments = {name: options.pop(name) for name in ("sample_weight", "label_mask") if name in options}
    return BalancedLoss(spec, statistics, **options)(logits, targets, **arguments)


def changed(value, dtype=torch.float32, at=(2, 1)):
    targets = TARGETS.to(dtype).clone()
    targets[at] = value
    return targets


def test_the_base_case_is_good():
    assert torch.isfinite(call())
    torch.testing.assert_close(call(), through_module())


CALLS = {
    "logits-array": (TypeError, r"^logits: expected a tensor, got ndarray", {"logits": LOGITS.numpy()}),
    "logits-list": (TypeError, r"^logits: expected a tensor, got list", {"logits": LOGITS.tolist()}),
    "logits-none": (TypeError, r"^logits: expected a tensor, got NoneType", {"logits": None}),
    "logits-int": (TypeError, r"^logits: expected float16, .*got torch.int64", {"logits": LOGITS.long()}),
    "logits-bool": (TypeError, r"^logits: expected float16, .*got torch.bool", {"logits": LOGITS > 0}),
    "logits-complex": (TypeError, r"^logits: expected float16, .*got torch.complex64", {"logits": LOGITS + 0j}),
    "logits-sparse": (
        TypeError,
        r"^logits: expected a dense tensor, got layout torch.spar",
        {"logits": LOGITS.to_sparse()},
    ),
    "logits-nested": (TypeError, r"^logits: expected a dense tensor, got a nested tensor", {"logits": NESTED}),
    "logits-1d": (ValueError, r"^logits: expected \[..., C\].*two dim.*got \[3\]", {"logits": LOGITS[0]}),
    "logits-0d": (ValueError, r"^logits: expected \[..., C\].*two dim.*got \[\]", {"logits": LOGITS[0, 0]}),
    "logits-no-label": (ValueError, r"^logits: expected \[..., C\].*got \[4, 0\]", {"logits": LOGITS[:, :0]}),
    "logits-labels": (
        ValueError,
        r"^logits: expected 3 labels in the last dimension, as in statistics, got shape \[4, 2\]",
        {"logits": LOGITS[:, :2], "targets": TARGETS[:, :2]},
    ),
    "logits-labels-3d": (
        ValueError,
        r"^logits: expected 3 labels .*got shape \[1, 3, 4\]",
        {"logits": LOGITS.t()[None], "targets": TARGETS.t()[None]},
    ),
    "targets-rows": (ValueError, r"^targets: expected shape \[4, 3\].*got \[3, 3\]", {"targets": TARGETS[:3]}),
    "targets-labels": (ValueError, r"^targets: expected shape \[4, 3\].*got \[4, 2\]", {"targets": TARGETS[:, :2]}),
    "targets-1d": (ValueError, r"^targets: expected shape \[4, 3\].*got \[3\]", {"targets": TARGETS[0]}),
    "targets-flat": (
        ValueError,
        r"^targets: expected shape \[2, 2, 3\].*got \[4, 3\]",
        {"logits": LOGITS.reshape(2, 2, 3)},
    ),
    "targets-gradient": (
        ValueError,
        r"^targets: expected a tensor without gradient, got one",
        {"targets": TARGETS.float().requires_grad_()},
    ),
    "targets-complex": (TypeError, r"^targets: expected bool, .*got torch.complex64", {"targets": TARGETS + 0j}),
    "targets-array": (TypeError, r"^targets: expected a tensor or Sp.*got ndarray", {"targets": TARGETS.numpy()}),
    "targets-list": (TypeError, r"^targets: expected a tensor or Sp.*got list", {"targets": SPARSE.to_lists()}),
    "targets-none": (TypeError, r"^targets: expected a tensor or Sp.*got NoneType", {"targets": None}),
    "sparse-rows": (ValueError, r"^targets: expected shape \[4, 3\].*got \[2, 3\]", {"targets": SPARSE[:2]}),
    "sparse-labels": (
        ValueError,
        r"^targets: expected shape \[4, 3\].*got \[4, 5\]",
        {"targets": SparseTargets(SPARSE.crow, SPARSE.col, 5)},
    ),
    "sparse-rows-3d": (
        ValueError,
        r"^targets: expected shape \[4, 3\].*got \[2, 3\]",
        {"logits": LOGITS.reshape(2, 2, 3), "targets": SPARSE[:2]},
    ),
    "csr-shape": (
        ValueError,
        r"^targets: expected shape \[4, 3\].*got \[3, 3\]",
        {"targets": TARGETS[:3].float().to_sparse_csr()},
    ),
    "csr-value": (
        ValueError,
        r"^targets: expected 0 or 1, got 0.5",
        {"targets": changed(0.5).to_sparse_coo()},
    ),
    "sparse-hybrid": (
        ValueError,
        r"^targets: expected a sparse \[N, C\] tensor without dense dimensions, got a torch.sparse_coo tensor",
        {"targets": TARGETS.float().to_sparse(1)},
    ),
    "statistics-missing": (ValueError, r"^statistics: expected LabelStatistics, .*got None", {"statistics": None}),
    "statistics-counts": (
        TypeError,
        r"^statistics: expected LabelStatistics, got Tensor",
        {"statistics": STATISTICS.counts},
    ),
    "spec-name": (TypeError, r"^spec: expected a LossSpec, got str", {"spec": "DB"}),
    "spec-none": (TypeError, r"^spec: expected a LossSpec, got NoneType", {"spec": None}),
    "weight-list": (TypeError, r"^sample_weight: expected a tensor, got list", {"sample_weight": [1.0] * N}),
    "weight-array": (TypeError, r"^sample_weight: expected a tensor, got ndarray", {"sample_weight": np.ones(N)}),
    "weight-short": (
        ValueError,
        r"^sample_weight: expected shape \[4\], one for each sample, got \[3\]",
        {"sample_weight": torch.ones(3)},
    ),
    "weight-column": (
        ValueError,
        r"^sample_weight: expected shape \[4\].*got \[4, 1\]",
        {"sample_weight": torch.ones(N, 1)},
    ),
    "weight-complex": (
        TypeError,
        r"^sample_weight: expected a dense tensor of real numbers, got torch.complex64",
        {"sample_weight": torch.ones(N, dtype=torch.complex64)},
    ),
    "weight-number": (ValueError, r"^sample_weight: .*got \[\]", {"sample_weight": torch.tensor(1.0)}),
    "weight-gradient": (
        ValueError,
        r"^sample_weight: expected a tensor without gradient, got one",
        {"sample_weight": torch.ones(N, requires_grad=True)},
    ),
    "mask-float": (
        TypeError,
        r"^label_mask: expected a dense bool tensor, got torch.float32",
        {"label_mask": torch.ones(N, C)},
    ),
    "mask-uint8": (
        TypeError,
        r"^label_mask: expected a dense bool tensor, got torch.uint8",
        {"label_mask": torch.ones(C, dtype=torch.uint8)},
    ),
    "mask-list": (TypeError, r"^label_mask: expected a dense bool tensor, got list", {"label_mask": [True] * C}),
    "mask-rows": (
        ValueError,
        r"^label_mask: expected shape \[3\] or \[4, 3\], got \[4\]",
        {"label_mask": torch.ones(N, dtype=torch.bool)},
    ),
    "mask-broadcast": (
        ValueError,
        r"^label_mask: expected shape \[3\] or \[4, 3\], got \[1, 3\]",
        {"label_mask": torch.ones(1, C, dtype=torch.bool)},
    ),
    "reduction": (
        ValueError,
        r"^reduction: expected one of 'none', 'sum', 'mean', 'batchmean'; got 'avg'",
        {"reduction": "avg"},
    ),
    "reduction-none": (ValueError, r"^reduction: expected one of .*got None", {"reduction": None}),
    "impl": (ValueError, r"^impl: expected one of 'auto', .*got 'cuda'", {"impl": "cuda"}),
    "impl-none": (ValueError, r"^impl: expected one of .*got None", {"impl": None}),
    "gradient": (ValueError, r"^gradient: expected one of 'auto', .*got 'inplace'", {"gradient": "inplace"}),
    "gradient-none": (ValueError, r"^gradient: expected one of .*got None", {"gradient": None}),
    "in-place-elements": (
        ValueError,
        r"^gradient: 'in_place' needs a reduction to one number, got reduction 'none'",
        {"gradient": "in_place", "reduction": "none"},
    ),
}


@pytest.mark.parametrize("form", [call, through_module])
@pytest.mark.parametrize(("error", "message", "arguments"), CALLS.values(), ids=CALLS)
def test_calls_are_refused(form, error, message, arguments):
    with pytest.raises(error, match=message):
        form(**arguments)


@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("impl", ["auto", "reference"])
@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        (2, torch.float32),
        (0.5, torch.float32),
        (-1, torch.float32),
        (math.nan, torch.float32),
        (math.inf, torch.float32),
        (0.5, torch.bfloat16),
        (-1, torch.float64),
        (1e-30, torch.float64),
        (2, torch.uint8),
        (255, torch.uint8),
    ],
)
def test_target_values_are_refused(value, dtype, impl, reduction, gradient):
    logits = LOGITS.clone().requires_grad_(gradient)
    shown = r"nan" if math.isnan(value) else rf"{changed(value, dtype)[2, 1].item()}".replace(".", r"\.")
    with pytest.raises(ValueError, match=rf"^targets: expected 0 or 1, got {shown} at \[2, 1\]"):
        call(logits, changed(value, dtype), reduction=reduction, impl=impl)


@pytest.mark.parametrize(
    "spec", [LossSpec.preset(name, corpus="reuters") for name in ("BCE", "FL", "CB", "R-FL", "NTR-FL", "DB", "ASL")]
)
@pytest.mark.parametrize("logit", [0.0, 40.0, -40.0, math.inf, -math.inf, 1e30, -1e30])
@pytest.mark.parametrize("value", [2, 0.5, -1, math.nan])
@pytest.mark.parametrize("impl", ["auto", "reference"])
def test_target_values_are_refused_for_every_loss_and_logit(spec, logit, value, impl):
    logits = LOGITS.clone()
    logits[2, 1] = logit
    with pytest.raises(ValueError, match=r"^targets: expected 0 or 1, got .* at \[2, 1\]"):
        call(logits, changed(value), spec=spec, impl=impl)


@pytest.mark.parametrize("pooling", ["mean_count", "mean_weight", "rarest"])
@pytest.mark.parametrize("impl", ["auto", "reference"])
def test_target_values_are_refused_where_rows_are_pooled(pooling, impl):
    spec = LossSpec(gamma=2, weighting="class_balanced", pooling=pooling)
    with pytest.raises(ValueError, match=r"^targets: expected 0 or 1, got 2"):
        call(targets=changed(2), spec=spec, impl=impl)


@pytest.mark.parametrize("impl", ["auto", "reference"])
def test_a_nan_logit_is_no_target_error(impl):
    logits = LOGITS.clone()
    logits[1, 2] = math.nan
    assert torch.isnan(call(logits, impl=impl))
    elements = call(logits, impl=impl, reduction="none")
    assert torch.isnan(elements).nonzero().tolist() == [[1, 2]]


LISTS = {
    "beyond": (ValueError, r"^targets: expected label ids in \[0, 3\), got 3 in row 1 \(1 out of range", [[0], [3]]),
    "negative": (ValueError, r"^targets: expected label ids in \[0, 3\), got -1 in row 0 \(2 out of", [[-1], [1, 9]]),
    "huge": (ValueError, r"^targets: expected label ids in \[0, 3\), got", [np.array([2**63 + 1], np.uint64)]),
    "twice": (ValueError, r"^targets: expected each label id once in a row.*got 2 twice in row 1", [[0], [2, 1, 2]]),
    "float": (TypeError, r"^targets: expected integer label ids, got float64 of shape \[2\] in row 1", [[], [0, 1.0]]),
    "bool": (TypeError, r"^targets: expected integer label ids, got bool", [[True, False, True]]),
    "text": (TypeError, r"^targets: expected integer label ids, got <U1", [["a"]]),
    "none": (TypeError, r"^targets: expected integer label ids, got object", [[None]]),
    "nested": (TypeError, r"^targets: expected integer label ids, got int64 of shape \[1, 2\]", [[[0, 1]]]),
    "ragged": ((TypeError, ValueError), r"^targets: expected integer label ids", [[[0, 1], [2]]]),
    "tensor-float": (TypeError, r"^targets: expected integer label ids, got float32", [torch.ones(1)]),
    "larger": (
        ValueError,
        r"^targets: expected label ids in \[0, 3\), got 1180591620717411303424 in row 1",
        [[0], [2**70]],
    ),
    "multi-hot-bool": (
        TypeError,
        r"^targets: .*got bool of shape \[3\] in row 0; pass np.array",
        [[True, False, True]],
    ),
    "multi-hot-float": (TypeError, r"^targets: .*got float64 of shape \[3\] in row 0; pass np.arr", [[1.0, 0.0, 0.0]]),
    "multi-hot-int": (
        ValueError,
        r"^targets: .*rows of 3 entries that are all 0 or 1, .*np.array",
        [[0, 1, 1], [0, 0, 0]],
    ),
    "number-as-row": (TypeError, r"^targets: expected .*int.* in row 0", [0, 2]),
    "none-as-row": (TypeError, r"^targets: expected .*NoneType.* in row 1", [[0], None]),
    "number": (TypeError, r"^targets: expected .*int", 3),
}


@pytest.mark.parametrize(("error", "message", "ids"), LISTS.values(), ids=LISTS)
def test_label_ids_are_refused(error, message, ids):
    with pytest.raises(error, match=message):
        SparseTargets.from_lists(ids, C)


@pytest.mark.parametrize(("error", "message", "ids"), LISTS.values(), ids=LISTS)
def test_label_ids_are_refused_by_the_statistics(error, message, ids):
    with pytest.raises(error, match=message):
        LabelStatistics.from_targets(ids, C)


def ids_of(*values, dtype=torch.int64):
    return torch.tensor(values, dtype=dtype)


@pytest.mark.parametrize(
    ("error", "message", "crow", "col"),
    [
        (ValueError, r"^targets: expected label ids in \[0, 3\), got 3 in row 1", ids_of(0, 1, 2), ids_of(0, 3)),
        (ValueError, r"^targets: expected label ids in \[0, 3\), got -1 in row 0", ids_of(0, 1, 2), ids_of(-1, 2)),
        (ValueError, r"^targets: .*once in a row, ascending; got 1 twice in row 1", ids_of(0, 1, 3), ids_of(1, 1, 1)),
        (ValueError, r"^targets: .*once in a row, ascending; got 0 out of order in row 0", ids_of(0, 2), ids_of(2, 0)),
        (ValueError, r"^crow: expected offsets that rise from 0 to 2", ids_of(1, 2), ids_of(0, 1)),
        (ValueError, r"^crow: expected offsets that rise from 0 to 2", ids_of(0, 1), ids_of(0, 1)),
        (ValueError, r"^crow: expected offsets that rise from 0 to 2", ids_of(0, 3), ids_of(0, 1)),
        (ValueError, r"^crow: expected offsets that rise from 0 to 2", ids_of(0, 2, 1, 2), ids_of(0, 1)),
        (ValueError, r"^crow: expected offsets that rise from 0 to 0", ids_of(), ids_of()),
        (TypeError, r"^crow: expected a one-dim.*int64.*got .*torch.int32", ids_of(0, 1, dtype=torch.int32), ids_of(0)),
        (TypeError, r"^crow: expected a one-dimensional int64 tensor, got list", [0, 1], ids_of(0)),
        (TypeError, r"^crow: expected a one-dim.*got .*shape \[1, 2\]", ids_of(0, 1)[None], ids_of(0)),
        (TypeError, r"^col: expected a one-dim.*int64.*got .*torch.float32", ids_of(0, 1), torch.zeros(1)),
        (TypeError, r"^col: expected a one-dimensional int64 tensor, got ndarray", ids_of(0, 1), np.zeros(1, np.int64)),
    ],
)
def test_sparse_rows_are_refused(error, message, crow, col):
    with pytest.raises(error, match=message):
        SparseTargets(crow, col, C)


@pytest.mark.parametrize("num_labels", [0, -1, 2.0, True, np.bool_(True), None, "3", 2**70])
def test_num_labels_is_refused(num_labels):
    with pytest.raises((TypeError, ValueError), match=r"^num_labels: expected an integer"):
        SparseTargets.from_lists([[]], num_labels)


@pytest.mark.parametrize(
    ("error", "message", "targets"),
    [
        (ValueError, r"^targets: expected \[N, C\] with C >= 1, got shape \[3\]", TARGETS[0]),
        (ValueError, r"^targets: expected \[N, C\] with C >= 1, got shape \[1, 4, 3\]", TARGETS[None].numpy()),
        (ValueError, r"^targets: expected 0 or 1, got 2 at \[2, 1\]", changed(2, torch.uint8)),
        (ValueError, r"^targets: expected 0 or 1, got 0.5 at \[2, 1\]", changed(0.5).numpy()),
        (ValueError, r"^targets: expected 0 or 1, got nan at \[2, 1\]", changed(math.nan)),
        (ValueError, r"^targets: expected 0 or 1, got -1 at \[2, 1\]", changed(-1, torch.int64)),
        (TypeError, r"^targets: expected an array of numbers, got ndarray of <U1", np.array([["a"]])),
        (TypeError, r"^targets: expected an array of numbers, got ndarray of object", np.array([["0", "1"]], object)),
        (TypeError, r"^targets: expected bool, integers or floating-point numbers, got torch.complex64", TARGETS + 0j),
        (TypeError, r"^targets: expected a dense tensor, got a torch.sparse_coo tensor", TARGETS.to_sparse_coo()),
        (TypeError, r"^targets: expected an array without a mask", np.ma.array(TARGETS.numpy(), mask=TARGETS.numpy())),
        (TypeError, r"^targets: expected .*", None),
    ],
)
def test_dense_targets_are_refused(error, message, targets):
    with pytest.raises(error, match=message):
        SparseTargets.from_dense(targets)


@pytest.mark.parametrize("build", [SparseTargets.from_scipy, SparseTargets.from_torch])
def test_dense_is_not_sparse(build):
    value = TARGETS.numpy() if build == SparseTargets.from_scipy else TARGETS
    with pytest.raises(TypeError, match=r"^targets: expected a (scipy )?sparse .*, got"):
        build(value)


def test_from_torch_names_what_is_no_tensor():
    with pytest.raises(TypeError, match=r"^targets: expected a sparse \[N, C\] tensor, got ndarray"):
        SparseTargets.from_torch(TARGETS.numpy())


@pytest.mark.parametrize("targets", [3, None, 1.5])
def test_statistics_of_something_else_are_refused(targets):
    with pytest.raises(TypeError, match=r"^targets: expected .*, got (int|NoneType|float)"):
        LabelStatistics.from_targets(targets, C)


@pytest.mark.parametrize(
    ("error", "message", "counts"),
    [
        (ValueError, r"^counts: expected integers in \[0, num_samples = 10\], got -1 for label 1", [1, -1]),
        (ValueError, r"^counts: expected integers in \[0, num_samples = 10\], got 11 for label 1", [1, 11, 12]),
        (ValueError, r"^counts: expected integers, got 1.5 for label 0", [1.5, 2]),
        (ValueError, r"^counts: expected integers, got nan for label 1", [1, math.nan]),
        (ValueError, r"^counts: expected integers, got inf for label 1", np.array([1, math.inf])),
        (ValueError, r"^counts: expected one dimension \[C\] with C >= 1, got shape \[1, 2\]", [[1, 2]]),
        (ValueError, r"^counts: expected one dimension \[C\] with C >= 1, got shape \[\]", 3),
        (ValueError, r"^counts: expected one dimension \[C\] with C >= 1, got shape \[0\]", []),
        (TypeError, r"^counts: expected integers, got torch.bool", [True, False]),
        (ValueError, r"^counts: expected integers that fit into 64 bits, got larger ones", [1, 2**70]),
        (ValueError, r"^counts: expected integers, got 1.18.* for label 1", np.array([1, 2**70])),
        (TypeError, r"^counts: expected a dense tensor, got a torch.sparse_coo tensor", torch.ones(2).to_sparse()),
        (TypeError, r"^counts: expected integers, got torch.bool", np.array([True])),
        (TypeError, r"^counts: expected integers, got torch.complex", torch.ones(2) + 0j),
        (TypeError, r"^counts: expected (integers|an array of numbers), got .*", ["1", "2"]),
        (TypeError, r"^counts: expected (integers|an array of numbers), got .*", "12"),
        (TypeError, r"^counts: expected (integers|an array of numbers), got .*", None),
        (TypeError, r"^counts: expected (integers|an array of numbers), got .*", {0: 1}),
    ],
)
def test_counts_are_refused(error, message, counts):
    with pytest.raises(error, match=message):
        LabelStatistics.from_counts(counts, 10)


@pytest.mark.parametrize(
    ("error", "message", "num_samples"),
    [
        (ValueError, r"^num_samples: expected at least 2, got 1", 1),
        (ValueError, r"^num_samples: expected at least 2, got 0", 0),
        (ValueError, r"^num_samples: expected at least 2, got -5", -5),
        (TypeError, r"^num_samples: expected an integer, got float 10.0", 10.0),
        (TypeError, r"^num_samples: expected an integer, got float64", np.float64(10)),
        (TypeError, r"^num_samples: expected an integer, got bool True", True),
        (TypeError, r"^num_samples: expected an integer, got Tensor", torch.tensor(10)),
        (TypeError, r"^num_samples: expected an integer, got NoneType None", None),
        (ValueError, r"^num_samples: expected an integer that fits into 64 bits, got 1180591620717411303424", 2**70),
    ],
)
def test_num_samples_is_refused(error, message, num_samples):
    with pytest.raises(error, match=message):
        LabelStatistics.from_counts([1, 1], num_samples)


@pytest.mark.parametrize("degenerate", ["raise", None, True])
def test_degenerate_is_refused(degenerate):
    with pytest.raises(ValueError, match=r"^degenerate: expected one of 'warn', 'error', 'ignore'; got"):
        LabelStatistics.from_counts([1], 10, degenerate=degenerate)


def leaf():
    return LOGITS.clone().requires_grad_()


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("impl", ["auto", "eager"])
@pytest.mark.parametrize("shape", [(N, C), (2, 2, C)])
def test_in_place_refuses_leaf_logits_and_leaves_them_alone(shape, impl, reduction):
    logits = LOGITS.reshape(shape).clone().requires_grad_()
    with pytest.raises(
        ValueError, match=r"^logits: expected the result of a computation for gradient='in_place'.*leaf"
    ):
        call(logits, TARGETS.reshape(shape), gradient="in_place", impl=impl, reduction=reduction)
    assert torch.equal(logits, LOGITS.reshape(shape))


@pytest.mark.parametrize("impl", ["auto", "eager"])
def test_in_place_refuses_rows_that_are_not_contiguous(impl):
    logits = (leaf() * 1).t().contiguous().t()
    with pytest.raises(
        ValueError,
        match=r"^logits: expected rows side by side in memory for gradient='in_place', got .* strides \[1, 4\]",
    ):
        call(logits, gradient="in_place", impl=impl)


@pytest.mark.parametrize("impl", ["auto", "eager"])
def test_in_place_refuses_rows_that_share_memory(impl):
    row = leaf()[:1] * 1
    with pytest.raises(ValueError, match=r"^logits: expected .*gradient='in_place'"):
        call(row.expand(N, C), gradient="in_place", impl=impl)


@pytest.mark.parametrize("impl", ["auto", "eager"])
def test_in_place_refuses_a_view_of_a_leaf(impl):
    logits = leaf()
    with pytest.raises((ValueError, RuntimeError), match="leaf"):
        call(logits[:], gradient="in_place", impl=impl)
    assert torch.equal(logits, LOGITS)


def test_in_place_with_the_reference_leaves_the_logits_alone():
    logits = leaf()
    call(logits, gradient="in_place", impl="reference").backward()
    assert torch.equal(logits, LOGITS)


@pytest.mark.parametrize("build", [DistributionBalancedLoss, ClassBalancedFocalLoss])
def test_modules_refuse_unknown_options(build):
    with pytest.raises(TypeError, match="'reductoin'"):
        build(STATISTICS, reductoin="sum")


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"gamma": -1}, r"^gamma: expected"), ({"lam": 0}, r"^lam: expected"), ({"impl": "fast"}, r"^impl: expected")],
)
def test_modules_name_a_bad_setting(settings, message):
    with pytest.raises(ValueError, match=message):
        DistributionBalancedLoss(STATISTICS, **settings)


EMPTY = [(TARGETS[:0], (0, C)), (SPARSE[:0], (0, C)), (TARGETS[:0].reshape(0, 5, C), (0, 5, C))]
EMPTY += [(TARGETS[:0].reshape(5, 0, C), (5, 0, C))]


@pytest.mark.parametrize("impl", ["auto", "reference"])
@pytest.mark.parametrize(("targets", "shape"), EMPTY)
def test_mean_of_an_empty_batch_is_refused(targets, shape, impl):
    with pytest.raises(ValueError, match=r"^logits: expected at least one sample for reduction 'mean', got shape \["):
        call(torch.zeros(shape), targets, impl=impl)


@pytest.mark.parametrize("impl", ["auto", "reference"])
@pytest.mark.parametrize(("targets", "shape"), EMPTY)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_an_empty_batch_gives_zero_or_nothing(reduction, dtype, targets, shape, impl):
    logits = torch.zeros(shape, dtype=dtype, requires_grad=True)
    loss = call(logits, targets, reduction=reduction, impl=impl)
    assert loss.shape == (shape if reduction == "none" else ())
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert loss.sum() == 0
    loss.sum().backward()
    assert logits.grad.shape == shape
    assert logits.grad.dtype == dtype


@pytest.mark.parametrize("name", ["sample_weight", "label_mask"])
def test_an_empty_batch_takes_weights_and_masks(name):
    value = torch.ones(0) if name == "sample_weight" else torch.ones(0, C, dtype=torch.bool)
    assert call(LOGITS[:0], TARGETS[:0], reduction="sum", **{name: value}) == 0


def test_an_empty_batch_of_pooled_rows():
    spec = LossSpec(weighting="class_balanced", pooling="mean_count")
    assert call(LOGITS[:0], TARGETS[:0], spec=spec, reduction="sum") == 0


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("impl", ["cuda", "Auto", None])
def test_impl_is_refused_for_an_empty_batch_too(impl, reduction):
    with pytest.raises(ValueError, match=r"^(impl: expected one of|logits: expected at least one sample)"):
        call(LOGITS[:0], TARGETS[:0], impl=impl, reduction=reduction)


@pytest.mark.skipif(
    torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET", "0") in ("1", "true", "True", "on"),
    reason="the Triton backend runs here, on a GPU or in its interpreter",
)
@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("form", [call, through_module])
def test_triton_without_a_gpu_says_what_it_needs(form, gradient):
    with pytest.raises(RuntimeError, match=r"^impl: 'triton' needs logits on a GPU.*got logits on cpu"):
        form(LOGITS.clone().requires_grad_(gradient), impl="triton")
