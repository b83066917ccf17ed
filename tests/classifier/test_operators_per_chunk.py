"""What a chunk of the classifier costs the host: PyTorch operators, counted, for the chunk and for the set-up."""

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fused_balanced_loss import (
    AdamWUpdate,
    LabelStatistics,
    LinearBalancedLoss,
    LossSpec,
    SGDUpdate,
    SparseTargets,
    linear_balanced_loss,
)
from fused_balanced_loss.backends import device
from fused_balanced_loss.backends.problem import LabelConstants, Problem
from fused_balanced_loss.classifier import chunked_pass, label_chunks, products

DB = LossSpec.preset("DB", corpus="reuters")
SIZE = 128


class OperatorCounter(TorchDispatchMode):
    """Counts every operator that reaches a kernel of PyTorch, views and allocations too."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.counts[str(func)] += 1
        return func(*args, **(kwargs or {}))


class StubLoss:
    """A loss that starts no operator but for its result, as a kernel that is launched directly."""

    def __init__(self):
        self.result = torch.zeros(())
        self.logits = []

    def value(self, problem, reduction, scale):
        self.logits.append(problem.logits)
        return self.result

    def value_and_gradient(self, problem, scale, out):
        self.logits.append(out)
        return self.result, out

    def scale_gradient(self, gradient, upstream):
        pass


def count(num_chunks, targets, *, weight_dtype=torch.float32, dtype=torch.float32, update=None, num_rows=5, mask=False):
    """Operators of a forward and a backward over ``num_chunks`` chunks."""
    num_labels = SIZE * (num_chunks - 1) + 100
    features = torch.randn(num_rows, 8, dtype=dtype).requires_grad_()
    weight, bias = torch.randn(num_labels, 8, dtype=weight_dtype), torch.randn(num_labels, dtype=weight_dtype)
    weight.requires_grad_(), bias.requires_grad_()
    statistics = LabelStatistics.from_counts(torch.arange(num_labels) % 90 + 1, 100)
    y = SparseTargets.from_lists([[k, k + 60] for k in range(num_rows)], num_labels)
    y = y if targets == "csr" else y.to_dense()
    label_mask = torch.ones(num_rows, num_labels, dtype=torch.bool) if mask else None
    if update is not None:
        update = update()
        update.prepare(weight, bias)
    with torch.autocast("cpu", torch.bfloat16, enabled=weight_dtype != dtype):

        def step():
            loss = linear_balanced_loss(
                features, weight, bias, y, DB, statistics, chunk_size=SIZE, update=update, label_mask=label_mask
            )
            loss.backward()

        # The first call makes the labels' constants and loads the kernel.
        step()
        features.grad = weight.grad = bias.grad = None
        with OperatorCounter() as counter:
            step()
    return counter.counts


def of_a_chunk(**options):
    few, many = count(3, **options), count(11, **options)
    return {name: (many[name] - few[name]) / 8 for name in few | many if many[name] != few[name]}


@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("targets", ["csr", "uint8"])
def test_the_set_up_does_not_grow_and_a_chunk_takes_four_operators(targets, mask, monkeypatch):
    monkeypatch.setattr(chunked_pass, "select", lambda impl, problem: StubLoss())
    found = of_a_chunk(targets=targets, mask=mask)
    # Three products and the bias's gradient.
    products_and_sum = {
        "aten.addmm.out": 1,
        "aten.addmm_.default": 1,
        "aten.mm.out": 1,
        "aten.sum.IntList_out": 1,
    }
    assert found == products_and_sum
    set_up = sum(count(3, targets=targets, mask=mask).values()) - 3 * sum(found.values())
    # Four of them fill fresh memory with NaN, which tests do.
    assert set_up <= {"csr": 57, "uint8": 38}[targets] + 4 + (6 if mask else 0)


@pytest.mark.parametrize("targets", ["csr", "uint8"])
def test_with_the_loss_a_chunk_takes_at_most_ten(targets):
    assert sum(of_a_chunk(targets=targets).values()) <= 10


def test_autocast_adds_one_operator_for_each_conversion(monkeypatch):
    monkeypatch.setattr(chunked_pass, "select", lambda impl, problem: StubLoss())
    found = of_a_chunk(targets="csr", dtype=torch.bfloat16, weight_dtype=torch.float32)
    # On a GPU the products go into float32, one operator each; the CPU adds and scales by operators of their own.
    extra = {"aten.mm.default", "aten.add_.Tensor", "aten.mul.out", "aten.new_full.default"}
    assert sum(number for name, number in found.items() if name not in extra) <= 5, found
    assert sum(found.values()) <= 10, found


@pytest.mark.parametrize("keep", [True, False])
def test_an_update_takes_no_more_operators_of_the_classifier(keep, monkeypatch):
    monkeypatch.setattr(chunked_pass, "select", lambda impl, problem: StubLoss())
    monkeypatch.setattr(chunked_pass, "keeps_gradient", lambda *arguments: keep)
    found = of_a_chunk(targets="csr", update=lambda: SGDUpdate(0.1))
    # The logits, twice unless their gradient is kept; two products; the bias's gradient. The update comes on top.
    ours = {"aten.addmm.out": 1 if keep else 2, "aten.addmm_.default": 1, "aten.mm.out": 1, "aten.sum.dim_IntList": 1}
    assert {name: found.get(name) for name in ours} == ours


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("chunk_size", [None, 7, 16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_update_that_keeps_the_gradient_steps_as_one_that_makes_it_again(dtype, chunk_size, bias, monkeypatch):
    results = []
    for keep in (True, False):
        monkeypatch.setattr(chunked_pass, "keeps_gradient", lambda *arguments, keep=keep: keep)
        torch.manual_seed(0)
        statistics = LabelStatistics.from_counts(torch.arange(37) + 1, 100)
        module = LinearBalancedLoss(
            DB, statistics, 8, update=AdamWUpdate(0.1), bias=bias, dtype=dtype, chunk_size=chunk_size
        )
        features = torch.randn(5, 8, dtype=dtype).requires_grad_()
        targets = SparseTargets.from_lists([[k, k + 20] for k in range(5)], 37)
        losses = []
        for step in range(3):
            features.grad = None
            loss = module(features * (step + 1), targets)
            losses.append(loss.detach())
            # Another call between a forward and its backward must not take what was kept.
            module(features, targets)
            loss.backward(torch.tensor(0.5))
        results.append([torch.stack(losses), features.grad, *(part.detach() for part in module.parameters())])
    # The logits lie elsewhere, so that a product may take another path.
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5 if dtype == torch.float32 else 2e-2, atol=1e-6)


def test_what_is_kept_is_given_back_after_the_backward():
    statistics = LabelStatistics.from_counts(torch.arange(37) + 1, 100)
    module = LinearBalancedLoss(DB, statistics, 8, update=SGDUpdate(0.1), chunk_size=16)
    targets = SparseTargets.from_lists([[1], [30]], 37)
    loss = module(torch.randn(2, 8), targets)
    chunked = loss.grad_fn.chunked
    kept = chunked._kept
    assert [logits.shape for logits, _ in kept] == [(2, 16), (2, 16), (2, 5)]
    loss.backward(retain_graph=True)
    assert chunked._kept == []
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_no_more_is_kept_than_a_chunk_takes():
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert label_chunks.keeps_gradient(32, 18_211, torch.float32, cpu)
    assert not label_chunks.keeps_gradient(128, 131_072, torch.float32, cpu)
    assert label_chunks.keeps_gradient(64, 1_000_000, torch.bfloat16, gpu)
    assert not label_chunks.keeps_gradient(64, 3_000_000, torch.bfloat16, gpu)


def test_one_chunk_is_not_cut(monkeypatch):
    """Few labels: the loss gets the problem as it came, so that nothing is made for it."""
    monkeypatch.setattr(chunked_pass, "select", lambda impl, problem: StubLoss())
    found = count(1, "csr")
    assert not {name for name in found if "sort" in name or "segment" in name}
    # Four of them fill fresh memory with NaN, which tests do.
    assert sum(found.values()) <= 24 + 4, found


@pytest.mark.parametrize("num_rows", range(1, 21))
def test_chunks_are_aligned_at_any_batch(num_rows):
    """Triton compiles anew for pointers that are not multiples of 16 bytes."""
    num_labels = 1000
    targets = SparseTargets.from_lists([[k, 500 + k] for k in range(num_rows)], num_labels)
    constants = LabelConstants(torch.zeros(num_labels), torch.ones(num_labels), None)
    problem = Problem(torch.empty(0), targets, DB, constants, label_mask=None)
    for chunk in label_chunks.LabelChunks(problem, 256, 0, num_labels):
        for part in (chunk.targets.crow, chunk.targets.col, chunk.labels.bias, chunk.labels.inverse_frequency):
            assert (part.data_ptr() - part.untyped_storage().data_ptr()) % 16 == 0
        assert chunk.targets.crow.stride() == (1,)


@pytest.mark.parametrize("update", [False, True])
@pytest.mark.parametrize(("num_labels", "chunk_size"), [(18_211, None), (300, 128), (300, 150), (131, None)])
def test_rows_of_logits_are_whole_256_bytes(num_labels, chunk_size, update, monkeypatch):
    """An odd number of labels would keep the library's products in half precision from moving 16 bytes at once."""
    stub = StubLoss()
    monkeypatch.setattr(chunked_pass, "select", lambda impl, problem: stub)
    statistics = LabelStatistics.from_counts(torch.arange(num_labels) % 90 + 1, 100)
    made = SGDUpdate(0.1) if update else None
    module = LinearBalancedLoss(DB, statistics, 8, update=made, chunk_size=chunk_size, dtype=torch.bfloat16)
    module(torch.randn(5, 8, dtype=torch.bfloat16), SparseTargets.from_lists([[1]] * 5, num_labels)).backward()
    assert sum(logits.shape[1] for logits in stub.logits) == num_labels
    assert all(logits.stride(0) % 128 == 0 and logits.data_ptr() % 16 == 0 for logits in stub.logits)


