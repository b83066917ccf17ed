"""The C++ kernel of the CPU: every problem, against the equations in float64."""

import itertools
import math

import pytest
import torch
from agreement import assert_same_but_for_rounding
from kernel_check import DIGITS, DTYPES, SPECS, as_problem, check, exactly
from test_losses import problem

from fused_balanced_loss import LabelStatistics, LossSpec, SparseTargets, balanced_loss
from fused_balanced_loss.backends import cpp
from fused_balanced_loss.backends.problem import compute_dtype

DB = LossSpec.preset("DB", corpus="reuters")
# Those that differ in what the kernel is built from.
BUILDS = ("BCE", "CB-NTR", "DB", "ASL", "gamma 1.5", "margin, gamma 0.5", "steep")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", SPECS)
def test_every_setting(name, dtype):
    logits, targets, statistics = problem(dtype=dtype, scale=4.0, seed=1)
    check(as_problem(logits, targets, statistics, SPECS[name]), 0.5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("num_rows", "num_labels"), [*itertools.product((1, 3, 9), (1, 15, 16, 17, 127, 1000)), (2, 18_211)]
)
def test_all_widths_and_blocks(num_rows, num_labels, dtype):
    """Rows are cut into blocks where there are few of them, and vectors end in the middle of a row."""
    logits, targets, statistics = problem(num_rows, num_labels + 3, dtype)
    logits, targets = logits[:, 1:-2], targets[:, 1:-2]
    statistics = LabelStatistics.from_counts(statistics.counts[1:-2], 500, degenerate="ignore")
    for name in ("BCE", "CB-NTR", "DB"):
        spec = LossSpec.preset(name, convention="authors", corpus="reuters")
        expected, gradient = exactly(as_problem(logits, targets, statistics, spec))
        digits = DIGITS[compute_dtype(dtype)] * 8
        for form in (targets.byte(), targets.float(), SparseTargets.from_dense(targets)):
            ours = as_problem(logits, form, statistics, spec)
            loss, ours_gradient = cpp.value_and_gradient(ours, 0.3)
            torch.testing.assert_close(loss.double(), expected.sum() * 0.3, rtol=digits, atol=0)
            rtol = 2 * torch.finfo(dtype).eps + digits
            torch.testing.assert_close(ours_gradient.double(), gradient * 0.3, rtol=rtol, atol=1e-7)
            # Other instances of the kernel, in which a compiler may contract other products.
            assert_same_but_for_rounding(cpp.value(ours, "sum", 0.3), loss)
            again = cpp.gradient(ours, torch.tensor(0.3, dtype=loss.dtype))
            assert_same_but_for_rounding(again, ours_gradient, units=4)


def test_any_number_of_threads_gives_the_gradient():
    logits, targets, statistics = problem(5, 20_000)
    call = as_problem(logits, targets, statistics)
    out = torch.empty_like(logits)
    threads, results = torch.get_num_threads(), []
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            results.append(cpp.value_and_gradient(call, 1.0, out=out)[1].clone())
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert_same_but_for_rounding(results[0], other, units=4)


INTEGERS = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]
FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.mark.parametrize("target_dtype", [torch.bool, *INTEGERS, *FLOATS])
def test_targets_of_every_dtype(target_dtype):
    logits, targets, statistics = problem(7, 203, seed=5)
    dense = targets.to(target_dtype)
    if target_dtype.is_floating_point:
        dense = torch.where(targets, dense, -dense)
        assert torch.signbit(dense[~targets]).all()
    whole = torch.full((7, 209), 1).to(target_dtype)
    whole[:, 2:-4] = dense
    same = [SparseTargets.from_dense(targets), dense, whole[:, 2:-4]]
    results = [check(as_problem(logits, form, statistics)) for form in same]
    for loss, gradient in results[1:]:
        torch.testing.assert_close(loss, results[0][0], rtol=1e-6, atol=0)
        torch.testing.assert_close(gradient, results[0][1], rtol=1e-5, atol=1e-7)
    check(as_problem(logits, dense[:1].expand(7, -1), statistics))


