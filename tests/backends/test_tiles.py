"""Tiles of the Triton kernel with no label, few and many: both ways through its loop agree with the equations."""

import math

import pytest
import torch
from oracle import assert_within_rule, elements, plain
from test_losses import DIGITS, loss_and_gradient, problem

from fused_balanced_loss import LabelStatistics, LossSpec, SparseTargets, balanced_loss
from fused_balanced_loss.backends.aligned_copies import aligned_copies
from fused_balanced_loss.backends.constants import MOST_KEPT, constants_key, label_constants
from fused_balanced_loss.backends.problem import LabelConstants, Problem
from fused_balanced_loss.backends.triton_grid import grid, layout, reciprocal
from fused_balanced_loss.backends.triton_plan import Plan

pytestmark = pytest.mark.slow

DB = LossSpec.preset("DB", corpus="reuters")
FORMS = {"uint8": lambda y: y.byte(), "float": lambda y: y.float(), "csr": SparseTargets.from_dense}
WIDTH = 601  # Two tiles and a part, rows at every offset to 16 bytes.


@pytest.fixture(params=["terms made here", "terms made before"])
def terms(request, monkeypatch):
    """Both ways to a row's terms: in the kernel, as for few rows, and by a launch of their own, as for many."""
    monkeypatch.setattr("fused_balanced_loss.backends.triton_plan.WAVES", int(request.param == "terms made here"))


def crowded(dtype, seed=5):
    """Rows with no label, all labels, one, forty in one tile, the first and last column, and a few anywhere."""
    logits, targets, statistics = problem(6, WIDTH, dtype=dtype, scale=4.0, seed=seed)
    targets[:5] = False
    targets[1] = True
    targets[2, 300] = True
    targets[3, 260:300] = True
    targets[4, 0] = targets[4, -1] = True
    return logits, targets, statistics


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["DB", "CB-NTR", "DB-0FL", "ASL"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.usefixtures("terms")
def test_error_is_at_most_twice_that_of_plain_torch(dtype, name, form, device):
    logits, targets, statistics = crowded(dtype)
    spec = LossSpec.preset(name, corpus="reuters")
    expected, gradient = elements(logits, targets, statistics.counts, statistics.num_samples, spec)
    loss, ours = loss_and_gradient(
        logits, FORMS[form](targets), statistics, spec, device, reduction="sum", impl="triton"
    )
    torch.testing.assert_close(loss.double(), expected.sum(), rtol=1e-6, atol=0)
    if name == "ASL":  # whose margin the plain formula does not have
        torch.testing.assert_close(ours.double(), gradient, rtol=2 * DIGITS[dtype], atol=1e-6)
        return
    _, plain_gradient = plain(logits.float(), targets, statistics, spec)
    error = (plain_gradient.to(dtype).double() - gradient).abs()
    assert_within_rule(ours, error, gradient, DIGITS[dtype])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("beta", "mu"), [(30, 0.9), (60, 0.9), (200, 0.9), (3000, 0.02)])
@pytest.mark.usefixtures("terms")
def test_steep_weights_keep_their_digits(beta, mu, form, device):
    """The exponent of the weight, beta * (r - mu), is small where beta * r and beta * mu are large."""
    logits, targets, statistics = crowded(torch.float32)
    # Two and more labels of a row, whose r lie about mu.
    targets[5] = False
    targets[5, [100, 101]] = True
    counts = statistics.counts.clone()
    counts[100:102] = torch.tensor([40, 365]) if mu == 0.9 else torch.tensor([8, 391])
    statistics = LabelStatistics.from_counts(counts, statistics.num_samples, degenerate="ignore")
    spec = LossSpec(weighting="rebalanced", gamma=2, beta=beta, mu=mu)
    expected, gradient = elements(logits, targets, statistics.counts, statistics.num_samples, spec)
    plain_loss, plain_gradient = plain(logits, targets, statistics, spec)
    for reduction in ("none", "sum"):
        loss, ours = loss_and_gradient(
            logits, FORMS[form](targets), statistics, spec, device, reduction=reduction, impl="triton"
        )
        if reduction == "none":
            assert_within_rule(loss, (plain_loss.double() - expected).abs(), expected, DIGITS[torch.float32])
        assert_within_rule(ours, (plain_gradient.double() - gradient).abs(), gradient, DIGITS[torch.float32])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("mode", ["forward", "backward", "in_place"])
