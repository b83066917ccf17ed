"""The C++ kernel of the CPU: every problem, against the equations in float64, and its builds for other processors."""

import itertools
import math
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from agreement import assert_same_but_for_rounding
from oracle import assert_within_rule
from test_losses import problem

from fused_balanced_loss import LabelStatistics, LossSpec, SparseTargets, balanced_loss
from fused_balanced_loss.backends import cpp, cpp_build
from fused_balanced_loss.backends.constants import label_constants
from fused_balanced_loss.backends.problem import Problem, compute_dtype

DB = LossSpec.preset("DB", corpus="reuters")
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
# What a correct result of a dtype may be off by, see `assert_within_rule`; the yardstick itself is float64.
DIGITS = {torch.float64: 2.0**-47, torch.float32: 2.0**-22, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}
SPECS = {
    "BCE": LossSpec.preset("BCE"),
    "CB-NTR": LossSpec.preset("CB-NTR", convention="authors"),
    "DB": LossSpec.preset("DB", convention="authors", corpus="reuters"),
    "ASL": LossSpec.preset("ASL"),
    "margin without focus": LossSpec(probability_margin=0.2),
    "margin, gamma 0.5": LossSpec(gamma=0.5, probability_margin=0.05),
    "margin, gamma 3.3, DB": DB.replace(gamma_negative=3.3, probability_margin=0.3),
    "gamma 0.3": LossSpec(gamma=0.3),
    "gamma 1.5": LossSpec(gamma=1.5, weighting="rebalanced", mu=0.9, kappa=0.05, lam=2),
    "gamma 7": LossSpec(gamma=7.0, lam=0.7),
    "gamma 0 and 2": LossSpec(gamma=0.0, gamma_negative=2.0),
    "gamma 2 and 0": LossSpec(gamma=2.0, gamma_negative=0.0, weighting="class_balanced"),
    "gamma 1 and 0.5": LossSpec(gamma=1.0, gamma_negative=0.5, positive_factor=3.0, negative_factor=0.4),
    "steep": LossSpec(gamma=2, weighting="rebalanced", beta=200, mu=0.9),
    "cliff": LossSpec(gamma=2, weighting="rebalanced", beta=2000, mu=0.5, alpha=0.3),
    "steep without floor": LossSpec(weighting="rebalanced", beta=100, mu=0.9, alpha=0.0),
    "flat": LossSpec(gamma=2, weighting="rebalanced", beta=1e-6, mu=0.9, alpha=0.0),
}
# Those that differ in what the kernel is built from.
BUILDS = ("BCE", "CB-NTR", "DB", "ASL", "gamma 1.5", "margin, gamma 0.5", "steep")


def as_problem(logits, targets, statistics, spec=DB, **changes):
    constants = label_constants(statistics, spec, compute_dtype(logits.dtype), logits.device)
    return Problem(logits, targets, spec, constants, statistics=statistics)._replace(**changes)


def exactly(call):
    """Loss [N, C] and gradient of its sum, float64."""
    return by_operators(call, torch.float64)


def plainly(call):
    """The same in the compute dtype: the yardstick of the error rule."""
    loss, gradient = by_operators(call, compute_dtype(call.logits.dtype))
    return loss, gradient.to(call.logits.dtype)


