"""SparseTargets, made from dense and sparse forms, checked, selected and converted."""

import copy
import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.sparse import coo_array, csc_array, csr_array, csr_matrix

from fused_balanced_loss import LabelStatistics, SparseTargets
from fused_balanced_loss.target_checks import refuse_multi_hot
from fused_balanced_loss.targets import as_sparse_targets

IDS = [[0, 2], [], [2, 3, 5], [5], [0, 1, 2, 3, 4, 5], []]
DENSE = torch.tensor([[int(label in row) for label in range(6)] for row in IDS], dtype=torch.uint8)


@st.composite
def id_lists(draw):
    num_labels = draw(st.integers(1, 9))
    row = st.lists(st.integers(0, num_labels - 1), unique=True, max_size=num_labels)
    ids = draw(st.lists(row, max_size=8))
    try:
        refuse_multi_hot([np.array(row) for row in ids], num_labels)
    except ValueError:
        assume(False)
    return ids, num_labels


@pytest.fixture
def targets():
    return SparseTargets.from_lists(IDS, 6)


def test_layout(targets):
    assert targets.crow.tolist() == [0, 2, 2, 5, 6, 12, 12]
    assert targets.col.tolist() == [label for row in IDS for label in row]
    assert targets.rows.tolist() == [k for k, row in enumerate(IDS) for _ in row]
    assert targets.crow.dtype == targets.col.dtype == targets.rows.dtype == torch.int64
    assert targets.shape == (6, 6)
    assert len(targets) == 6
    assert targets.device == torch.device("cpu")
    assert repr(targets) == "SparseTargets(shape=[6, 6], nnz=12, device='cpu')"


@pytest.mark.parametrize(
    "build",
    [
        lambda: SparseTargets.from_lists([row[::-1] for row in IDS], 6),
        lambda: SparseTargets.from_lists((tuple(row) for row in IDS), 6),
        lambda: SparseTargets.from_lists([np.array(row, np.uint8) for row in IDS], 6),
        lambda: SparseTargets.from_lists([torch.tensor(row, dtype=torch.int32) for row in IDS], 6),
        lambda: SparseTargets.from_lists([set(row) for row in IDS], 6),
        lambda: SparseTargets.from_lists([iter(row) for row in IDS], 6),
        lambda: SparseTargets(
            torch.tensor([0, 2, 2, 5, 6, 12, 12]), torch.tensor([label for row in IDS for label in row]), 6
        ),
        lambda: SparseTargets.from_scipy(csr_array(DENSE.numpy())),
        lambda: SparseTargets.from_scipy(csr_matrix(DENSE.numpy().astype(bool))),
        lambda: SparseTargets.from_scipy(csc_array(DENSE.numpy().astype(np.float64))),
        lambda: SparseTargets.from_scipy(coo_array(DENSE.numpy())),
        lambda: SparseTargets.from_torch(DENSE.to_sparse_csr()),
        lambda: SparseTargets.from_torch(DENSE.to_sparse_coo()),
        lambda: SparseTargets.from_torch(DENSE.bool().to_sparse_csr()),
        lambda: SparseTargets.from_torch(DENSE.double().to_sparse_coo()),
        lambda: SparseTargets.from_torch(DENSE.float().to_sparse_csc()),
        lambda: SparseTargets.from_torch(DENSE.float().to_sparse_bsr((2, 3))),
        lambda: SparseTargets.from_torch(DENSE.float().to_sparse_bsc((3, 2))),
        lambda: SparseTargets.from_dense(pd.DataFrame(DENSE.numpy())),
        lambda: SparseTargets.from_dense(pd.DataFrame(DENSE.numpy()).astype({0: bool, 3: float})),
        lambda: SparseTargets.from_dense(DENSE.numpy()[::-1].copy()[::-1]),
    ],
)
def test_every_form_gives_the_same(build, targets):
    assert build() == targets


@pytest.mark.parametrize(
    "dtype",
    [
        torch.bool,
        torch.uint8,
        torch.int8,
        torch.int16,
        torch.int32,
        torch.int64,
        torch.bfloat16,
        torch.float32,
        torch.float64,
    ],
)
def test_dense_round_trip(targets, dtype):
    dense = targets.to_dense(dtype)
    assert dense.dtype == dtype
    assert torch.equal(dense, DENSE.to(dtype))
    assert SparseTargets.from_dense(dense) == targets


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32, np.uint64])
def test_unsigned_dense(dtype):
    assert SparseTargets.from_dense(DENSE.numpy().astype(dtype)).to_lists() == [sorted(row) for row in IDS]


def test_dense_is_uint8_unless_told():
    assert SparseTargets.from_lists([[0]], 2).to_dense().dtype == torch.uint8


@pytest.mark.parametrize("order", [torch.Tensor.t, lambda x: x.t().contiguous().t(), lambda x: x[::2]])
def test_strided_dense(order):
    dense = order(DENSE)
    assert torch.equal(SparseTargets.from_dense(dense).to_dense(), dense)