@pytest.mark.parametrize("reduction", ["sum", "none"])
@pytest.mark.usefixtures("terms")
def test_every_form_of_the_kernel(reduction, mode, form, device):
    """float64, with a label mask, weights of samples, and an upstream gradient."""
    if reduction == "none" and mode != "backward":
        pytest.skip("a sum has its gradient made in the forward, elements have not")
    logits, targets, statistics = crowded(torch.float64)
    weight = torch.rand(6, dtype=torch.float64)
    mask = torch.rand(6, WIDTH) < 0.8
    upstream = torch.rand(6, WIDTH, dtype=torch.float64) if reduction == "none" else torch.tensor(-2.0).double()
    expected, gradient = elements(logits, targets, statistics.counts, statistics.num_samples, DB, weight)
    z = logits.to(device).requires_grad_()
    loss = balanced_loss(
        z * 1, FORMS[form](targets).to(device), DB, statistics, sample_weight=weight.to(device),
        label_mask=mask.to(device), reduction=reduction, impl="triton", gradient=mode,
    )  # fmt: skip
    (ours,) = torch.autograd.grad(loss, z, upstream.to(device))
    expected = torch.where(mask, expected, 0)
    if reduction == "sum":
        torch.testing.assert_close(loss.detach().cpu(), expected.sum(), rtol=1e-12, atol=0)
    else:
        torch.testing.assert_close(loss.detach().cpu(), expected, rtol=1e-11, atol=1e-14)
    torch.testing.assert_close(ours.cpu(), torch.where(mask, gradient * upstream, 0), rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("value", [math.inf, 1e4, 60.0, 20.0, -20.0, -1e4, -math.inf, math.nan])
def test_extreme_logit_at_a_label(value, form, device):
    """A label's loss as a negative, huge where its logit is, must leave no trace in a sum that is small."""
    targets = torch.zeros(3, WIDTH, dtype=torch.bool)
    targets[0, 5] = targets[0, 280] = targets[1, 590] = True
    logits = torch.full((3, WIDTH), -1.0)
    logits[targets] = value
    _, _, statistics = problem(3, WIDTH)
    expected, gradient = loss_and_gradient(
        logits.double(), targets, statistics, DB, device, impl="reference", reduction="sum"
    )
    loss, ours = loss_and_gradient(logits, FORMS[form](targets), statistics, DB, device, impl="triton", reduction="sum")
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=0, equal_nan=True)
    torch.testing.assert_close(ours.double(), gradient, rtol=1e-5, atol=1e-12, equal_nan=True)
    assert torch.isnan(ours).sum() == (3 if math.isnan(value) else 0)


