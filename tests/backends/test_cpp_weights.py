"""The C++ kernel with weights of the labels, soft targets, label smoothing and Poly-1, against the equations."""

import math

import pytest
import torch
from agreement import assert_same_but_for_rounding
from kernel_check import DB, DIGITS, DTYPES, SPECS, as_problem, check, exactly
from oracle import elements
from test_losses import problem

from fused_balanced_loss import LabelStatistics, LossSpec, SparseTargets, balanced_loss
from fused_balanced_loss.backends import cpp
from fused_balanced_loss.backends.problem import compute_dtype

FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
SHORT = ("BCE", "CB-NTR", "DB", "ASL", "margin, gamma 0.5", "steep")


def drawn(form, targets, dtype=torch.float32, seed=0):
    """Targets with the labels of a bool matrix, in one of the forms that a caller may give."""
    generator = torch.Generator().manual_seed(seed)
    share = torch.rand(targets.shape, generator=generator)
    if form == "ids":
        return SparseTargets.from_dense(targets)
    if form == "mixed up":
        # Two samples' labels: few are soft, some are common to both.
        return torch.where(share < 0.7, targets * share, targets).to(dtype)
    if form == "distilled":
        return (targets * 0.5 + share * 0.5).to(dtype)
    return targets.to(getattr(torch, form))


FORMS = ("bool", "int64", "float32", "ids", "mixed up", "distilled")