def test_scipy_keeps_its_matrix_and_drops_explicit_zeros():
    matrix = csr_array((np.array([1.0, 0.0, 1.0]), np.array([2, 1, 0]), np.array([0, 2, 3])), shape=(2, 3))
    assert SparseTargets.from_scipy(matrix).to_lists() == [[2], [0]]
    assert matrix.nnz == 3
    assert matrix.indices.tolist() == [2, 1, 0]


@pytest.mark.parametrize("layout", ["coo", "csr"])
def test_torch_drops_explicit_zeros(layout):
    coo = torch.sparse_coo_tensor([[0, 0, 1], [2, 1, 0]], [1.0, 0.0, 1.0], (2, 3)).coalesce()
    assert SparseTargets.from_torch(coo if layout == "coo" else coo.to_sparse_csr()).to_lists() == [[2], [0]]


def test_uncoalesced_torch_entries_are_sorted():
    coo = torch.sparse_coo_tensor([[1, 0, 0], [0, 2, 1]], [1.0, 1.0, 1.0], (2, 3))
    assert SparseTargets.from_torch(coo).to_lists() == [[1, 2], [0]]


@pytest.mark.parametrize("matrix", [coo_array(([1, 1], ([0, 0], [1, 1])), shape=(1, 2)), csr_array([[0.5, 1.0]])])
def test_scipy_rejects_other_values(matrix):
    with pytest.raises(ValueError, match=r"targets: expected 0 or 1, got (2|0.5)"):
        SparseTargets.from_scipy(matrix)


def test_torch_rejects_repeated_entries():
    with pytest.raises(ValueError, match=r"targets: expected 0 or 1, got 2"):
        SparseTargets.from_torch(torch.sparse_coo_tensor([[0, 0], [1, 1]], [1.0, 1.0], (1, 2)))


@given(id_lists())
def test_round_trips(case):
    ids, num_labels = case
    targets = SparseTargets.from_lists(ids, num_labels)
    assert targets.to_lists() == [sorted(row) for row in ids]
    assert targets.shape == (len(ids), num_labels)
    assert targets.rows.tolist() == [k for k, row in enumerate(ids) for _ in row]
    dense = targets.to_dense()
    assert dense.shape == targets.shape
    assert SparseTargets.from_dense(dense) == targets
    assert SparseTargets.from_dense(dense.numpy()) == targets
    assert SparseTargets.from_torch(dense.to_sparse_coo()) == targets
    if ids:
        assert SparseTargets.from_scipy(targets.to_scipy()) == targets
        assert np.array_equal(targets.to_scipy().toarray(), dense.numpy())
        assert SparseTargets.from_torch(dense.to_sparse_csr()) == targets
    assert SparseTargets(targets.crow, targets.col, num_labels) == targets
    assert pickle.loads(pickle.dumps(targets)) == targets


@given(id_lists(), st.data())
def test_selection_is_that_of_the_dense_form(case, data):
    ids, num_labels = case
    targets = SparseTargets.from_lists(ids, num_labels)
    cut = data.draw(st.slices(len(ids)))
    numbers = list(range(len(ids)))
    assert targets[cut].to_lists() == [sorted(ids[k]) for k in numbers[cut]]
    chosen = data.draw(st.lists(st.integers(-len(ids), len(ids) - 1), max_size=12)) if ids else []
    for index in (chosen, tuple(chosen), np.array(chosen, np.int64), torch.tensor(chosen, dtype=torch.int64)):
        assert targets[index].to_lists() == [sorted(ids[k]) for k in chosen]
        assert targets[index].num_labels == num_labels


@pytest.mark.parametrize("index", [[], slice(0, 0), torch.tensor([], dtype=torch.int64), slice(9, None)])
def test_empty_selection(targets, index):
    empty = targets[index]
    assert empty.shape == (0, 6)
    assert empty.crow.tolist() == [0]
    assert empty.rows.tolist() == empty.to_lists() == []


def test_selected_rows_pass_the_checks(targets):
    some = targets[[4, 1, -4, 0, 4]]
    assert SparseTargets(some.crow, some.col, 6) == some
    assert some.to_lists() == [IDS[4], [], IDS[2], IDS[0], IDS[4]]


@pytest.mark.parametrize("index", [[6], [-7], [0, 99], torch.tensor([6]), np.array([-7])])
def test_selection_out_of_range(targets, index):
    with pytest.raises(IndexError, match=r"index: expected row numbers in \[-6, 6\), got"):
        targets[index]


@pytest.mark.parametrize(
    "index", [2, np.int64(2), torch.tensor(2), torch.tensor([[0, 1]]), [0.5], torch.tensor([0.0, 1.0]), "ab", None]
)
def test_selection_by_something_else(targets, index):
    with pytest.raises((TypeError, IndexError, ValueError), match=r"index: expected"):
        targets[index]


@pytest.mark.parametrize("form", [list, np.array, torch.tensor])
def test_a_boolean_mask_selects_or_is_refused(targets, form):
    mask = form([True, False, True, False, False, True])
    try:
        chosen = targets[mask]
    except (TypeError, IndexError) as error:
        assert "index" in str(error)  # noqa: PT017
    else:
        assert chosen.to_lists() == [IDS[0], IDS[2], IDS[5]]