@pytest.mark.parametrize("team", [2, 16, 128])
def test_sum_over_teams_of_programs(team, device, monkeypatch):
    monkeypatch.setattr("fused_balanced_loss.backends.triton_plan.TEAM", team)
    logits, targets, statistics = crowded(torch.float64)
    for form in FORMS.values():
        for spec in (DB, LossSpec()):
            expected, _ = elements(logits, targets, statistics.counts, statistics.num_samples, spec)
            loss = balanced_loss(
                logits.to(device), form(targets).to(device), spec, statistics, reduction="sum", impl="triton"
            )
            torch.testing.assert_close(loss.cpu(), expected.sum(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("form", FORMS)
def test_bits_repeat(form, device):
    logits, targets, statistics = crowded(torch.bfloat16)
    given = FORMS[form](targets)
    first, second = (loss_and_gradient(logits, given, statistics, DB, device, impl="triton") for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


@pytest.mark.parametrize("form", ["csr", "uint8"])
@pytest.mark.parametrize("rows", [1, 40, 90])
@pytest.mark.usefixtures("terms")
def test_programs_take_several_rows(rows, form, device, monkeypatch):
    """Strips of rows on a device that holds few programs at once; narrow rows; rows without a fringe."""
    monkeypatch.setattr("fused_balanced_loss.backends.device.num_processors", lambda device: 1)
    for width in (90, 264):
        logits, targets, statistics = problem(rows, width, dtype=torch.float64)
        expected, gradient = elements(logits, targets, statistics.counts, statistics.num_samples, DB)
        loss, ours = loss_and_gradient(
            logits, FORMS[form](targets), statistics, DB, device, reduction="sum", impl="triton"
        )
        torch.testing.assert_close(loss, expected.sum(), rtol=1e-12, atol=0)
        torch.testing.assert_close(ours, gradient, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("width", [257, 1003, 4099])
@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float16, torch.float32])
def test_row_sums_of_dense_targets(dtype, width, device):
    """Rows cut into parts of whole accesses, with labels in the first and the last columns, at any distance of rows."""
    rows = 5
    logits, targets, statistics = problem(rows, width)
    targets[:, :3] = targets[:, -2:] = True
    padded = torch.full((rows, width + 3), 1).to(dtype)
    padded[:, :width] = targets
    expected, _ = loss_and_gradient(logits.double(), targets, statistics, DB, device, impl="reference")
    loss, _ = loss_and_gradient(logits, padded[:, :width], statistics, DB, device, impl="triton")
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=0)


def test_a_plan_divides_by_multiplying():
    for divisor in (1, 2, 3, 7, 64, 1000, 12345, 1 << 20, (1 << 31) - 1):
        magic, shift = reciprocal(divisor)
        for number in (0, 1, divisor - 1, divisor, divisor + 1, 123456789, (1 << 31) - 1):
            if number < 1 << 31:
                assert (2 * number * (magic % (1 << 32)) >> 32) >> shift == number // divisor


@pytest.mark.parametrize("rows", [1, 32, 64, 256, 1024, 4096])
def test_programs_come_in_whole_waves(rows):
    """On 132 processors of 32 programs each, the last wave is at least two thirds full where there is more than one."""
    cut = layout(18211, 18211, 2, 32)
    programs = grid(rows, 18211, cut, 132 * 32)
    waves = programs.num_strips * cut.num_tiles / (132 * 32)
    assert waves <= 1 or waves / -(-waves // 1) > 2 / 3
    assert programs.num_fringe * 64 >= rows * 16


def test_numbers_beyond_int32_are_refused():
    logits = torch.zeros(1).expand(1, 1 << 31)
    targets = torch.zeros(1, dtype=torch.bool).expand(1, 1 << 31)
    given = Problem(logits, targets, LossSpec(), LabelConstants(None, None, None))
    with pytest.raises(ValueError, match="expected fewer rows, labels or label ids"):
        Plan(given)


def test_copies_of_the_constants():
    """Each begins one label later; what is kept of them is bounded, and a chunk of the labels has none."""
    logits, targets, statistics = problem(2, 300)
    key = constants_key(DB, torch.float32, logits.device)
    labels = label_constants(statistics, DB, torch.float32, logits.device)
    given = Problem(logits, targets, DB, labels, statistics=statistics)
    for lam in range(1, 20):
        copies = aligned_copies(given, key, (8, 512, float(lam), *key))
        assert len(statistics.cache) <= MOST_KEPT and statistics.cache[key] is labels
        assert aligned_copies(given, key, (8, 512, float(lam), *key)) is copies
        for h in range(8):
            assert torch.equal(copies.bias[h, : 300 - h], labels.bias[h:] * lam)
            assert torch.equal(copies.inverse_frequency[h, : 300 - h], labels.inverse_frequency[h:])
        assert (copies.inverse_frequency[:, 300:] == 1).all() and (copies.bias[:, 300:] == 0).all()
    chunk = given._replace(labels=labels._replace(bias=labels.bias[:100]))
    assert aligned_copies(chunk, key, (8, 512, 1.0, *key)) is None
