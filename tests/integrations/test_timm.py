"""timm's factory of losses: timm's numbers in all combinations of settings, its own tests restated, bad arguments."""

import inspect
import itertools
import math

import numpy as np
import pytest
import torch
from timm_losses import timm_module
from torch import nn

from fused_balanced_loss import LossSpec, SparseTargets, balanced_loss
from fused_balanced_loss.integrations.timm import create_classification_loss, mixed_targets_cpp

N, C = 12, 37
COUNTS = torch.arange(1, C + 1) ** 2
NUM_SAMPLES = 2000
# Of the largest element of a result.
TOLERANCE = 1e-5


def product(**choices):
    return [dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values())]


def weights_of_labels(seed):
    return torch.rand(C, generator=torch.Generator().manual_seed(seed)) * 3 + 0.1


VECTOR, OTHER = weights_of_labels(1), weights_of_labels(2)
# The kind of targets goes with each: "soft" calls for soft_targets.
KINDS = {"kind": ["hard", "soft", "smoothed"]}
COMBINATIONS = [
    *product(
        loss_type=["bce"],
        **KINDS,
        class_weight=[None, 0.7, VECTOR],
        pos_weight=[None, 3.0, OTHER.tolist()],
        bce_target_thresh=[None, 0.3],
        bce_sum=[False, True],
    ),
    *product(
        loss_type=["asl"],
        **KINDS,
        class_weight=[None, VECTOR],
        pos_weight=[None, OTHER],
        asl_reduction=["batchmean", "sum", "mean", "none"],
    ),
    *product(
        loss_type=["asl"],
        **KINDS,
        asl_gamma_pos=[0.0, 2.0],
        asl_gamma_neg=[0.0, 3.5],
        asl_clip=[None, 0.2],
    ),
    *product(
        loss_type=["poly"],
        **KINDS,
        poly_epsilon=[0.0, 2.0, -1.0],
        poly_gamma=[0.0, 2.0],
        poly_alpha=[None, 0.25, 1.0, 0.0],
    ),
    *product(
        loss_type=["db"],
        **KINDS,
        db_neg_scale=[2.0, 1.0, 5.0],
        db_init_bias=[0.05, 0.0],
        db_focal_gamma=[2.0, 0.0],
    ),
]


def name_of(options):
    return "-".join("vector" if isinstance(v, (torch.Tensor, list)) else str(v) for v in options.values())


def arguments_of(options):
    """The arguments of both factories."""
    options = dict(options)
    kind = options.pop("kind")
    if options["loss_type"] == "db":
        options |= {"class_counts": COUNTS, "num_samples": NUM_SAMPLES}
    options |= {"soft_targets": kind == "soft", "smoothing": 0.2 if kind == "smoothed" else 0.0}
    return options | {"multi_label": True}


