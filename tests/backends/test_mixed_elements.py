"""Triton: the caller's weights, soft targets, label smoothing and Poly-1, in tiles with labels and without.

The truth is the reference in float64, and the yardstick of the error rule the closed form in float32.
"""

import math

import pytest
import torch
from agreement import assert_same_but_for_rounding
from oracle import assert_within_rule
from test_losses import DIGITS, loss_and_gradient, problem

from fused_balanced_loss import BalancedLoss, LossSpec, SparseTargets, balanced_loss, linear_balanced_loss
from fused_balanced_loss.backends.constants import label_constants
from fused_balanced_loss.backends.problem import Problem
from fused_balanced_loss.backends.select import select

pytestmark = pytest.mark.slow

DB = LossSpec.preset("DB", corpus="reuters")
WIDTH = 601  # Two tiles and a part, rows at every offset to 16 bytes.
SPECS = {
    "DB": DB,
    "DB smoothed": DB.replace(label_smoothing=0.1),
    "CB smoothed": LossSpec.preset("CB-NTR").replace(label_smoothing=0.3),
    "BCE smoothed": LossSpec(label_smoothing=0.2),
    "FL with Poly-1": LossSpec(gamma=2, poly_epsilon=1.5, lam=0.7),
    "ASL smoothed, with Poly-1": LossSpec.preset("ASL").replace(label_smoothing=0.05, poly_epsilon=-0.5),
    "margin without focus, Poly-1": LossSpec(probability_margin=0.2, poly_epsilon=1.0),
}
FORMS = {
    "soft": lambda y: y,
    "soft float16": lambda y: y.half(),
    "uint8": lambda y: (y > 0).byte(),
    "csr": lambda y: SparseTargets.from_dense(y > 0),
}


@pytest.fixture(params=["terms made here", "terms made before"])
def terms(request, monkeypatch):
    """Both ways to a row's terms: in the kernel, as for few rows, and by a launch of their own, as for many."""
    monkeypatch.setattr("fused_balanced_loss.backends.triton_plan.WAVES", int(request.param == "terms made here"))


