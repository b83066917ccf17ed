"""Label counts and what the losses derive from them."""

import copy
import math
import pickle
import warnings
from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import coo_array, csr_array, csr_matrix

from fused_balanced_loss import LabelStatistics, SparseTargets

IDS = [[0, 2], [], [2, 3, 5], [5], [0, 1, 2, 3], [2], [3], []]
COUNTS = [2, 1, 4, 3, 0, 2]
MU = LabelStatistics.from_counts(COUNTS, 8, degenerate="ignore").suggest_mu(IDS)
DENSE = torch.tensor([[int(label in row) for label in range(6)] for row in IDS], dtype=torch.uint8)

counts_and_size = st.integers(2, 10**6).flatmap(
    lambda n: st.tuples(st.lists(st.integers(1, n - 1), min_size=1, max_size=20), st.just(n))
)


def quiet(counts, num_samples, mu=None):
    return LabelStatistics.from_counts(counts, num_samples, mu=mu, degenerate="ignore")


@pytest.mark.parametrize(
    "counts",
    [
        COUNTS,
        tuple(COUNTS),
        np.array(COUNTS),
        np.array(COUNTS, np.uint8),
        np.array(COUNTS, np.float32),
        np.array(COUNTS[::-1])[::-1],
        torch.tensor(COUNTS),
        torch.tensor(COUNTS, dtype=torch.int32),
        torch.tensor(COUNTS, dtype=torch.float64, requires_grad=True),
    ],
    ids=["list", "tuple", "int64", "uint8", "float32", "reversed-view", "tensor", "int32-tensor", "float-tensor"],
)
def test_from_counts_takes_any_array(counts):
    statistics = quiet(counts, 8)
    assert statistics.counts.dtype == torch.int64
    assert statistics.counts.device.type == "cpu"
    assert statistics.counts.tolist() == COUNTS
    assert (statistics.num_labels, statistics.num_samples) == (6, 8)


@pytest.mark.parametrize("num_samples", [8, np.int64(8), np.int32(8)])
def test_num_samples_becomes_an_int(num_samples):
    assert type(quiet(COUNTS, num_samples).num_samples) is int


@pytest.mark.parametrize(
    "targets",
    [
        DENSE,
        DENSE.bool(),
        DENSE.float(),
        DENSE.long(),
        DENSE.short(),
        DENSE.numpy(),
        DENSE.numpy().astype(np.int64),
        pd.DataFrame(DENSE.numpy(), columns=list("abcdef")),
        DENSE.numpy().astype(bool),
        DENSE.numpy().astype(np.float64),
        DENSE.numpy()[:, ::-1].copy()[:, ::-1],
        SparseTargets.from_dense(DENSE),
        csr_array(DENSE.numpy()),
        csr_matrix(DENSE.numpy().astype(np.float32)),
        coo_array(DENSE.numpy()),
        DENSE.to_sparse_csr(),
        DENSE.float().to_sparse_coo(),
        IDS,
        tuple(tuple(reversed(row)) for row in IDS),
        [np.array(row, np.int32) for row in IDS],
        [torch.tensor(row, dtype=torch.int64) for row in IDS],
    ],
    ids=lambda value: f"{type(value).__name__}-{getattr(value, 'dtype', '')}",
)
def test_from_targets_counts_alike_in_every_form(targets):
    statistics = LabelStatistics.from_targets(targets, 6, degenerate="ignore")
    assert statistics == quiet(COUNTS, 8, mu=MU)


def test_from_targets_takes_a_generator_of_label_ids():
    assert LabelStatistics.from_targets((row for row in IDS), 6, degenerate="ignore") == quiet(COUNTS, 8, mu=MU)


@pytest.mark.parametrize(
    "targets", [DENSE, DENSE.numpy(), pd.DataFrame(DENSE.numpy()), csr_array(DENSE.numpy()), DENSE.to_sparse_csr()]
)
def test_from_targets_needs_num_labels_only_for_ids(targets):
    assert LabelStatistics.from_targets(targets, degenerate="ignore") == quiet(COUNTS, 8, mu=MU)