def by_operators(call, dtype):
    """The equations as one would write them in PyTorch, for finite logits."""
    spec, statistics, targets = call.spec, call.statistics, call.targets
    z = call.logits.detach().to(dtype).requires_grad_()
    y = targets.to_dense() == 1 if isinstance(targets, SparseTargets) else targets == 1
    n = statistics.clamped_counts.to(dtype)
    d = z - spec.kappa * torch.log(statistics.num_samples / n - 1)
    u = torch.where(y, -d, spec.lam * d)
    # Not `softplus`, which leaves out the logarithm above 20.
    q, nll = torch.sigmoid(u), torch.logaddexp(u, torch.zeros_like(u))
    if spec.probability_margin:
        shifted = (q - spec.probability_margin).clamp(min=0)
        q, nll = torch.where(y, q, shifted), torch.where(y, nll, -torch.log1p(-shifted))
    gamma = torch.where(y, *(torch.tensor(g, dtype=dtype) for g in spec.gammas))
    w = torch.where(y, *(torch.tensor(f, dtype=dtype) for f in (spec.positive_factor, spec.negative_factor / spec.lam)))
    if spec.weighting == "rebalanced":
        r = (1 / n) / (y * (1 / n)).sum(1, keepdim=True)
        w = w * (spec.alpha + torch.sigmoid(spec.beta * (r - spec.mu)))
    elif spec.weighting == "class_balanced":
        w = w * statistics.class_balanced_weight(spec.beta_cb).to(dtype)
    if call.row_weight is not None:
        w = w * call.row_weight[:, None].to(dtype)
    loss = w * q**gamma * nll
    if call.label_mask is not None:
        loss = torch.where(call.label_mask, loss, 0.0)
    (gradient,) = torch.autograd.grad(loss.sum(), z)
    # q**gamma has an infinite derivative at 0, which stands for an element without any loss.
    return loss.detach(), torch.where(loss == 0, 0.0, gradient).detach()


def check(call, scale=1.0):
    """All three functions of the kernel, within the error rule."""
    dtype, compute = call.logits.dtype, compute_dtype(call.logits.dtype)
    loss, gradient = exactly(call)
    plain_loss, plain_gradient = plainly(call)
    plain_loss, plain_gradient = plain_loss.double() * scale, plain_gradient.double() * scale
    gradient = gradient * scale
    elements = cpp.value(call, "none")
    assert elements.dtype == compute
    assert_within_rule(elements, (plain_loss / scale - loss).abs(), loss, DIGITS[compute])
    total, ours = cpp.value_and_gradient(call, scale)
    assert (total.dtype, ours.dtype) == (compute, dtype)
    torch.testing.assert_close(total.double(), loss.sum() * scale, rtol=DIGITS[compute] * 8, atol=0)
    assert_within_rule(ours, (plain_gradient - gradient).abs(), gradient, DIGITS[dtype])
    torch.testing.assert_close(cpp.value(call, "sum", scale), total, rtol=DIGITS[compute], atol=0)
    by_scalar = cpp.gradient(call, torch.tensor(scale, dtype=compute))
    assert torch.equal(by_scalar, ours)
    upstream = torch.linspace(-1, 2, loss.numel(), dtype=compute).view(loss.shape)
    by_element = cpp.gradient(call, upstream)
    expected = gradient / scale * upstream.double()
    plain_error = ((plain_gradient - gradient) / scale).abs() * upstream.abs()
    assert_within_rule(by_element, plain_error, expected, DIGITS[dtype])
    return total, ours


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
def test_a_target_neither_0_nor_1_is_nan_unless_masked(shape, target_dtype, threads_2):
    logits, targets, statistics = problem(*shape, seed=6)
    targets[-1, [3, 500]] = True
    odd = [2, 255] if target_dtype == torch.uint8 else [-1, -100, 2]
    if target_dtype.is_floating_point:
        odd += [0.5, math.nan, math.inf]
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


def test_a_missing_compiler_is_a_reason_and_one_warning(monkeypatch, tmp_path):
    logits, targets, statistics = problem(2, 7)
    call = as_problem(logits, targets, statistics)
    monkeypatch.setenv("FUSED_BALANCED_LOSS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CXX", str(tmp_path / "no-compiler"))
    cpp.forget()
    cpp_build.forget()
    try:
        with pytest.warns(UserWarning, match="not available"):
            reasons = [cpp.unavailable(call)]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            reasons += [cpp.unavailable(call), cpp.unavailable(call)]
            loss = balanced_loss(logits, targets, DB, statistics)
        assert all("no-compiler" in reason for reason in reasons)
    finally:
        monkeypatch.undo()
        cpp.forget()
        cpp_build.forget()
    torch.testing.assert_close(cpp.value(call, "sum", 1 / 14), loss)


def test_specs_that_change_are_not_kept():
    """A setting that changes from step to step takes no memory and no build."""
    logits, targets, statistics = problem(2, 7)
    built = cpp._kernel.cache_info().currsize
    for step in range(300):
        cpp.value(as_problem(logits, targets, statistics, DB.replace(mu=0.5 + step / 1000)), "sum")
    assert len(cpp._KERNELS) <= 64
    assert cpp._kernel.cache_info().currsize <= built + 1