@pytest.mark.parametrize("target_dtype", [torch.uint8, *INTEGERS[1:], *FLOATS])
@pytest.mark.parametrize("shape", [(1, 16_401), (9, 2_001)])
def test_a_target_outside_0_and_1_is_nan_unless_masked(shape, target_dtype, threads_2):
    logits, targets, statistics = problem(*shape, seed=6)
    targets[-1, [3, 500]] = True
    odd = [2, 255] if target_dtype == torch.uint8 else [-1, -100, 2]
    if target_dtype.is_floating_point:
        odd += [1.5, -0.5, math.nan, math.inf]
    columns = torch.linspace(70, shape[1] - 1, len(odd)).long()
    wrong = targets.to(target_dtype)
    wrong[-1, columns] = torch.tensor(odd).to(target_dtype)
    at_odd = torch.zeros_like(targets)
    at_odd[-1, columns] = True
    without = targets & ~at_odd
    _, clean = cpp.value_and_gradient(as_problem(logits, without, statistics), 1.0)

    call = as_problem(logits, wrong, statistics)
    total, gradient = cpp.value_and_gradient(call, 1.0)
    assert total.isnan() and cpp.value(call, "sum").isnan()
    elements = cpp.value(call, "none")
    for each in (gradient, elements, cpp.gradient(call, torch.ones_like(logits))):
        assert torch.equal(each.isnan(), at_odd)
    torch.testing.assert_close(gradient[~at_odd], clean[~at_odd], rtol=1e-5, atol=1e-8)

    masked = call._replace(label_mask=~at_odd)
    elements = cpp.value(masked, "none")
    assert torch.equal(elements[at_odd], torch.zeros(len(odd)))
    expected = exactly(as_problem(logits, without, statistics, label_mask=~at_odd))
    total, gradient = cpp.value_and_gradient(masked, 1.0)
    torch.testing.assert_close(total.double(), expected[0].sum(), rtol=2e-6, atol=0)
    torch.testing.assert_close(elements.double(), expected[0], rtol=2e-6, atol=1e-7)
    torch.testing.assert_close(gradient.double(), expected[1], rtol=2e-5, atol=1e-7)
    assert torch.equal(gradient[at_odd], torch.zeros(len(odd)))


@pytest.fixture
def threads_2():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["BCE", "DB", "ASL", "gamma 1.5"])
@pytest.mark.parametrize("num_labels", [5, 90, 257])
def test_label_mask(num_labels, name, dtype):
    logits, targets, statistics = problem(6, num_labels, dtype, seed=7)
    generator = torch.Generator().manual_seed(8)
    mask = torch.rand(logits.shape, generator=generator) < 0.6
    mask[1] = False
    wide = torch.zeros(6, num_labels + 5, dtype=torch.bool)
    wide[:, 3:-2] = mask
    for each in (mask, wide[:, 3:-2], mask[:1].expand(6, -1), torch.ones_like(mask)):
        odd = logits.masked_fill(~each, math.nan)
        odd[~each] = torch.tensor([math.nan, math.inf, -math.inf]).repeat(logits.numel())[: (~each).sum()].to(dtype)
        call = as_problem(odd, targets, statistics, SPECS[name], label_mask=each)
        expected, gradient = exactly(call._replace(logits=logits))
        total, ours = cpp.value_and_gradient(call, 1.0)
        digits = DIGITS[compute_dtype(dtype)] * 8
        torch.testing.assert_close(total.double(), expected.sum(), rtol=digits, atol=0)
        rtol, atol = 2 * torch.finfo(dtype).eps + digits, float(gradient.abs().max()) * digits
        torch.testing.assert_close(ours.double(), gradient, rtol=rtol, atol=atol)
        assert torch.equal(ours[~each], torch.zeros_like(ours[~each]))
        elements = cpp.value(call, "none")
        assert torch.equal(elements[~each], torch.zeros_like(elements[~each]))
        upstream = torch.full_like(elements, math.nan).masked_fill(each, 2.0)
        torch.testing.assert_close(cpp.gradient(call, upstream).double(), 2 * gradient, rtol=rtol, atol=2 * atol)
        in_place = odd.clone()
        again = cpp.value_and_gradient(call._replace(logits=in_place), 1.0, out=in_place)
        assert again[1] is in_place
        torch.testing.assert_close(in_place, ours, rtol=rtol, atol=atol)