def crowded(dtype, seed=5, width=WIDTH):
    """Rows with no label, all labels, one, forty in one tile, the first and last column; shares of 0, 1 and between."""
    logits, targets, statistics = problem(6, width, dtype=dtype, scale=4.0, seed=seed)
    targets[:5] = False
    targets[1] = True
    targets[2, width // 2] = True
    targets[3, width // 3 : width // 3 + 40] = True
    targets[4, 0] = targets[4, -1] = True
    generator = torch.Generator().manual_seed(seed)
    shares = torch.rand(targets.shape, generator=generator).clamp(min=0.01)
    shares = torch.where(torch.rand(targets.shape, generator=generator) < 0.3, 1.0, shares)
    return logits, torch.where(targets, shares, 0.0), statistics


def weights_of(width=WIDTH):
    generator = torch.Generator().manual_seed(1)
    return {name: torch.rand(width, generator=generator) * 3 for name in ("weight", "pos_weight")}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", SPECS)
@pytest.mark.usefixtures("terms")
def test_equals_the_equations_in_float64(name, form, device):
    logits, shares, statistics = crowded(torch.float64)
    given, weights = FORMS[form](shares), weights_of()
    for options in ({}, {"pos_weight": weights["pos_weight"]}, weights):
        expected = loss_and_gradient(
            logits, given, statistics, SPECS[name], torch.device("cpu"), reduction="sum", impl="reference", **options
        )
        options = {key: value.to(device) for key, value in options.items()}
        ours = loss_and_gradient(
            logits, given, statistics, SPECS[name], device, reduction="sum", impl="triton", **options
        )
        torch.testing.assert_close(ours[0], expected[0], rtol=1e-11, atol=0)
        torch.testing.assert_close(ours[1], expected[1], rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_error_is_at_most_twice_that_of_plain_torch(dtype, name, form, device):
    logits, shares, statistics = crowded(dtype)
    given, weights = FORMS[form](shares), weights_of()
    expected, gradient = loss_and_gradient(
        logits.double(), given, statistics, SPECS[name], torch.device("cpu"), reduction="sum", impl="reference",
        **weights,
    )  # fmt: skip
    _, plain_gradient = loss_and_gradient(
        logits.float(), given, statistics, SPECS[name], torch.device("cpu"), reduction="sum", impl="eager", **weights
    )
    loss, ours = loss_and_gradient(
        logits, given, statistics, SPECS[name], device, reduction="sum", impl="triton",
        **{key: value.to(device) for key, value in weights.items()},
    )  # fmt: skip
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=0)
    error = (plain_gradient.to(dtype).double() - gradient).abs()
    assert_within_rule(ours, error, gradient, DIGITS[dtype])


@pytest.mark.parametrize("form", ["soft", "csr"])
@pytest.mark.parametrize("name", ["DB", "DB smoothed"])
@pytest.mark.parametrize("mode", ["forward", "backward", "none"])
def test_every_form_of_the_kernel(mode, name, form, device):
    """float64, with a label mask, weights of samples and labels, and an upstream gradient."""
    logits, shares, statistics = crowded(torch.float64)
    generator = torch.Generator().manual_seed(3)
    mask = torch.rand(6, WIDTH, generator=generator) < 0.8
    if form == "soft":
        shares = torch.where(mask, shares, -7.0)
    upstream = torch.randn(6, WIDTH, generator=generator).double() if mode == "none" else torch.tensor(-2.0).double()
    options = {**weights_of(), "sample_weight": torch.rand(6, generator=generator), "label_mask": mask}
    results = []
    for impl, where in (("reference", torch.device("cpu")), ("triton", device)):
        z = logits.to(where).requires_grad_()
        loss = balanced_loss(
            z, FORMS[form](shares).to(where), SPECS[name], statistics, impl=impl,
            reduction="none" if mode == "none" else "sum", gradient="auto" if mode == "none" else mode,
            **{key: value.to(where) for key, value in options.items()},
        )  # fmt: skip
        (gradient,) = torch.autograd.grad(loss, z, upstream.to(where))
        results.append((loss.detach().cpu(), gradient.cpu()))
    torch.testing.assert_close(results[1][0], results[0][0], rtol=1e-11, atol=1e-14)
    torch.testing.assert_close(results[1][1], results[0][1], rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("width", [90, WIDTH])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_infinite_logits(share, smoothing, width, device):
    """A part without share makes no NaN of its infinity; another part makes the loss infinite."""
    logits, _, statistics = problem(2, width)
    targets = torch.zeros(2, width)
    targets[0, :4] = targets[1, -4:] = share
    # The last are of a fringe, or of the last group of a tile.
    logits[0, :2] = logits[1, -2:] = torch.tensor([math.inf, -math.inf])
    spec = DB.replace(label_smoothing=smoothing)
    options = {"reduction": "none", "pos_weight": 2.0}
    expected = loss_and_gradient(
        logits.double(), targets, statistics, spec, torch.device("cpu"), impl="reference", **options
    )
    ours = loss_and_gradient(logits, targets, statistics, spec, device, impl="triton", **options)
    for mine, truth in zip(ours, expected, strict=True):
        # The slopes of the two parts have opposite signs, and are of order 1.
        torch.testing.assert_close(mine.double(), truth, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_targets_outside_the_unit_interval_are_nan(smoothing, device):
    logits, shares, statistics = crowded(torch.float32)
    wrong = torch.zeros(shares.shape, dtype=torch.bool)
    for place, value in {(1, 7): 1.5, (2, 300): -0.25, (5, 0): math.nan, (0, WIDTH - 1): math.inf}.items():
        shares[place], wrong[place] = value, True
    spec = DB.replace(label_smoothing=smoothing)
    labels = label_constants(statistics, spec, torch.float32, device)
    given = Problem(logits.to(device), shares.to(device), spec, labels, statistics=statistics)
    backend = select("triton", given)
    loss = backend.value(given, "none").cpu()
    gradient = backend.gradient(given, torch.ones((), device=device)).cpu()
    assert torch.equal(loss.isnan(), wrong) and torch.equal(gradient.isnan(), wrong)
    # They count nowhere in the sum of their row.
    kept = shares.masked_fill(wrong, 0.0)
    expected, _ = loss_and_gradient(logits, kept, statistics, spec, device, impl="triton", reduction="none")
    torch.testing.assert_close(loss[~wrong], expected[~wrong], rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("width", [90, 257, 1003])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_row_sums_of_soft_targets(dtype, width, device):
    """Rows cut into parts of whole accesses, with shares in the first and the last columns, at any distance of rows."""
    logits, shares, statistics = crowded(torch.float32, width=width)
    shares[:, :3] = shares[:, -2:] = 0.25
    padded = torch.full((6, width + 3), 7.0).to(dtype)
    padded[:, :width] = shares
    given = padded[:, :width]
    expected, _ = loss_and_gradient(logits.double(), given.double(), statistics, DB, device, impl="reference")
    loss, _ = loss_and_gradient(logits, given, statistics, DB, device, impl="triton")
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=0)


def test_hard_floating_targets_are_labels(device):
    logits, shares, statistics = crowded(torch.float32)
    hard = shares > 0
    options = {"impl": "triton", "reduction": "none", "pos_weight": 3.0}
    expected = loss_and_gradient(logits, hard, statistics, DB, device, **options)
    for dtype in (torch.float16, torch.float32):
        ours = loss_and_gradient(logits, hard.to(dtype), statistics, DB, device, **options)
        assert_same_but_for_rounding(ours, expected)


@pytest.mark.parametrize("form", ["soft", "csr"])
@pytest.mark.parametrize("chunk_size", [None, 128])
def test_chunks_of_a_classifier(chunk_size, form, device):
    _, shares, statistics = crowded(torch.float32, width=300)
    features, weight = torch.randn(6, 16), torch.randn(300, 16)
    bias, spec = torch.randn(300), DB.replace(label_smoothing=0.1)
    weights = weights_of(300)
    targets = FORMS[form](shares)

    def step(dtype, where, impl, chunks):
        leaves = [tensor.to(where, dtype).requires_grad_() for tensor in (features, weight, bias)]
        factors = {name: value.to(where) for name, value in weights.items()}
        if chunks is False:
            logits = torch.nn.functional.linear(*leaves)
            loss = balanced_loss(logits, targets.to(where), spec, statistics, impl=impl, **factors)
        else:
            loss = linear_balanced_loss(
                *leaves, targets.to(where), spec, statistics, class_weight=factors["weight"],
                pos_weight=factors["pos_weight"], impl=impl, chunk_size=chunks,
            )  # fmt: skip
        return loss.detach().cpu().double(), *(one.cpu().double() for one in torch.autograd.grad(loss, leaves))

    expected = step(torch.float64, torch.device("cpu"), "reference", False)
    for ours, truth in zip(step(torch.float32, device, "triton", chunk_size), expected, strict=True):
        torch.testing.assert_close(ours, truth, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("form", ["soft", "csr"])
def test_under_torch_compile(form, device):
    logits, shares, statistics = crowded(torch.float32, width=300)
    given = FORMS[form](shares).to(device)
    factors = weights_of(300)
    module = BalancedLoss(DB.replace(label_smoothing=0.1, poly_epsilon=0.5), statistics, impl="triton", **factors)
    module = module.to(device)
    results = []
    for run in (module, torch.compile(module, fullgraph=True)):
        z = logits.to(device).requires_grad_()
        loss = run(z, given)
        loss.backward()
        results.append((loss.detach(), z.grad))
    torch.testing.assert_close(results[1][0], results[0][0], rtol=1e-5, atol=0)
    torch.testing.assert_close(results[1][1], results[0][1], rtol=1e-4, atol=1e-8)