@pytest.mark.parametrize(("num_labels", "size"), [(0, 1), (1, 1), (128, 128), (500, 500), (513, 384), (1100, 384)])
def test_chunks_are_of_about_one_size(num_labels, size):
    assert label_chunks.even_chunk_size(512, num_labels) == size


def test_batches_of_twenty_sizes_compile_twice(monkeypatch):
    """Once for the first batch, and once for batches of any size."""
    compiled = []

    def backend(graph, inputs):
        compiled.append(graph)
        return graph.forward

    num_labels = 300
    statistics = LabelStatistics.from_counts(torch.arange(num_labels) % 90 + 1, 100)
    module = LinearBalancedLoss(DB, statistics, 8, chunk_size=SIZE)
    torch._dynamo.reset()
    step = torch.compile(module, backend=backend)
    for num_rows in range(2, 22):
        targets = SparseTargets.from_lists([[k, k + 60] for k in range(num_rows)], num_labels)
        features = torch.randn(num_rows, 8).requires_grad_()
        loss = step(features, targets)
        loss.backward()
        torch.testing.assert_close(loss, module(features, targets))
    assert len(compiled) <= 2
    torch._dynamo.reset()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_products_into_float32_are_called_as_a_gpu_takes_them(dtype, monkeypatch):
    """Meta tensors: shapes, dtypes and the operators' schemas, as no CPU has these operators."""
    monkeypatch.setattr(products.devices, "multiplies_into_float32", lambda device: True)
    a, b = (torch.empty(shape, dtype=dtype, device="meta") for shape in ((6, 4), (4, 5)))
    out = torch.empty(6, 5, device="meta")
    with OperatorCounter() as counter:
        products.product(out, a, b)
        products.add_product(out, a, b)
        products.scaled_product(out, a, b, 0.5)
    assert counter.counts == {"aten.mm.dtype_out": 1, "aten.addmm.dtype_out": 2}


def test_this_pytorch_has_the_products_of_a_gpu():
    assert device.multiplies_into_float32(torch.device("cuda"))
    assert not device.multiplies_into_float32(torch.device("cpu"))


@pytest.mark.parametrize("out_dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_scaled_products_of_any_dtypes(dtype, out_dtype):
    a, b = torch.randn(6, 4, dtype=torch.float64).to(dtype), torch.randn(4, 5, dtype=torch.float64).to(dtype)
    out = torch.full((6, 5), float("nan"), dtype=out_dtype)
    products.scaled_product(out, a, b, 0.37)
    digits = max(torch.finfo(dtype).eps, torch.finfo(out_dtype).eps)
    torch.testing.assert_close(out.double(), 0.37 * a.double() @ b.double(), rtol=4 * digits, atol=4 * digits)