def batch(kind, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(N, C, generator=generator) * 3
    targets = (torch.rand(N, C, generator=generator) < 0.2).float()
    targets[0] = 0
    if kind == "soft":
        # Mixup: many stay 0 or 1.
        share = torch.rand(N, 1, generator=generator)
        targets = share * targets + (1 - share) * targets.flip(0)
    return logits.to(dtype).requires_grad_(), targets


def value_and_gradient(loss, logits, targets):
    value = loss(logits, targets)
    # Other upstream gradients than 1.
    upstream = torch.linspace(0.5, 2, value.numel()).reshape(value.shape).to(value.dtype)
    (gradient,) = torch.autograd.grad(value, logits, upstream)
    return value.detach(), gradient


def difference(found, expected):
    """The largest difference, relative to the largest element."""
    return float((found.double() - expected.double()).abs().max() / expected.double().abs().max())


def test_signature_is_that_of_timm():
    ours = inspect.signature(create_classification_loss).parameters
    theirs = inspect.signature(timm_module("_loss_factory").create_classification_loss).parameters
    assert [(p.name, p.default, p.kind) for p in ours.values()] == [
        (p.name, p.default, p.kind) for p in theirs.values()
    ]


def worst(results, others):
    return max(difference(one, other) for one, other in zip(results, others, strict=True))


@pytest.mark.parametrize("options", COMBINATIONS, ids=name_of)
def test_numbers_of_timm(options, monkeypatch):
    """Within 1e-5 of timm, and no further than twice as far as timm from its own formula in float64."""
    arguments = arguments_of(options)
    factory = timm_module("_loss_factory").create_classification_loss
    logits, targets = batch(options["kind"])
    found = value_and_gradient(create_classification_loss(**arguments), logits, targets)
    theirs = value_and_gradient(factory(**arguments), logits, targets)
    assert found[0].shape == theirs[0].shape and worst(found, theirs) < TOLERANCE
    # timm computes in float32 whatever comes.
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    double = logits.detach().double().requires_grad_()
    exact = value_and_gradient(factory(**arguments).double(), double, targets.double())
    assert worst(found, exact) <= 2 * worst(theirs, exact) + 1e-6


@pytest.mark.parametrize("options", [options for options in COMBINATIONS if options["kind"] != "soft"], ids=name_of)
def test_label_ids_are_the_same_targets(options):
    loss = create_classification_loss(**arguments_of(options))
    logits, targets = batch(options["kind"])
    found = value_and_gradient(loss, logits, SparseTargets.from_dense(targets))
    assert worst(found, value_and_gradient(loss, logits, targets)) < 1e-6


# The tests of timm 1.0.31 for these four losses, restated: each loss against an element-wise formula in Python.


def sigmoid(z):
    return 1 / (1 + math.exp(-z))


def each(function, logits, targets):
    rows = zip(logits.tolist(), targets.tolist(), strict=True)
    return torch.tensor([[function(z, y, i) for i, (z, y) in enumerate(zip(*row, strict=True))] for row in rows])


def bce_element(z, y, weight=1.0, pos_weight=1.0):
    return -weight * (pos_weight * y * math.log(sigmoid(z)) + (1 - y) * math.log(1 - sigmoid(z)))


def asl_element(z, y, gamma_pos=1.0, gamma_neg=4.0, clip=0.05):
    right, left = sigmoid(z), min(1 - sigmoid(z) + clip, 1)
    mixture = y * right + (1 - y) * left
    return -(y * math.log(right) + (1 - y) * math.log(left)) * (1 - mixture) ** (y * gamma_pos + (1 - y) * gamma_neg)


def poly_element(z, y, epsilon, gamma, alpha=None):
    wrong = y * (1 - sigmoid(z)) + (1 - y) * sigmoid(z)
    factor = 1.0 if alpha is None else y * alpha + (1 - y) * (1 - alpha)
    return factor * (bce_element(z, y) * wrong**gamma + epsilon * wrong ** (gamma + 1))


def small_batch(rows=4, labels=6):
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(rows, labels, generator=generator) * 3
    return logits, (torch.rand(rows, labels, generator=generator) > 0.6).float()


def test_bce_smooths_dense_targets():
    x, y = torch.tensor([[2.0, -1.0], [0.5, 0.5]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    loss = create_classification_loss(multi_label=True, smoothing=0.2)
    expected = each(lambda z, y, i: bce_element(z, 0.8 * y + 0.1), x, y).mean()
    torch.testing.assert_close(loss(x, y), expected)


def test_soft_targets_are_not_smoothed_again():
    x, y = small_batch()
    mixed = (0.25 * y + 0.75 * y.flip(0)) * 0.8 + 0.1
    loss = create_classification_loss(multi_label=True, smoothing=0.2, soft_targets=True)
    torch.testing.assert_close(loss(x, mixed), each(lambda z, y, i: bce_element(z, y), x, mixed).mean())


def test_asl_reductions_and_smoothing():
    x, y = small_batch()

    def asl(**options):
        return create_classification_loss("asl", multi_label=True, **options)(x, y)

    total = each(lambda z, y, i: asl_element(z, y), x, y).sum()
    torch.testing.assert_close(asl(asl_reduction="sum"), total)
    torch.testing.assert_close(asl(), total / 4)
    torch.testing.assert_close(asl(asl_reduction="mean"), total / 24)
    assert asl(asl_reduction="none").shape == (4, 6)
    for clip in (0.0, None):
        expected = each(lambda z, y, i: asl_element(z, y, clip=0.0), x, y).sum()
        torch.testing.assert_close(asl(asl_clip=clip, asl_reduction="sum"), expected)
    smoothed = each(lambda z, y, i: asl_element(z, 0.8 * y + 0.1), x, y).sum()
    torch.testing.assert_close(asl(smoothing=0.2, asl_reduction="sum"), smoothed)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("options", [{}, {"asl_clip": 0.0}, {"asl_clip": 0.0, "smoothing": 0.1}, {"smoothing": 0.1}])
def test_asl_of_saturated_logits_in_half_precision(dtype, options):
    x = torch.tensor([[-20.0, -12, 9, 3], [18, -18, 0.5, -25]])
    y = torch.tensor([[0.0, 0, 1, 1], [1, 0, 0, 0]])
    loss = create_classification_loss("asl", multi_label=True, **options)
    half = x.to(dtype).requires_grad_()
    value, gradient = value_and_gradient(loss, half, y.to(dtype))
    assert value.dtype == torch.float32 and gradient.dtype == dtype and gradient.isfinite().all()
    torch.testing.assert_close(value, loss(x, y), atol=1e-2, rtol=1e-2)


def test_weights_of_bce_and_asl():
    x, y = small_batch(4, 3)
    weight, pos_weight = [0.5, 1.0, 2.0], [3.0, 1.0, 0.25]
    expected = each(lambda z, y, i: bce_element(z, y, weight[i], pos_weight[i]), x, y).mean()
    given = {"multi_label": True, "class_weight": weight, "pos_weight": torch.tensor(pos_weight)}
    torch.testing.assert_close(create_classification_loss("bce", **given)(x, y), expected)
    plain = {"asl_gamma_pos": 0.0, "asl_gamma_neg": 0.0, "asl_clip": 0.0, "asl_reduction": "mean"}
    torch.testing.assert_close(create_classification_loss("asl", **given, **plain)(x, y), expected)


@pytest.mark.parametrize(("epsilon", "gamma", "alpha"), [(2.0, 0.0, None), (-1.0, 2.0, None), (1.0, 2.0, 0.25)])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_poly_is_the_formula_of_the_paper(epsilon, gamma, alpha, smoothing):
    x, y = small_batch()
    loss = create_classification_loss(
        "poly", multi_label=True, smoothing=smoothing, poly_epsilon=epsilon, poly_gamma=gamma, poly_alpha=alpha
    )
    moved = y * (1 - smoothing) + smoothing / 2
    torch.testing.assert_close(
        loss(x, y), each(lambda z, y, i: poly_element(z, y, epsilon, gamma, alpha), x, moved).mean()
    )


def test_poly_without_its_term_is_bce_and_takes_large_half_precision_logits():
    x, y = small_batch()
    loss = create_classification_loss("poly", multi_label=True, poly_epsilon=0.0)
    torch.testing.assert_close(loss(x, y), nn.functional.binary_cross_entropy_with_logits(x, y))
    half = (x * 10).half().requires_grad_()
    for options in ({"poly_gamma": 2.0}, {"poly_gamma": 2.0, "smoothing": 0.1}):
        value, gradient = value_and_gradient(create_classification_loss("poly", multi_label=True, **options), half, y)
        assert value.dtype == torch.float32 and gradient.isfinite().all()


@pytest.mark.parametrize("scale", [2.0, 5.0, 1.0])
@pytest.mark.parametrize("bias", [0.05, 0.1, 0.0])
@pytest.mark.parametrize("gamma", [2.0, 0.0])
def test_db_is_the_formula_of_the_images_paper(scale, bias, gamma):
    counts, num_samples = [900, 40, 7, 300, 120], 1000
    x, y = small_batch(8, 5)
    y[:, 0] = 1
    rows = iter([sum(1 / counts[i] for i, label in enumerate(row) if label) for row in y.tolist() for _ in counts])

    def element(z, y, i):
        weight = 0.1 + sigmoid(10 * (1 / counts[i] / next(rows) - 0.2))
        t = z - bias / scale * math.log(num_samples / counts[i] - 1)
        right = sigmoid(t) if y else sigmoid(-scale * t)
        focal = 2 * (1 - right) ** gamma if gamma else 1
        return weight * focal * -math.log(right) / (1 if y else scale)

    loss = create_classification_loss(
        "db",
        True,
        class_counts=counts,
        num_samples=num_samples,
        db_neg_scale=scale,
        db_init_bias=bias,
        db_focal_gamma=gamma,
    )
    torch.testing.assert_close(loss(x, y), each(element, x, y).mean())


@pytest.mark.filterwarnings("ignore:counts:UserWarning")
def test_db_with_labels_of_nobody_and_everybody_empty_rows_and_soft_targets():
    loss = create_classification_loss("db", True, class_counts=[0, 5, 10], num_samples=10)
    x = (small_batch(4, 3)[0] * 7).half().requires_grad_()
    y = torch.tensor([[0.0, 0, 0], [1, 0, 1], [0.3, 0.7, 0], [0, 1, 1]])
    value, gradient = value_and_gradient(loss, x, y)
    assert value.dtype == torch.float32 and value.isfinite() and gradient.isfinite().all()


# What is ours alone.


def mixing_losses():
    return [
        {"loss_type": "asl"},
        {"loss_type": "asl", "asl_clip": None, "asl_gamma_pos": 0.5, "asl_gamma_neg": 2.0},
        {"loss_type": "poly", "poly_gamma": 2.0, "poly_alpha": 0.3},
    ]


@pytest.mark.parametrize("options", mixing_losses(), ids=name_of)
def test_mixed_formula_is_the_fused_one_for_zeros_and_ones(options, monkeypatch):
    logits, targets = batch("hard")
    ids = SparseTargets.from_dense(targets)
    fused = create_classification_loss(**options, multi_label=True)
    mixed = create_classification_loss(**options, multi_label=True, soft_targets=True)
    assert worst(value_and_gradient(mixed, logits, targets), value_and_gradient(fused, logits, targets)) < 1e-6
    torch.testing.assert_close(mixed(logits, targets.bool()), fused(logits, targets.to(torch.int8)))
    # No dense targets are made of label ids.
    monkeypatch.setattr(SparseTargets, "to_dense", None)
    torch.testing.assert_close(mixed(logits, ids), fused(logits, ids))


@pytest.mark.parametrize("options", mixing_losses(), ids=name_of)
def test_gradient_of_the_mixed_formula(options):
    logits, targets = batch("soft", torch.float64)
    loss = create_classification_loss(**options, multi_label=True, soft_targets=True)
    few = logits.detach()[:3, :7].requires_grad_()
    assert torch.autograd.gradcheck(lambda z: loss(z, targets[:3, :7]), few)
    loss.reduction = "none"
    assert torch.autograd.gradcheck(lambda z: loss(z, targets[:3, :7]), few)
    with pytest.raises(RuntimeError, match="create_graph"):
        torch.autograd.grad(loss(few, targets[:3, :7]).sum(), few, create_graph=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_kernel_of_the_mixed_formula_is_there_where_that_of_the_loss_is(dtype):
    """Without it all tests pass with operators."""
    logits, targets = batch("soft", dtype)
    balanced_loss(logits, targets, LossSpec(), impl="cpp")
    assert mixed_targets_cpp.can_take(logits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("options", mixing_losses(), ids=name_of)
def test_kernel_and_operators_of_the_mixed_formula(options, dtype, monkeypatch):
    """The kernel is off from float64 by at most twice what the operators are, and some units of the last digit."""
    weights = {"class_weight": VECTOR, "pos_weight": OTHER} if options["loss_type"] == "asl" else {}
    loss = create_classification_loss(**options, **weights, multi_label=True, soft_targets=True)
    logits, targets = batch("soft", dtype)
    found = value_and_gradient(loss, logits, targets)
    monkeypatch.setattr(mixed_targets_cpp, "can_take", lambda logits: False)
    plain = value_and_gradient(loss, logits, targets)
    exact = value_and_gradient(loss, logits.detach().double().requires_grad_(), targets.double())
    for one, other, right in zip(found, plain, exact, strict=True):
        assert one.dtype == other.dtype
        # In float64 the operators are what is compared with.
        digits = (16 if dtype == torch.float64 else 4) * torch.finfo(one.dtype).eps
        assert difference(one, right) <= 2 * difference(other, right) + digits


@pytest.mark.parametrize("shape", [(1, 1), (3, 1), (2, 15), (5, 16), (4, 33), (2, 1000), (0, 7)])
@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_kernel_of_the_mixed_formula_takes_any_shape_and_memory(shape, reduction, monkeypatch):
    generator = torch.Generator().manual_seed(5)
    loss = create_classification_loss("asl", True, soft_targets=True, asl_reduction=reduction)
    wide, soft = torch.randn(shape[0], 2 * shape[1], generator=generator), torch.rand(*shape[::-1], generator=generator)
    forms = [
        (wide[:, : shape[1]], soft.t()),
        (wide[:, ::2], soft.t().double()),
        (wide[:1, : shape[1]].expand(shape), soft.t()),
    ]
    if not shape[0]:
        forms = forms[:2]
    results = {}
    for kernel in (True, False):
        if not kernel:
            monkeypatch.setattr(mixed_targets_cpp, "can_take", lambda logits: False)
        results[kernel] = [value_and_gradient(loss, z.detach().requires_grad_(), y) for z, y in forms]
    for mine, other in zip(results[True], results[False], strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)


def test_kernel_of_the_mixed_formula_on_several_threads():
    loss = create_classification_loss("asl", True, smoothing=0.1)
    logits = torch.randn(3, 40_000).requires_grad_()
    targets = (torch.rand(3, 40_000) < 0.01).to(torch.uint8)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(value_and_gradient(loss, logits, targets))
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(results[1], results[0])
    torch.testing.assert_close(results[2], results[0])


@pytest.mark.parametrize("options", mixing_losses(), ids=name_of)
def test_infinite_logits_give_no_nan(options):
    loss = create_classification_loss(**options, multi_label=True, soft_targets=True)
    loss.reduction = "none"
    logits = torch.tensor([[math.inf, -math.inf, math.inf, -math.inf, math.nan]], requires_grad=True)
    value, gradient = value_and_gradient(loss, logits, torch.tensor([[1.0, 0, 0.5, 0.5, 1]]))
    assert value[0, :2].tolist() == [0, 0] and value[0, 2:4].isfinite().all() and value[0, 4].isnan()
    assert gradient[0, :4].isfinite().all() and gradient[0, 4].isnan()


@pytest.mark.slow
@pytest.mark.parametrize("options", [*mixing_losses(), {"loss_type": "bce", "bce_target_thresh": 0.4}], ids=name_of)
@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_compiles_without_a_graph_break(options, kind):
    logits, targets = batch(kind)
    loss = create_classification_loss(**options, multi_label=True, soft_targets=kind == "soft")
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    assert worst(value_and_gradient(compiled, logits, targets), value_and_gradient(loss, logits, targets)) < 1e-6


def test_soft_targets_of_a_loss_for_hard_ones_are_told():
    logits, targets = batch("soft")
    loss = create_classification_loss("asl", multi_label=True)
    with pytest.raises(ValueError, match=r"^targets: expected 0 and 1, .* soft_targets=True$"):
        loss(logits, targets)
    # Where values cannot be looked at, the loss is NaN.
    assert torch.compile(loss, fullgraph=True, backend="aot_eager")(logits, targets).isnan()


@pytest.mark.parametrize("masked", [{"label_mask": torch.arange(C) > 4}, {"ignore_index": -100}])
def test_masked_targets_may_be_anything(masked):
    logits, targets = batch("hard")
    marked = targets.clone()
    marked[:, :5] = -100
    loss = create_classification_loss("asl", True, asl_reduction="sum")
    found = value_and_gradient(lambda z, y: loss(z, y, **masked), logits, marked)
    part = value_and_gradient(lambda z, y: loss(z[:, 5:], y[:, 5:]), logits, targets)
    assert worst(found, part) < 1e-6
    with pytest.raises(ValueError, match=r"^targets: expected 0 and 1"):
        loss(logits, marked.clone().fill_(0.5), **masked)


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_more_dimensions_are_more_samples(kind):
    logits, targets = batch(kind)
    loss = create_classification_loss("asl", True, soft_targets=kind == "soft")
    torch.testing.assert_close(loss(logits.view(3, 4, C), targets.view(3, 4, C)), loss(logits, targets))


def test_weights_move_and_save_with_the_module():
    loss = create_classification_loss("asl", True, class_weight=VECTOR, pos_weight=OTHER.tolist())
    other = create_classification_loss("asl", True, class_weight=OTHER, pos_weight=VECTOR)
    other.load_state_dict(loss.state_dict())
    logits, targets = batch("hard")
    assert other(logits, targets) == loss(logits, targets)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"multi_label": False}, r"^multi_label: expected True; .* timm\.loss\.create_classification_loss$"),
        ({"loss_type": "focal"}, r"^loss_type: expected one of 'bce', 'asl', 'poly', 'db'; got 'focal'$"),
        ({"loss_type": "ce"}, "^loss_type: expected one of"),
        (
            {"loss_type": "twoway"},
            r"^loss_type: 'twoway' .* timm\.loss\.TwoWayLoss, which couples the labels of a sample",
        ),
        ({"loss_type": "zlpr"}, r"^loss_type: 'zlpr' .* timm\.loss\.ZlprLoss"),
        ({"loss_type": "asl", "bce_sum": True}, "^bce_target_thresh, bce_sum: expected none for 'asl'$"),
        ({"loss_type": "db", "bce_target_thresh": 0.5}, "^bce_target_thresh, bce_sum: expected none for 'db'$"),
        ({"loss_type": "poly", "class_weight": [1.0, 2.0]}, "^class_weight, pos_weight: expected none for 'poly'"),
        ({"loss_type": "db", "pos_weight": 2.0}, "^class_weight, pos_weight: expected none for 'db'"),
        ({"loss_type": "asl", "asl_reduction": "max"}, "^reduction: expected one of"),
        ({"loss_type": "db"}, "^class_counts, num_samples: expected both for 'db'"),
        ({"loss_type": "bce", "num_samples": 4}, "^class_counts, num_samples: expected none for 'bce'$"),
        (
            {"loss_type": "db", "class_counts": [3, 5], "num_samples": 4},
            r"^counts: expected integers in \[0, num_samples",
        ),
        ({"loss_type": "db", "class_counts": [3, 1], "num_samples": 4, "db_neg_scale": 0.0}, "^db_neg_scale: expected"),
        ({"smoothing": 1.0}, r"^smoothing: expected a number in \[0, 1\), got 1.0$"),
        ({"loss_type": "poly", "poly_alpha": 1.5}, r"^poly_alpha: expected a number in \[0, 1\], got 1.5$"),
        ({"loss_type": "poly", "poly_epsilon": -2.0}, "^poly_epsilon: expected a number >= -1"),
        ({"class_weight": "inv_freq"}, r"^class_weight: expected a number .* class_weights\(statistics, 'inv_freq'\)"),
        ({"class_weight": [1.0, -1.0]}, "^weight: expected finite numbers >= 0"),
        ({"pos_weight": float("nan")}, "^pos_weight: expected a finite number >= 0"),
        ({"loss_type": "asl", "asl_gamma_pos": -1.0}, "^asl_gamma_pos: expected"),
        ({"loss_type": "asl", "asl_clip": 1.5}, "^asl_clip: expected"),
        ({"loss_type": "poly", "poly_gamma": math.inf}, "^poly_gamma: expected"),
    ],
)
def test_bad_settings(options, message):
    with pytest.raises(ValueError, match=message):
        create_classification_loss(**{"multi_label": True} | options)


def test_bad_targets():
    logits, targets = batch("soft")
    asl = create_classification_loss("asl", True, soft_targets=True)
    with pytest.raises(
        ValueError, match=r"^targets: expected the shape of the logits, \[12, 37\], got \[12\]; for ind"
    ):
        asl(logits, torch.zeros(12, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"^targets: expected a number in \[0, 1\], got -1.0 at \[0, 0\]$"):
        asl(logits, targets.clone().index_fill_(1, torch.tensor([0]), -1.0))
    with pytest.raises(ValueError, match=r"^sample_weight, label_mask, ignore_index: expected none with"):
        asl(logits, targets, sample_weight=torch.ones(12))
    for kind in ("bce", "asl"):
        with pytest.raises(ValueError, match=r"^weight: expected shape \[37\]"):
            create_classification_loss(kind, True, soft_targets=True, class_weight=[1.0, 2.0])(logits, targets)
    with pytest.raises(ValueError, match=r"^targets: expected 0 or 1, got 2 at \[1, 3\]$"):
        asl(logits, targets.round().to(torch.int64).index_put_((torch.tensor(1), torch.tensor(3)), torch.tensor(2)))
    with pytest.raises(TypeError, match=r"^logits: expected"):
        asl(logits.detach().long(), targets)
    with pytest.raises(ValueError, match=r"^targets: expected a tensor without gradient"):
        asl(logits, targets.clone().requires_grad_())
    with pytest.raises(ValueError, match=r"^logits: expected at least one sample"):
        asl(logits[:0], targets[:0])


@pytest.mark.parametrize("loss_type", ["bce", "asl"])
def test_ignored_targets_are_ignored_before_anything_else(loss_type):
    logits, targets = torch.randn(3, 5), torch.eye(3, 5)
    settings = {"bce_target_thresh": 0.2} if loss_type == "bce" else {"asl_reduction": "mean"}
    loss = create_classification_loss(loss_type, multi_label=True, **settings)
    masked = targets.masked_fill(targets == 0, -5.0)
    kept = targets == 1
    expected = loss(logits, targets, label_mask=kept)
    torch.testing.assert_close(loss(logits, masked, ignore_index=-5), expected)
    torch.testing.assert_close(loss(logits, masked.numpy(), ignore_index=np.int64(-5)), expected)


def test_soft_targets_are_refused_in_every_form():
    logits, soft = torch.randn(3, 5), torch.eye(3, 5) * 0.5
    loss = create_classification_loss("asl", multi_label=True)
    for given, more in ((soft, {}), (soft.numpy(), {}), (soft, {"label_mask": soft > 0}), (soft, {"ignore_index": -1})):
        with pytest.raises(ValueError, match=r"^targets: expected 0 and 1"):
            loss(logits, given, **more)
    mixed = create_classification_loss("asl", multi_label=True, soft_targets=True)
    torch.testing.assert_close(mixed(logits, soft.numpy()), mixed(logits, soft))


@pytest.mark.parametrize("value", [math.nan, 7.0, -0.5])
def test_a_threshold_hides_no_invalid_target(value):
    logits, targets = torch.randn(3, 5), torch.eye(3, 5)
    targets[1, 2] = value
    with pytest.raises(ValueError, match=r"^targets: expected a number in"):
        create_classification_loss("bce", multi_label=True, bce_target_thresh=0.2)(logits, targets)