def test_multi_hot_lists_of_two_labels_are_refused():
    with pytest.raises(ValueError, match=r"targets: expected label ids, got rows of 2 entries.*np.array\(targets\)"):
        LabelStatistics.from_targets([[0, 1], [1, 0], [1, 0]], 2)
    statistics = LabelStatistics.from_targets(np.array([[0, 1], [1, 0], [1, 0]]))
    assert statistics.counts.tolist() == [2, 1]


def test_from_targets_of_a_multi_label_binarizer():
    binarizer = pytest.importorskip("sklearn.preprocessing").MultiLabelBinarizer(classes=range(6))
    targets = binarizer.fit_transform(IDS)
    assert targets.dtype == np.int64
    assert LabelStatistics.from_targets(targets, degenerate="ignore") == quiet(COUNTS, 8, mu=MU)


def test_from_targets_without_num_labels_rejects_ids():
    with pytest.raises(TypeError, match=r"num_labels: expected the number of labels"):
        LabelStatistics.from_targets(IDS)


def test_from_targets_rejects_another_number_of_labels():
    with pytest.raises(ValueError, match=r"targets: expected 7 labels, got 6"):
        LabelStatistics.from_targets(DENSE, 7)


def test_later_changes_of_the_input_do_not_reach_the_statistics():
    tensor, array = torch.tensor(COUNTS), np.array(COUNTS)
    statistics = [quiet(tensor, 8), quiet(array, 8)]
    tensor.zero_(), array.fill(0)
    assert all(one.counts.tolist() == COUNTS for one in statistics)


@given(counts_and_size)
def test_prior_and_inverse_frequency(case):
    counts, n = case
    statistics = LabelStatistics.from_counts(counts, n)
    assert statistics.prior.dtype == statistics.inverse_frequency.dtype == torch.float64
    assert statistics.prior.tolist() == [c / n for c in counts]
    assert statistics.inverse_frequency.tolist() == [1 / c for c in counts]


@given(counts_and_size, st.floats(0, 1))
def test_ntr_bias(case, kappa):
    counts, n = case
    bias = LabelStatistics.from_counts(counts, n).ntr_bias(kappa)
    expected = [kappa * math.log((n - c) / c) for c in counts]
    assert bias.dtype == torch.float64
    # n / c - 1 loses what its subtraction cancels, at most eps * n / (n - c).
    np.testing.assert_allclose(bias.numpy(), expected, rtol=1e-12, atol=1e-15 * n)


def test_ntr_bias_has_the_papers_kappa_and_is_zero_for_half_of_the_samples():
    statistics = LabelStatistics.from_counts([5, 1, 9], 10)
    np.testing.assert_allclose(statistics.ntr_bias().numpy(), [0, 0.05 * math.log(9), -0.05 * math.log(9)], atol=1e-15)


@pytest.mark.parametrize("beta", [0.0, 1e-9, 0.5, 0.9, 0.999, 1 - 1e-6, 1 - 1e-9, 1 - 1e-12, 1 - 2**-53])
def test_class_balanced_weight_against_exact_fractions(beta):
    counts = [1, 2, 3, 7, 50, 999]
    weight = LabelStatistics.from_counts(counts, 1000).class_balanced_weight(beta)
    exact = [float((1 - Fraction(beta)) / (1 - Fraction(beta) ** n)) for n in counts]
    assert weight.dtype == torch.float64
    np.testing.assert_allclose(weight.numpy(), exact, rtol=1e-14)


def test_class_balanced_weight_tends_to_one_over_n():
    counts = [1, 10, 1000, 10**6]
    weight = LabelStatistics.from_counts(counts, 10**7).class_balanced_weight(1 - 2**-53)
    np.testing.assert_allclose(weight.numpy(), [1 / n for n in counts], rtol=1e-9)