@pytest.fixture
def built_for(monkeypatch):
    """Builds the kernels for another processor than the one at hand."""

    def build(march):
        monkeypatch.setenv("FUSED_BALANCED_LOSS_MARCH", march)
        forget()

    def forget():
        cpp.forget()
        cpp_build.forget()

    yield build
    monkeypatch.undo()
    forget()


def runs(march):
    """Whether this processor runs what is built for another."""
    try:
        found = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    flags = set(found.partition("flags")[2].partition("\n")[0].split())
    needed = {"x86-64": {"sse2"}, "haswell": {"avx2", "fma", "bmi2", "f16c"}}
    needed["x86-64-v4"] = needed["haswell"] | {"avx512f", "avx512dq", "avx512bw", "avx512vl"}
    return needed[march] <= flags


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("march", ["x86-64", "haswell", "x86-64-v4"])
def test_builds_for_other_processors(march, dtype, built_for):
    if not runs(march):
        pytest.skip(f"this processor does not run {march}")
    built_for(march)
    logits, targets, statistics = problem(5, 77, dtype, scale=4.0, seed=13)
    for name in ("DB", "margin, gamma 3.3, DB"):
        check(as_problem(logits, targets, statistics, SPECS[name]), 0.5)
        check(as_problem(logits, SparseTargets.from_dense(targets), statistics, SPECS[name]))
    logits[0, 3], logits[0, 4], logits[0, 5] = math.nan, math.inf, -math.inf
    elements = cpp.value(as_problem(logits, targets, statistics), "none")
    assert torch.equal(elements.isnan(), logits.isnan()) and not elements[0, 4:6].isnan().any()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_compiles_for_avx512(dtype, tmp_path):
    """Also where the processor does not run it."""
    if "x86-64-v4" not in subprocess.run([cpp_build._compiler()[0], "-Q", "--help=target"], **quietly()).stdout:
        pytest.skip("the compiler does not know x86-64-v4")
    source = Path(cpp_build.__file__).parents[1] / "kernels" / "logits_loss.cpp"
    macros = {"LOGITS": cpp._LOGITS[dtype], "GAMMA": -1, "MARGIN": 1, "BIAS": 1, "REBALANCED": 1, "LABEL_WEIGHT": 1}
    defines = [f"-D{name}={value}" for name, value in macros.items()]
    command = [cpp_build._compiler()[0], "-std=c++17", "-O3", "-march=x86-64-v4", *defines, "-c", str(source)]
    done = subprocess.run([*command, "-o", str(tmp_path / "kernel.o")], **quietly())
    assert done.returncode == 0, done.stderr


def quietly():
    return {"capture_output": True, "text": True, "timeout": 120}


@pytest.mark.slow
def test_library_is_built_once_and_survives_processes(tmp_path, monkeypatch):
    code = (
        "import torch\n"
        "from fused_balanced_loss import LossSpec, balanced_loss\n"
        "for targets in (torch.zeros(2, 9), torch.zeros(2, 9, dtype=torch.int64)):\n"
        "    print(float(balanced_loss(torch.zeros(2, 9), targets, LossSpec(gamma=2.0), impl='cpp')))\n"
    )
    monkeypatch.setenv("FUSED_BALANCED_LOSS_CACHE", str(tmp_path / "cache"))
    outputs, files = [], []
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", code], check=True, **quietly())
        outputs.append(done.stdout.split())
        files.append([(path.name, path.stat().st_mtime_ns) for path in (tmp_path / "cache").glob("*.so")])
    assert outputs[0] == outputs[1]
    assert all(float(each) == pytest.approx(0.25 * 0.6931472, rel=1e-6) for each in outputs[0])
    assert files[0] == files[1] and len(files[0]) == 1


def test_invalid_targets_are_found():
    logits, targets, statistics = problem(4, 200)
    for bad in (targets.byte() * 2, targets.float() * 0.5, targets.long() * -1):
        with pytest.raises(ValueError, match="targets"):
            balanced_loss(logits, bad, DB, statistics, impl="cpp")