@pytest.mark.parametrize("ids", [[], [[]], [[], [], []]])
def test_nothing_at_all(ids):
    targets = SparseTargets.from_lists(ids, 4)
    assert targets.shape == (len(ids), 4)
    assert targets.to_lists() == ids
    assert targets.rows.numel() == targets.col.numel() == 0
    assert targets.to_dense().shape == (len(ids), 4)
    assert not targets.to_dense().any()
    assert targets.to_scipy().shape == (len(ids), 4)
    assert repr(targets) == f"SparseTargets(shape=[{len(ids)}, 4], nnz=0, device='cpu')"


def test_equality(targets):
    assert targets == SparseTargets.from_lists(IDS, 6)
    assert targets != SparseTargets.from_lists(IDS, 7)
    assert targets != SparseTargets.from_lists(IDS[::-1], 6)
    assert targets != SparseTargets.from_lists(IDS[:-1], 6)
    assert SparseTargets.from_lists([[0], []], 2) != SparseTargets.from_lists([[], [0]], 2)
    assert targets != IDS
    with pytest.raises(TypeError, match="unhashable"):
        hash(targets)


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda one: one.to("cpu")])
def test_copies(targets, duplicate):
    assert duplicate(targets) == targets


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="page-locked memory needs a GPU")
def test_pin_memory_and_device(targets):
    pinned = targets.pin_memory()
    assert pinned.crow.is_pinned()
    assert pinned.col.is_pinned()
    moved = pinned.to("cuda", non_blocking=True)
    assert moved.device.type == "cuda"
    assert moved.to("cpu") == targets
    assert torch.equal(moved.to_dense().cpu(), DENSE)


def unchecked(crow, col, num_labels=3):
    return SparseTargets(torch.tensor(crow), torch.tensor(col, dtype=torch.int64), num_labels, check=False)


@pytest.mark.parametrize(
    ("crow", "col", "message"),
    [
        ([0, 1, 2], [0, 3], r"^targets: expected label ids in \[0, 3\), got 3 in row 1"),
        ([0, 1, 2], [0, 10**9], r"^targets: expected label ids in \[0, 3\), got 1000000000 in row 1"),
        ([0, 1, 2], [-1, 1], r"^targets: expected label ids in \[0, 3\), got -1 in row 0"),
        ([0, 2], [1, 1], r"^targets: expected each label id once in a row, ascending; got 1 twice in row 0"),
        ([0, 10**15, 2], [0, 1], r"^crow: expected offsets that rise from 0 to 2, the length of col"),
        ([0, -5, 2], [0, 1], r"^crow: expected offsets that rise from 0 to 2"),
        # Their difference overflows to a positive number.
        ([0, 2**62, -(2**62) - 5, 2], [0, 1], r"^crow: expected offsets that rise from 0 to 2"),
        ([0, 10**15], [0, 1], r"^crow: expected offsets that rise from 0 to 2"),
    ],
)
def test_unchecked_targets_are_checked_later(crow, col, message):
    targets = unchecked(crow, col)
    for use in (SparseTargets.check, as_sparse_targets, LabelStatistics.from_targets):
        with pytest.raises(ValueError, match=message):
            use(targets)


def test_unchecked_good_targets_pass():
    unchecked([0, 1, 3], [2, 0, 1]).check()


def test_a_label_out_of_range_never_becomes_that_of_another_row():
    with pytest.raises(IndexError):
        unchecked([0, 1, 1], [3]).to_dense()


@pytest.mark.parametrize("shape", [(4,), (2, 2, 2)])
def test_scipy_rejects_other_dimensions(shape):
    with pytest.raises(ValueError, match=r"^targets: expected a scipy sparse matrix \[N, C\], got shape"):
        SparseTargets.from_scipy(coo_array(np.ones(shape)))


@pytest.mark.parametrize(
    "matrix", [DENSE.float().to_sparse(1), torch.ones(3, 4, 2).to_sparse_csr(dense_dim=1), DENSE[None].to_sparse_coo()]
)
def test_torch_rejects_other_dimensions(matrix):
    with pytest.raises(
        ValueError, match=r"^targets: expected a sparse \[N, C\] tensor without dense dim.*, got a torch"
    ):
        SparseTargets.from_torch(matrix)


def broken(layout):
    # Converting such offsets writes outside the memory of the result.
    offsets, plain = torch.tensor([0, 10**9, 1]), torch.tensor([9])
    return torch.sparse_compressed_tensor(offsets, plain, torch.ones(1), (2, 2), layout=layout, check_invariants=False)


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.sparse_coo_tensor([[0], [9]], [1.0], (2, 2), check_invariants=False),
        lambda: torch.sparse_coo_tensor([[-1], [0]], [1.0], (2, 2), check_invariants=False),
        lambda: broken(torch.sparse_csr),
        lambda: broken(torch.sparse_csc),
    ],
)
def test_torch_rejects_indices_outside_the_shape(make):
    with pytest.raises(ValueError, match=r"^targets: expected valid indices in a torch.sparse_"):
        SparseTargets.from_torch(make())