def crooked(kind, num_rows, num_labels):
    """Label ids that nobody checked; the rows that are wrong."""
    crow = torch.arange(num_rows + 1) * 3
    col = torch.arange(num_rows * 3) % 3 * 5 + 1
    if kind == "too large":
        col[4] = num_labels
    elif kind == "huge":
        col[5] = 2**62
    elif kind == "negative":
        col[3] = -1
    elif kind == "descending":
        col[3], col[4] = 9, 2
    elif kind == "repeated":
        col[4] = col[3]
    elif kind == "offset before the start":
        crow[1] = -5
        return crow, col, [0, 1]
    elif kind == "offset past the end":
        crow[-1] += 1 << 40
        return crow, col, [num_rows - 1]
    elif kind == "offsets that descend":
        crow[1], crow[2] = 6, 3
        # Row 0 takes ids of two rows, which do not ascend.
        return crow, col, [0, 1, 2]
    return crow, col, [1]


KINDS = ["too large", "huge", "negative", "descending", "repeated"]
KINDS += ["offset before the start", "offset past the end", "offsets that descend"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(4, 30), (4, 5_000)])
@pytest.mark.parametrize("name", ["BCE", "DB"])
def test_label_ids_that_nobody_checked(name, shape, kind, threads_2):
    logits, _, statistics = problem(*shape, seed=9)
    crow, col, rows = crooked(kind, *shape)
    call = as_problem(logits, SparseTargets(crow, col, shape[1], check=False), statistics, SPECS[name])
    wrong = torch.zeros(shape[0], dtype=torch.bool)
    wrong[rows] = True
    total, gradient = cpp.value_and_gradient(call, 1.0)
    assert total.isnan() and cpp.value(call, "sum").isnan()
    for each in (gradient, cpp.value(call, "none"), cpp.gradient(call, torch.tensor(1.0))):
        assert each[wrong].isnan().all()
        assert each[~wrong].isfinite().all()
    whole = call._replace(label_mask=torch.zeros(shape, dtype=torch.bool))
    assert cpp.value(whole, "sum").isnan()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", SPECS)
def test_extreme_logits(name, dtype):
    values = [math.inf, -math.inf, math.nan, 60000.0, -60000.0, 100.0, -100.0, 40.0, -40.0]
    spec = SPECS[name]
    logits = torch.tensor([values * 3, values * 3], dtype=dtype)
    targets = torch.tensor([[1] * 27, [0] * 27])
    statistics = LabelStatistics.from_counts(list(range(10, 37)), 100)
    nan = logits.isnan()
    right = torch.isinf(logits) & ((logits > 0) == (targets == 1))
    # A margin bounds the loss of a wrong negative.
    wrong = torch.isinf(logits) & ~right & ((targets == 1) | (spec.probability_margin == 0))
    for form in (targets, SparseTargets.from_dense(targets)):
        call = as_problem(logits, form, statistics, spec)
        elements = cpp.value(call, "none")
        total, gradient = cpp.value_and_gradient(call, 1.0)
        assert total.isnan()
        for each in (elements, gradient):
            assert torch.equal(each.isnan(), nan)
            assert torch.equal(each[right], torch.zeros_like(each[right]))
        assert torch.equal(elements == math.inf, wrong)
        assert gradient[~nan].isfinite().all()


@pytest.mark.parametrize("name", BUILDS)
def test_infinite_and_nan_sums(name):
    """The loop over negatives, which a result for each element does not take."""
    logits, targets, statistics = problem(3, 200, seed=10)
    targets[1] = False
    for odd in (math.inf, math.nan):
        logits[1, 77] = odd
        total, gradient = cpp.value_and_gradient(as_problem(logits, targets, statistics, SPECS[name]), 1.0)
        if odd == math.inf and SPECS[name].probability_margin:
            assert total.isfinite()
        else:
            assert torch.equal(total.isnan(), torch.tensor(math.isnan(odd))) and not total.isfinite()
        assert torch.equal(gradient.isnan(), logits.isnan())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", BUILDS)