def test_class_balanced_weight_has_the_papers_beta():
    statistics = LabelStatistics.from_counts([1, 5], 10)
    torch.testing.assert_close(
        statistics.class_balanced_weight(), statistics.class_balanced_weight(0.9), rtol=1e-14, atol=0
    )


@pytest.mark.parametrize("beta", [1.0, 1.5, -0.1, math.nan, math.inf])
def test_class_balanced_weight_rejects_beta_outside_its_range(beta):
    with pytest.raises(ValueError, match=r"beta: expected a number in \[0, 1\), got"):
        LabelStatistics.from_counts([1], 10).class_balanced_weight(beta)


@pytest.mark.parametrize("build", ["counts", "targets"])
def test_degenerate_counts_are_clamped_with_one_warning(build):
    dense = torch.tensor([[0, 1, 1, 0, 1], [0, 1, 0, 0, 1], [0, 1, 1, 0, 1]], dtype=torch.uint8)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if build == "counts":
            statistics = LabelStatistics.from_counts([0, 3, 2, 0, 3], 3)
        else:
            statistics = LabelStatistics.from_targets(dense)
        for derived in (statistics.prior, statistics.inverse_frequency, statistics.ntr_bias()):
            assert torch.isfinite(derived).all()
        assert torch.isfinite(statistics.class_balanced_weight()).all()
    assert len(caught) == 1
    assert "counts: 2 of 5 labels occur in no training sample and 2 in all 3" in str(caught[0].message)
    assert "taken as 1 and 2" in str(caught[0].message)
    assert statistics.counts.tolist() == [0, 3, 2, 0, 3]
    assert statistics.clamped_counts.tolist() == [1, 2, 2, 1, 2]
    assert statistics.inverse_frequency.tolist() == [1, 0.5, 0.5, 1, 0.5]
    assert statistics.prior.tolist() == [1 / 3, 2 / 3, 2 / 3, 1 / 3, 2 / 3]


@pytest.mark.parametrize("counts", [[0, 1], [1, 3], [0, 3]])
def test_degenerate_error_raises(counts):
    with pytest.raises(ValueError, match=r"counts: [01] of 2 labels occur in no training sample and [01] in all 3"):
        LabelStatistics.from_counts(counts, 3, degenerate="error")


@pytest.mark.parametrize(
    ("counts", "degenerate"), [([0, 3], "ignore"), ([1, 2], "warn"), ([1, 2], "error"), ([1, 2], "ignore")]
)
def test_nothing_is_said_where_nothing_is_degenerate_or_it_is_ignored(counts, degenerate):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LabelStatistics.from_counts(counts, 3, degenerate=degenerate)


def literal_mu(ids, counts):
    shares = []
    for row in ids:
        total = sum(1 / counts[label] for label in row)
        shares += [1 / counts[label] / total for label in row]
    return (np.mean(shares) + np.median(shares)) / 2


@pytest.mark.parametrize("form", [lambda t: t, SparseTargets.to_dense, SparseTargets.to_scipy, SparseTargets.to_lists])
def test_suggest_mu_against_a_literal_loop(form):
    generator = np.random.default_rng(0)
    ids = [sorted(generator.choice(12, generator.integers(0, 5), replace=False).tolist()) for _ in range(60)]
    targets = SparseTargets.from_lists(ids, 12)
    statistics = LabelStatistics.from_targets(targets)
    mu = statistics.suggest_mu(form(targets))
    assert type(mu) is float
    assert mu == pytest.approx(literal_mu(ids, statistics.counts.tolist()), rel=1e-12)
    assert mu == statistics.mu


def test_mu_in_exact_fractions():
    # The twelve shares are those of six samples with a label; the middle two are 1/3 and 6/13.
    expected = (6 / 12 + (1 / 3 + 6 / 13) / 2) / 2
    assert abs(MU - expected) < 1e-15