def weights_of(num_labels, seed=3):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(num_labels, generator=generator) + 0.1, torch.rand(num_labels, generator=generator) * 5


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", SHORT)
def test_weights_with_targets_of_every_form(name, form, dtype):
    logits, targets, statistics = problem(dtype=dtype, scale=4.0, seed=1)
    weight, pos_weight = weights_of(logits.shape[1])
    given = drawn(form, targets)
    for factors in ((weight, None), (None, pos_weight), (weight, pos_weight), (0.5, 3.0)):
        check(as_problem(logits, given, statistics, SPECS[name], *factors), 0.5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", SPECS)
def test_smoothing_with_every_setting(name, form, dtype):
    logits, targets, statistics = problem(dtype=dtype, scale=4.0, seed=2)
    given = drawn(form, targets)
    for smoothing in (1e-4, 0.1, 1.0):
        spec = SPECS[name].replace(label_smoothing=smoothing)
        check(as_problem(logits, given, statistics, spec), 0.5)
    check(as_problem(logits, given, statistics, spec, *weights_of(logits.shape[1])))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", ["bool", "ids", "mixed up", "distilled"])
@pytest.mark.parametrize("name", SHORT)
def test_poly_with_targets_of_every_form(name, form, dtype):
    logits, targets, statistics = problem(dtype=dtype, scale=4.0, seed=3)
    given = drawn(form, targets)
    for epsilon in (0.7, 3.0):
        check(as_problem(logits, given, statistics, SPECS[name].replace(poly_epsilon=epsilon)), 0.5)
    spec = SPECS[name].replace(poly_epsilon=1.5, label_smoothing=0.05)
    check(as_problem(logits, given, statistics, spec, *weights_of(logits.shape[1])))


@pytest.mark.parametrize("epsilon", [-1.0, 0.5])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("form", ["bool", "ids", "mixed up", "distilled"])
@pytest.mark.parametrize("name", SPECS)
def test_equals_the_scalar_check_in_float64(name, form, smoothing, epsilon):
    logits, targets, statistics = problem(3, 21, torch.float64, seed=4)
    spec = SPECS[name].replace(label_smoothing=smoothing, poly_epsilon=epsilon)
    given, factors, row_weight = drawn(form, targets), weights_of(21), torch.tensor([1.0, 0.5, 2.0]).double()
    dense = given.to_dense() if isinstance(given, SparseTargets) else given
    arguments = (statistics.counts, statistics.num_samples, spec, row_weight, *factors)
    expected, gradient = elements(logits, dense, *arguments)
    call = as_problem(logits, given, statistics, spec, *factors, row_weight=row_weight)
    torch.testing.assert_close(cpp.value(call, "none"), expected, rtol=1e-10, atol=1e-13)
    total, ours = cpp.value_and_gradient(call, 1.0)
    torch.testing.assert_close(total, expected.sum(), rtol=1e-11, atol=0)
    torch.testing.assert_close(ours, gradient, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("form", ["bool", "ids", "mixed up", "distilled"])
@pytest.mark.parametrize("name", ["BCE", "DB", "ASL", "gamma 1.5"])
def test_gradcheck(name, form):
    logits, targets, statistics = problem(3, 19, torch.float64, scale=1.0, seed=5)
    spec = SPECS[name].replace(label_smoothing=0.1, poly_epsilon=0.6)
    weight, pos_weight = weights_of(19)

    def loss(z):
        given = drawn(form, targets)
        return balanced_loss(
            z, given, spec, statistics, weight=weight, pos_weight=pos_weight, reduction="none", impl="cpp"
        )

    assert torch.autograd.gradcheck(loss, logits.requires_grad_())


@pytest.mark.parametrize("target_dtype", FLOATS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_shares_are_read_to_the_last_digit(dtype, target_dtype):
    """The gradient of cross-entropy is p - y, and p is 0 for a logit that is small enough."""
    if target_dtype.itemsize == 2:
        every = torch.arange(1 << 15, dtype=torch.int32).to(torch.int16).view(target_dtype)
        shares = every[(every > 0) & (every < 1)]
    else:
        shares = torch.rand(5_000, dtype=target_dtype, generator=torch.Generator().manual_seed(6))
        shares = torch.cat([shares, shares**9])
    if dtype == torch.float16:
        # Its gradient has no smaller numbers.
        shares = shares[shares > 1e-4]
    logits = torch.full((1, len(shares)), -1000.0, dtype=dtype)
    statistics = LabelStatistics.from_counts([10], 100)
    call = as_problem(logits, shares[None], statistics, LossSpec())
    _, many = cpp.value_and_gradient(call, 1.0)
    normal = shares >= torch.finfo(torch.float32).tiny
    assert torch.equal(-many[0][normal], shares.to(compute_dtype(dtype)).to(dtype)[normal])
    apart = torch.zeros(1, 400 * 64, dtype=target_dtype)
    apart[0, ::64] = shares[:: len(shares) // 400][:400]
    few = call._replace(logits=torch.full(apart.shape, -1000.0, dtype=dtype), targets=apart)
    _, gradient = cpp.value_and_gradient(few, 1.0)
    expected = apart.to(compute_dtype(dtype)).to(dtype)
    normal = (apart == 0) | (apart >= torch.finfo(torch.float32).tiny)
    assert torch.equal(-gradient[normal], expected[normal])


@pytest.mark.parametrize("num_rows", [1, 3, 9])
@pytest.mark.parametrize("num_labels", [1, 15, 16, 17, 127, 1000, 16_401])
def test_all_widths_blocks_and_numbers_of_soft_targets(num_labels, num_rows):
    """Few soft targets go vector by vector, many go all together, and blocks of one row decide for themselves."""
    threads = torch.get_num_threads()
    logits, targets, statistics = problem(num_rows, num_labels, seed=7)
    weight, pos_weight = weights_of(num_labels)
    generator = torch.Generator().manual_seed(8)
    for number in sorted({1, 2, num_labels // 64, num_labels // 64 + 1, num_labels // 3, num_labels}):
        soft = targets.float()
        for row in soft[:2]:
            row[torch.randperm(num_labels, generator=generator)[:number]] = 0.3
        for name in ("BCE", "CB-NTR", "DB"):
            call = as_problem(logits, soft, statistics, SPECS[name], weight, pos_weight)
            expected, gradient = exactly(call)
            for each in (1, 2):
                torch.set_num_threads(each)
                try:
                    total, ours = cpp.value_and_gradient(call, 0.5)
                finally:
                    torch.set_num_threads(threads)
                torch.testing.assert_close(total.double(), expected.sum() * 0.5, rtol=2e-6, atol=0)
                torch.testing.assert_close(ours.double(), gradient * 0.5, rtol=2e-5, atol=2e-6)


def test_hard_targets_of_floats_go_the_way_of_label_ids():
    """The same kernel reads the same logits and writes the same memory, so the bits are the same."""
    logits, targets, statistics = problem(5, 999, seed=9)
    out = torch.empty_like(logits)
    results = []
    for form in (SparseTargets.from_dense(targets), targets.byte(), targets.float(), targets.bfloat16()):
        loss, gradient = cpp.value_and_gradient(as_problem(logits, form, statistics), 1.0, out=out)
        results.append((loss, gradient.clone()))
    for loss, gradient in results[1:]:
        assert torch.equal(loss, results[0][0]) and torch.equal(gradient, results[0][1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", ["mixed up", "distilled", "bool"])
def test_memory_and_masks_of_soft_targets(form, dtype):
    """Strides, offsets, expansions, a result written over the logits, a mask, and what the mask leaves out."""
    smoothing = 0.1 if form == "bool" else 0.0
    spec = DB.replace(label_smoothing=smoothing, poly_epsilon=0.5)
    logits, targets, statistics = problem(5, 90, dtype, seed=10)
    given = drawn(form, targets)
    mask = torch.rand(5, 90, generator=torch.Generator().manual_seed(11)) < 0.7
    wide = torch.full((10, 97), math.nan, dtype=dtype)
    wide[::2, 3:-4] = logits.masked_fill(~mask, math.inf)
    around = torch.ones(5, 95).to(given.dtype)
    around[:, 2:-3] = given
    weight, pos_weight = weights_of(90)
    row_weight = torch.rand(5, dtype=compute_dtype(dtype))
    changes = {"label_mask": mask, "row_weight": row_weight}
    expected, gradient = exactly(as_problem(logits, given, statistics, spec, weight, pos_weight, **changes))
    call = as_problem(wide[::2, 3:-4], around[:, 2:-3], statistics, spec, weight, pos_weight, **changes)
    digits = DIGITS[compute_dtype(dtype)] * 16
    rtol, atol = 2 * torch.finfo(dtype).eps + digits, float(gradient.abs().max()) * digits
    total, ours = cpp.value_and_gradient(call, 1.0)
    torch.testing.assert_close(total.double(), expected.sum(), rtol=digits, atol=0)
    torch.testing.assert_close(ours.double(), gradient, rtol=rtol, atol=atol)
    assert (ours[~mask] == 0).all() and (cpp.value(call, "none")[~mask] == 0).all()
    same, over = cpp.value_and_gradient(call, 1.0, out=call.logits)
    assert over is call.logits and wide[1::2].isnan().all() and wide[:, :3].isnan().all() and wide[:, -4:].isnan().all()
    assert_same_but_for_rounding(same, total)
    torch.testing.assert_close(over.double(), gradient, rtol=rtol, atol=atol)
    repeated = as_problem(logits[:1].expand(5, -1), given[:1].expand(5, -1), statistics, spec)
    check(repeated)


@pytest.mark.parametrize("target_dtype", FLOATS)
@pytest.mark.parametrize("weighting", ["none", "rebalanced"])
@pytest.mark.parametrize("number", [3, 900])
def test_a_soft_row_with_invalid_targets(number, weighting, target_dtype):
    """They are NaN and nothing else is; masked they count nowhere, and not among the labels of their row."""
    spec = LossSpec(gamma=2, weighting=weighting, mu=0.9)
    logits, targets, statistics = problem(2, 1000, seed=12)
    valid = targets.float()
    valid[0, torch.randperm(1000, generator=torch.Generator().manual_seed(13))[:number]] = 0.25
    at = torch.tensor([5, 64, 300, 511, 999])
    valid[0, at] = 0.0
    given = valid.to(target_dtype, copy=True)
    given[0, at] = torch.tensor([-0.25, 1.25, math.nan, math.inf, -math.inf]).to(target_dtype)
    odd = torch.zeros(2, 1000, dtype=torch.bool)
    odd[0, at] = True
    expected, gradient = exactly(as_problem(logits, valid, statistics, spec))
    call = as_problem(logits, given, statistics, spec)
    total, ours = cpp.value_and_gradient(call, 1.0)
    parts = cpp.value(call, "none")
    assert total.isnan() and torch.equal(ours.isnan(), odd) and torch.equal(parts.isnan(), odd)
    torch.testing.assert_close(parts[~odd].double(), expected[~odd], rtol=1e-5, atol=1e-7)
    masked = call._replace(label_mask=~odd)
    total, ours = cpp.value_and_gradient(masked, 1.0)
    torch.testing.assert_close(total.double(), expected[~odd].sum(), rtol=2e-6, atol=0)
    torch.testing.assert_close(ours.double(), gradient.masked_fill(odd, 0.0), rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match=r"targets: expected a number in \[0, 1\], got -0\.25 at \[0, 5\]"):
        balanced_loss(logits, given, spec, statistics, impl="cpp")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("epsilon", [0.0, -1.0])
def test_infinite_and_nan_logits(epsilon, smoothing, name, dtype):
    """A part without a share adds no NaN of its infinity; a NaN stays, with any share."""
    spec = SPECS[name].replace(label_smoothing=smoothing, poly_epsilon=epsilon)
    logits = torch.tensor([math.inf, -math.inf, math.nan, 6e4, -6e4], dtype=dtype).repeat(4, 9)
    for lone in (False, True):
        targets = torch.tensor([[0.0], [1.0], [0.5], [2**-7]]).repeat(1, 45)
        if lone:
            # Hard and soft targets in one vector.
            targets[:, 10:] = (torch.arange(35) % 2).float()
        call = as_problem(logits, targets, LabelStatistics.from_counts(list(range(10, 55)), 100), spec)
        parts, (_, gradient) = cpp.value(call, "none"), cpp.value_and_gradient(call, 1.0)
        share = targets * (1 - smoothing) + smoothing / 2
        wrong = (logits == -math.inf) & (share > 0)
        if not spec.probability_margin:
            wrong |= (logits == math.inf) & (share < 1)
        assert torch.equal(parts.isnan(), logits.isnan()) and torch.equal(gradient.isnan(), logits.isnan())
        assert torch.equal(parts == math.inf, wrong)
        assert gradient[~logits.isnan()].isfinite().all()


@pytest.mark.parametrize("form", ["mixed up", "distilled", "ids"])
def test_chunks_of_labels_with_given_row_sums(form):
    logits, targets, statistics = problem(6, 90, torch.float64, seed=14)
    spec = DB.replace(label_smoothing=0.1, poly_epsilon=0.5)
    given = drawn(form, targets)
    dense = given.to_dense().double() if form == "ids" else given.double()
    whole = as_problem(logits, given, statistics, spec, *weights_of(90))
    expected = cpp.value_and_gradient(whole, 1.0)
    row_sum = (dense * whole.labels.inverse_frequency).sum(1)
    total = 0
    for start, stop in ((0, 40), (40, 90)):
        labels = type(whole.labels)(*(part[start:stop] for part in whole.labels if part is not None))
        cut = SparseTargets.from_dense(targets[:, start:stop]) if form == "ids" else given[:, start:stop]
        part = whole._replace(logits=logits[:, start:stop], targets=cut, labels=labels, row_sum=row_sum)
        loss, gradient = cpp.value_and_gradient(part, 1.0)
        total = total + loss
        torch.testing.assert_close(gradient, expected[1][:, start:stop], rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(total, expected[0], rtol=1e-12, atol=0)


def test_the_weights_of_a_hard_row_take_the_same_numbers_as_soft_ones():
    """One soft target elsewhere in the row makes it a soft row; its other elements stay what they were."""
    logits, targets, statistics = problem(1, 2000, torch.float64, seed=15)
    hard = targets.double()
    nearly = hard.clone()
    nearly[0, int((hard[0] == 0).nonzero()[7])] = 2.0**-60
    factors = weights_of(2000)
    expected = cpp.value(as_problem(logits, hard, statistics, DB, *factors), "none")
    ours = cpp.value(as_problem(logits, nearly, statistics, DB, *factors), "none")
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-15)