def test_views_and_row_weights(name, dtype):
    logits, targets, statistics = problem(5, 90, dtype, seed=11)
    spec, compute = SPECS[name], compute_dtype(dtype)
    weight = torch.linspace(0, 2, 5, dtype=compute)
    wide = torch.full((10, 97), math.nan, dtype=dtype)
    wide[::2, 3:-4] = logits
    out = torch.full((5, 99), math.nan, dtype=dtype)
    expected, gradient = exactly(as_problem(logits, targets, statistics, spec, row_weight=weight))
    digits = 2 * torch.finfo(dtype).eps + DIGITS[compute] * 8
    for form in (targets, SparseTargets.from_dense(targets)):
        call = as_problem(wide[::2, 3:-4], form, statistics, spec, row_weight=weight)
        total, ours = cpp.value_and_gradient(call, 1.0, out=out[:, 5:-4])
        torch.testing.assert_close(total.double(), expected.sum(), rtol=DIGITS[compute] * 8, atol=0)
        atol = float(gradient.abs().max()) * DIGITS[compute]
        torch.testing.assert_close(ours.double(), gradient, rtol=digits, atol=atol)
        assert out[:, :5].isnan().all() and out[:, -4:].isnan().all()
        upstream = torch.randn(90, 5, dtype=compute).t()
        torch.testing.assert_close(
            cpp.gradient(call, upstream).double(), gradient * upstream, rtol=digits, atol=4 * atol
        )
        half = torch.full((), 0.5, dtype=compute)
        assert torch.equal(cpp.gradient(call, half.expand(5, 90)), cpp.gradient(call, half))
    repeated = as_problem(logits[1:2].expand(5, -1), targets[1:2].expand(5, -1), statistics, spec)
    one = as_problem(logits[1:2], targets[1:2], statistics, spec)
    ours, row = cpp.value_and_gradient(repeated, 1.0), cpp.value_and_gradient(one, 1.0)
    torch.testing.assert_close(ours[0], row[0] * 5, rtol=DIGITS[compute] * 4, atol=0)
    assert ours[1].stride(0) >= 90, "each row has memory of its own"
    torch.testing.assert_close(ours[1], row[1].expand(5, -1), rtol=digits, atol=0)


def test_chunk_of_labels_with_given_row_sums():
    logits, targets, statistics = problem(6, 90, torch.float64, seed=12)
    whole = as_problem(logits, targets, statistics)
    expected = cpp.value_and_gradient(whole, 1.0)
    row_sum = (targets * whole.labels.inverse_frequency).sum(1)
    total = 0
    for start, stop in ((0, 40), (40, 90)):
        labels = type(whole.labels)(*(None if part is None else part[start:stop] for part in whole.labels))
        part = whole._replace(
            logits=logits[:, start:stop], targets=targets[:, start:stop], labels=labels, row_sum=row_sum
        )
        loss, gradient = cpp.value_and_gradient(part, 1.0)
        total = total + loss
        torch.testing.assert_close(gradient, expected[1][:, start:stop], rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(total, expected[0], rtol=1e-12, atol=0)


@pytest.mark.parametrize("size", [0, 1])
def test_no_rows(size):
    _, _, statistics = problem(1, 7)
    logits, targets = torch.empty(0, 7), torch.empty(0, 7)
    call = as_problem(logits, targets if size else SparseTargets.from_dense(targets), statistics)
    loss, gradient = cpp.value_and_gradient(call, 1.0)
    assert loss == 0 and gradient.shape == cpp.value(call, "none").shape == (0, 7)
    assert cpp.gradient(call, torch.empty(0, 7)).shape == (0, 7)


@pytest.mark.parametrize("device", ["meta", "cpu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_default_device_and_dtype_do_not_matter(dtype, device):
    logits, targets, statistics = problem(3, 40, dtype)
    call, upstream = as_problem(logits, targets, statistics), torch.ones(3, 40)
    functions = (
        lambda: cpp.value(call, "sum"),
        lambda: cpp.value(call, "none"),
        lambda: cpp.gradient(call, upstream),
        lambda: cpp.gradient(call, upstream[0, 0]),
        lambda: cpp.value_and_gradient(call, 1.0),
    )
    expected = [function() for function in functions]
    torch.set_default_device(device)
    torch.set_default_dtype(torch.float64 if dtype != torch.float64 else torch.float32)
    try:
        ours = [function() for function in functions]
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-9)


def test_what_the_kernel_does_not_take():
    class Wrapped(torch.Tensor):
        pass

    logits, targets, statistics = problem(2, 7)
    call = as_problem(logits, targets, statistics)
    assert cpp.unavailable(call) is None
    assert "meta" in cpp.unavailable(call._replace(logits=logits.to("meta")))
    assert "Wrapped" in cpp.unavailable(call._replace(logits=logits.as_subclass(Wrapped)))


def test_invalid_targets_are_found():
    logits, targets, statistics = problem(4, 200)
    for bad in (targets.byte() * 2, targets.float() * 1.5, targets.long() * -1):
        with pytest.raises(ValueError, match="targets"):
            balanced_loss(logits, bad, DB, statistics, impl="cpp")