def test_targets_without_a_label_have_no_mu():
    assert LabelStatistics.from_targets([[], []], 3, degenerate="ignore").mu is None
    assert quiet(COUNTS, 8).mu is None


@pytest.mark.parametrize(
    ("mu", "error"),
    [(math.nan, ValueError), (math.inf, ValueError), (10**400, ValueError), ("0.5", TypeError), (True, TypeError)],
)
def test_mu_is_a_finite_number(mu, error):
    with pytest.raises(error, match=r"^mu: expected a (finite )?number, got"):
        quiet(COUNTS, 8, mu=mu)


def test_suggest_mu_takes_the_mean_of_the_middle_two_for_an_even_number():
    # shares 1, 1/4, 3/4, 1: mean 3/4, median 7/8
    statistics = LabelStatistics.from_counts([3, 1], 4)
    assert statistics.suggest_mu([[0], [0, 1], [0]]) == pytest.approx((3 / 4 + 7 / 8) / 2)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ([[], []], r"targets: expected at least one label, got none"),
        (torch.zeros(3, 2), r"targets: expected at least one label, got none"),
        (torch.ones(3, 5), r"targets: expected 2 labels, got 5"),
    ],
)
def test_suggest_mu_rejects(targets, message):
    with pytest.raises(ValueError, match=message):
        LabelStatistics.from_counts([3, 1], 4).suggest_mu(targets)


def test_frequency_groups_include_their_boundaries():
    groups = LabelStatistics.from_counts([36, 35, 34, 9, 8, 7, 1], 100).frequency_groups(head=35, tail=8)
    assert groups.head.tolist() == [True, True, False, False, False, False, False]
    assert groups.medium.tolist() == [False, False, True, True, False, False, False]
    assert groups.tail.tolist() == [False, False, False, False, True, True, True]
    assert all(mask.dtype == torch.bool for mask in groups)


@given(counts_and_size, st.integers(0, 100), st.integers(1, 100))
def test_frequency_groups_part_the_labels(case, tail, gap):
    counts, n = case
    groups = LabelStatistics.from_counts(counts, n).frequency_groups(head=tail + gap, tail=tail)
    assert sum(mask.int() for mask in groups).tolist() == [1] * len(counts)


@pytest.mark.parametrize(("head", "tail"), [(8, 8), (8, 35)])
def test_frequency_groups_reject_a_tail_that_reaches_the_head(head, tail):
    with pytest.raises(ValueError, match=rf"tail: expected less than head = {head}, got {tail}"):
        LabelStatistics.from_counts([1], 10).frequency_groups(head=head, tail=tail)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({"head": True, "tail": 0}, r"^head: expected an integer, got bool True"),
        ({"head": 35, "tail": 8.0}, r"^tail: expected an integer, got float 8.0"),
        ({"head": 2**70, "tail": 8}, r"^head: expected an integer that fits into 64 bits"),
    ],
)
def test_frequency_groups_reject_what_is_no_integer(groups, message):
    with pytest.raises((TypeError, ValueError), match=message):
        LabelStatistics.from_counts([1], 10).frequency_groups(**groups)


def test_frequency_groups_take_the_integers_of_numpy():
    statistics = LabelStatistics.from_counts([36, 8, 9], 100)
    groups = statistics.frequency_groups(head=np.int64(35), tail=np.uint8(8))
    assert [mask.tolist() for mask in groups] == [[True, False, False], [False, False, True], [False, True, False]]


@pytest.mark.parametrize("mu", [None, 1 / 3, -0.0])
@pytest.mark.parametrize("name", ["counts.npz", "counts", "counts.dat"])
def test_save_and_load_round_trip(tmp_path, name, mu):
    statistics = quiet(COUNTS, 8, mu)
    statistics.save(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert LabelStatistics.load(str(tmp_path / name)) == statistics


def test_a_file_of_an_earlier_version_has_no_mu(tmp_path):
    np.savez(tmp_path / "old.npz", counts=np.array(COUNTS), num_samples=np.int64(8))
    assert LabelStatistics.load(tmp_path / "old.npz") == quiet(COUNTS, 8)


def write_npy(path):
    with path.open("wb") as file:
        np.save(file, np.arange(3))


def write_npz(**arrays):
    return lambda path: np.savez(path, **arrays)


def write_truncated(path):
    LabelStatistics.from_counts([1, 2, 3], 8).save(path)
    path.write_bytes(path.read_bytes()[:-100])


def write_damaged(path):
    LabelStatistics.from_counts([1, 2, 3], 8).save(path)
    content = bytearray(path.read_bytes())
    content[content.index(b"NUMPY") + 130] ^= 0xFF
    path.write_bytes(content)


@pytest.mark.parametrize(
    "write",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_text("counts: 1 2 3"),
        lambda path: path.write_bytes(b"PK\x03\x04 no archive"),
        lambda path: path.write_bytes(pickle.dumps({"counts": [1, 2]})),
        lambda path: torch.save({"counts": torch.ones(3)}, path),
        write_npy,
        write_npz(counts=np.arange(3)),
        write_npz(num_samples=np.int64(3)),
        write_npz(counts=np.array([1, None]), num_samples=np.int64(3)),
        write_npz(counts=np.array([1, 2]), num_samples=np.array([3, 4])),
        write_npz(counts=np.array([1, 2]), num_samples=np.array("x")),
        write_npz(counts=np.array([1, 2]), num_samples=np.int64(3), mu=np.float64(np.nan)),
        write_npz(counts=np.array([1, 2]), num_samples=np.int64(3), mu=np.array([0.5])),
        write_truncated,
        write_damaged,
    ],
    ids=[
        "empty",
        "text",
        "zip-like",
        "pickle",
        "torch",
        "npy",
        "no-num-samples",
        "no-counts",
        "objects",
        "two-sizes",
        "text-size",
        "no-mu",
        "array-mu",
        "truncated",
        "damaged",
    ],
)
def test_load_of_a_foreign_file_says_so(tmp_path, write):
    path = tmp_path / "file.npz"
    write(path)
    with pytest.raises(ValueError, match=r"path: expected an archive that LabelStatistics.save wrote, got .*file.npz"):
        LabelStatistics.load(path)


def test_load_of_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.npz"):
        LabelStatistics.load(tmp_path / "nothing.npz")


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_copies_are_equal_and_usable(duplicate):
    statistics = quiet(COUNTS, 8, mu=1 / 3)
    statistics.cache["key"] = "value"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        other = duplicate(statistics)
    assert other == statistics
    torch.testing.assert_close(other.ntr_bias(), statistics.ntr_bias(), rtol=1e-14, atol=1e-15)
    assert other.cache == {}
    assert other.cache is not statistics.cache


def test_equality():
    statistics = LabelStatistics.from_counts([1, 2], 4)
    assert statistics == LabelStatistics.from_counts([1, 2], 4)
    assert statistics != LabelStatistics.from_counts([2, 1], 4)
    assert statistics != LabelStatistics.from_counts([1, 2], 5)
    assert statistics != LabelStatistics.from_counts([1, 2, 3], 4)
    assert statistics != LabelStatistics.from_counts([1, 2], 4, mu=0.5)
    assert LabelStatistics.from_counts([1, 2], 4, mu=1) == LabelStatistics.from_counts([1, 2], 4, mu=np.float32(1))
    assert statistics != "statistics"
    assert repr(statistics) == "LabelStatistics(num_labels=2, num_samples=4)"
    assert repr(LabelStatistics.from_counts([1, 2], 4, mu=0.5)).endswith("num_samples=4, mu=0.5)")
