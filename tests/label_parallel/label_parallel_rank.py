"""One rank of test_label_parallel.py, under torchrun: the checks for its number of ranks, their outcome to a file."""

import datetime
import json
import os
import signal
import sys
import time
import traceback
import warnings
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from fused_balanced_loss import LabelStatistics, LinearBalancedLoss, LossSpec, SparseTargets
from fused_balanced_loss.label_parallel import LabelParallelLinearLoss
from fused_balanced_loss.label_parallel.shards import shard_sizes
from fused_balanced_loss.optim.update import AdamWUpdate, SGDUpdate

N, D, C = 12, 6, 37
PRESETS = ("BCE", "FL", "CB", "R-FL", "NTR-FL", "DB-0FL", "CB-NTR", "DB", "ASL")
CHECKS = []


def check(*sizes):
    """Marks a check for so many ranks."""

    def mark(function):
        CHECKS.append((function, sizes))
        return function

    return mark


def world():
    return init_device_mesh("cpu", (dist.get_world_size(),), mesh_dim_names=("label",))


def data(seed=0, num_labels=C, num_rows=N, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(num_rows, D, generator=generator, dtype=torch.float64).to(dtype)
    dense = torch.rand(num_rows, num_labels, generator=generator) < 0.15
    counts = torch.randint(1, 400, (num_labels,), generator=generator)
    return features, dense, LabelStatistics.from_counts(counts, 1000, mu=0.4)


def linear(num_labels=C, dtype=torch.float64, seed=3, bias=True):
    torch.manual_seed(seed)
    return nn.Linear(D, num_labels, dtype=dtype, bias=bias)


def pair(spec, statistics, mesh, *, num_labels=C, dtype=torch.float64, bias=True, updates=(None, None), **options):
    """The whole classifier and its shards."""
    whole = LinearBalancedLoss.from_linear(
        linear(num_labels, dtype, bias=bias), spec, statistics, update=updates[0], **options
    )
    options |= {"update": updates[1]}
    shards = LabelParallelLinearLoss.from_linear(
        linear(num_labels, dtype, bias=bias), spec, statistics, mesh, **options
    )
    return whole, shards


def full(tensor):
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def close(got, expected, tolerance=1e-12):
    got, expected = full(got).detach().double(), full(expected).detach().double()
    assert got.shape == expected.shape, (got.shape, expected.shape)
    bound = tolerance * max(1e-300, float(expected.abs().max())) if expected.numel() else 0
    error = float((got - expected).abs().max()) if expected.numel() else 0
    assert error <= bound, f"off by {error}, allowed {bound}"


@contextmanager
def raises(kind, *words):
    try:
        yield
    except kind as error:
        missing = [word for word in words if word not in str(error)]
        if missing:
            raise AssertionError(f"{missing} not in: {error}") from error
    else:
        raise AssertionError(f"expected {kind.__name__} with {words}")


def loss_and_gradients(module, features, *arguments):
    features = features.detach().clone().requires_grad_()
    loss = module(features, *arguments)
    (loss * 3).backward()
    parameters = [module.weight, module.bias] if module.bias is not None else [module.weight]
    result = [loss, features.grad, *(full(parameter.grad) for parameter in parameters)]
    module.zero_grad()
    return result


@check(1, 2, 4)
def rows_are_those_of_torch():
    mesh = world()
    for labels in {1, 4, 5, 7, 37, 64, 90}:
        sizes = shard_sizes(labels, mesh.size())
        assert sum(sizes) == labels
        own = distribute_tensor(torch.arange(labels), mesh, [Shard(0)]).to_local()
        first = sum(sizes[: mesh.get_local_rank()])
        assert own.tolist() == list(range(first, first + sizes[mesh.get_local_rank()]))


@check(1, 2, 4)
def loss_and_gradients_of_all_presets():
    mesh = world()
    sample_weight = torch.linspace(0.5, 2, N, dtype=torch.float64)
    for preset in PRESETS:
        for labels, sparse, options in (
            (C, True, {}),
            (C, False, {"chunk_size": 4, "reduction": "sum"}),
            (5, True, {"gradient": "backward", "bias": False}),
        ):
            features, dense, statistics = data(num_labels=labels)
            targets = SparseTargets.from_dense(dense) if sparse else dense
            whole, shards = pair(
                LossSpec.preset(preset, corpus="reuters"), statistics, mesh, num_labels=labels, **options
            )
            mask = torch.rand(N, labels, generator=torch.Generator().manual_seed(5)) < 0.8
            for rest in ((), (sample_weight, mask)):
                expected = loss_and_gradients(whole, features, targets, *rest)
                for got, value in zip(loss_and_gradients(shards, features, targets, *rest), expected, strict=True):
                    close(got, value)


@check(2, 4)
def pooled_weights_and_reference():
    mesh = world()
    features, dense, statistics = data()
    for spec in (
        LossSpec.preset("CB").replace(pooling="mean_count"),
        LossSpec.preset("CB").replace(pooling="rarest"),
        LossSpec.preset("CB").replace(weighting="inverse_frequency"),
        LossSpec.preset("DB"),
        LossSpec.preset("DB", corpus="reuters"),
    ):
        for impl in ("auto", "reference"):
            whole, shards = pair(spec, statistics, mesh, impl=impl)
            expected = loss_and_gradients(whole, features, dense)
            for got, value in zip(loss_and_gradients(shards, features, dense), expected, strict=True):
                close(got, value)
    close(shards.logits(features.view(3, 4, D)), whole.logits(features.view(3, 4, D)))


@check(1, 2, 4)
def low_precision_within_rounding():
    mesh = world()
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        features, dense, statistics = data(dtype=dtype)
        whole, shards = pair(LossSpec.preset("DB", corpus="reuters"), statistics, mesh, dtype=dtype)
        exact = LinearBalancedLoss.from_linear(
            linear(dtype=dtype).double(), LossSpec.preset("DB", corpus="reuters"), statistics
        )
        oracle = loss_and_gradients(exact, features.double(), dense)
        parts = zip(
            loss_and_gradients(shards, features, dense),
            loss_and_gradients(whole, features, dense),
            oracle,
            strict=True,
        )
        for got, plain, true in parts:
            size = float(true.abs().max())
            error, allowed = ((x.double() - true).abs().max().item() for x in (got, plain))
            assert error <= 2 * allowed + 4 * torch.finfo(torch.float32).eps * size, (dtype, error, allowed)


@check(2)
def autocast_and_scaler():
    mesh = world()
    features, dense, statistics = data(dtype=torch.float32)
    whole, shards = pair(LossSpec.preset("DB", corpus="reuters"), statistics, mesh, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        expected = loss_and_gradients(whole, features, dense)
        got = loss_and_gradients(shards, features, dense)
    for one, other in zip(got, expected, strict=True):
        close(one, other, 1e-2)
    # One rank's infinite gradient makes all skip the step.
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    optimizer = torch.optim.SGD(shards.parameters(), lr=1.0)
    before = full(shards.weight).clone()
    scaler.scale(shards(features, dense)).backward()
    if mesh.get_local_rank() == 1:
        shards.weight.grad.to_local()[0, 0] = float("inf")
    scaler.step(optimizer)
    scaler.update()
    close(shards.weight, before)
    assert scaler.get_scale() == 2.0


class Encoder(nn.Module):
    def __init__(self, dtype=torch.float64):
        super().__init__()
        torch.manual_seed(11)
        self.first = nn.Linear(4, 8, dtype=dtype)
        self.second = nn.Linear(8, D, dtype=dtype)

    def forward(self, inputs):
        return self.second(torch.tanh(self.first(inputs)))


def inputs_of(step, dtype=torch.float64):
    return torch.randn(N, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(100 + step)).to(dtype)


@check(1, 2, 4)
def trajectory_of_twenty_steps():
    mesh = world()
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 2e-4)):
        _, dense, statistics = data()
        targets = SparseTargets.from_dense(dense)
        ways = []
        for module in pair(LossSpec.preset("DB", corpus="reuters"), statistics, mesh, dtype=dtype):
            encoder = Encoder(dtype)
            groups = [{"params": encoder.parameters()}, {"params": module.parameters()}]
            optimizer = torch.optim.AdamW(groups, lr=0.02, foreach=True)
            losses = []
            for step in range(20):
                optimizer.zero_grad()
                loss = module(encoder(inputs_of(step, dtype)), targets)
                loss.backward()
                optimizer.step()
                losses.append(loss.detach())
            ways.append([torch.stack(losses), *encoder.parameters(), *module.parameters()])
        assert ways[0][0][-1] < 0.7 * ways[0][0][0]
        for expected, got in zip(*ways, strict=True):
            close(got, expected, tolerance)


@check(1, 2, 4)
def predictions_are_those_of_the_whole():
    mesh = world()
    for labels in (5, C):
        features, _, statistics = data(num_labels=labels)
        whole, shards = pair(LossSpec.preset("DB", corpus="reuters"), statistics, mesh, num_labels=labels, chunk_size=3)
        for k in (1, 3, labels):
            for got, expected in zip(shards.predict_topk(features, k), whole.predict_topk(features, k), strict=True):
                close(got, expected)
        for threshold in (0.0, 0.5, 0.7, 1.0):
            got, expected = shards.predict_above(features, threshold), whole.predict_above(features, threshold)
            assert got.labels == expected.labels
            close(got.logits, expected.logits)
        none = shards.predict_above(features[:0], 0.5)
        assert none.labels.shape == (0, labels)
        with raises(ValueError, "k: expected", str(labels)):
            shards.predict_topk(features, labels + 1)
        with raises(ValueError, "threshold"):
            shards.predict_above(features, 2.0)
        with raises(ValueError, "features: expected"):
            shards.predict_topk(features[:, 1:], 2)


@check(1, 2, 4)
def update_in_place():
    mesh = world()
    for labels in (5, C):
        features, dense, statistics = data(num_labels=labels, dtype=torch.float32)
        for make in (
            lambda: SGDUpdate(0.5, momentum=0.9, weight_decay=1e-3),
            lambda: AdamWUpdate(0.05, max_row_norm=0.01),
            lambda: AdamWUpdate(0.05, state="row"),
        ):
            whole, shards = pair(
                LossSpec.preset("DB", corpus="reuters"),
                statistics,
                mesh,
                num_labels=labels,
                dtype=torch.float32,
                updates=(make(), make()),
                chunk_size=4,
            )
            for step in range(5):
                for module in (whole, shards):
                    inputs = features.clone().requires_grad_()
                    module(inputs * (1 + step), dense).backward()
                assert shards.weight.grad is None
            close(shards.weight, whole.weight, 1e-4)
            close(shards.bias, whole.bias, 1e-4)
            assert int(shards.update.steps) == 5
            # Infinite in one rank's label: no rank steps.
            before = full(shards.weight).clone()
            with torch.no_grad():
                if shards.first_label == 0:
                    shards.bias.to_local()[0] = float("inf")
            shards(features, torch.zeros_like(dense)).backward()
            close(shards.weight, before)
            assert int(shards.update.steps) == 5 and int(shards.update.skipped) == 1


@check(2, 4)
def stochastic_rounding_is_that_of_the_whole():
    """Gradients small against the weight: only the random bits move it, and those are the label's own."""
    mesh = world()
    features, dense, statistics = data(dtype=torch.bfloat16)
    updates = (SGDUpdate(1.0, seed=7), SGDUpdate(1.0, seed=7))
    whole, shards = pair(
        LossSpec.preset("DB", corpus="reuters"), statistics, mesh, dtype=torch.bfloat16, updates=updates
    )
    for _ in range(20):
        for module in (whole, shards):
            module(features, dense).backward()
    same = (full(shards.weight) == whole.weight).double().mean()
    assert same > 0.98, same
    assert (whole.weight != linear(dtype=torch.bfloat16).weight).any()


@check(1, 2, 4)
def initial_values_do_not_depend_on_the_ranks():
    _, _, statistics = data(num_labels=3001)
    torch.manual_seed(17)
    module = LabelParallelLinearLoss(
        LossSpec.preset("DB", corpus="reuters"), statistics, D, world(), dtype=torch.float64
    )
    weight, bias = full(module.weight), full(module.bias)
    assert 0.9 < float(weight.std() * (3 * D) ** 0.5) < 1.1 and 0 < float(bias.abs().max()) <= D**-0.5
    # Of all numbers of ranks: test_label_parallel.py compares.
    RESULTS["sums"] = [float(weight.sum()), float((weight.T @ bias).sum())]
    # Seeds that differ: the first rank's counts.
    torch.manual_seed(dist.get_rank())
    module.reset_parameters()
    parts = [torch.empty_like(full(module.weight)) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, full(module.weight))
    assert all(torch.equal(part, parts[0]) for part in parts)


@check(1, 2, 4)
def edges():
    mesh = world()
    features, dense, statistics = data()
    whole, shards = pair(LossSpec.preset("DB", corpus="reuters"), statistics, mesh, reduction="sum")
    for module in (whole, shards):
        empty = features[:0].clone().requires_grad_()
        loss = module(empty, dense[:0])
        loss.backward()
        assert loss.item() == 0 and loss.dtype == torch.float64
        assert empty.grad.shape == (0, D) and not full(module.weight.grad).any()
    module = LabelParallelLinearLoss(LossSpec.preset("BCE"), None, D, mesh, num_labels=C, bias=False)
    module.eval()
    with torch.no_grad():
        assert module(features.float(), dense).isfinite()
    bad = torch.nan_to_num(dense.double())
    bad[0, 0] = 0.5
    with raises(ValueError, "targets: expected 0 or 1"):
        shards(features.clamp(0) * float("nan"), bad)
    assert f"num_labels={C}" in repr(shards) and "rank" in repr(shards)
    compiled = torch.compile(shards, backend="eager")
    close(compiled(features, dense), whole(features, dense))
    group = LabelParallelLinearLoss.from_linear(
        linear(), LossSpec.preset("DB", corpus="reuters"), statistics, dist.group.WORLD
    )
    close(group(features, dense), shards(features, dense) / dense.numel())


@check(2, 4)
def errors_name_what_is_wrong():
    mesh, rank = world(), dist.get_rank()
    features, dense, statistics = data()
    db = LossSpec.preset("DB", corpus="reuters")
    _, shards = pair(db, statistics, mesh)
    with raises(ValueError, "targets: expected shape", f"{[N, C]}"):
        shards(features, dense[:, : shards._sizes[0]])
    with raises(ValueError, "features: expected"):
        shards(features[:, 1:], dense)
    with raises(ValueError, "features: expected at least one sample"):
        shards(features[:0], dense[:0])
    other = LabelStatistics.from_counts(statistics.counts + int(rank == 1), 1000)
    with raises(ValueError, "statistics: expected the same on all", "[1]"):
        LabelParallelLinearLoss(db, other, D, mesh)
    other = LabelStatistics.from_counts(statistics.counts, 1000, mu=0.4 + (rank == 1))
    with raises(ValueError, "statistics: expected the same on all", "[1]"):
        LabelParallelLinearLoss(LossSpec.preset("DB"), other, D, mesh)
    with raises(ValueError, "settings: expected the same"):
        LabelParallelLinearLoss(db, statistics, D, mesh, dtype=torch.float64 if rank else torch.float32)
    with raises(ValueError, "mesh: expected no more ranks than labels, 1"):
        LabelParallelLinearLoss(LossSpec.preset("BCE"), None, D, mesh, num_labels=1)
    square = init_device_mesh("cpu", (2, dist.get_world_size() // 2), mesh_dim_names=("data", "label"))
    with raises(ValueError, "mesh: expected one dimension", "'data', 'label'"):
        LabelParallelLinearLoss(db, statistics, D, square)
    with raises(TypeError, "mesh: expected a DeviceMesh"):
        LabelParallelLinearLoss(db, statistics, D, 4)
    with raises(ValueError, "impl"):
        LabelParallelLinearLoss(db, statistics, D, mesh, impl="reference", update=SGDUpdate(0.1))
    with raises(TypeError, "update"):
        LabelParallelLinearLoss(db, statistics, D, mesh, update="sgd")
    with raises(ValueError, "linear: expected 37"):
        LabelParallelLinearLoss.from_linear(linear(9), db, statistics, mesh)
    with raises(ValueError, "targets: expected the same on all"):
        pair(db, statistics, mesh)[1](features, dense if rank else ~dense)
    with raises(ValueError, "features: expected the same on all"):
        pair(db, statistics, mesh)[1](features * (1 + rank), dense)


@check(2, 4)
def the_first_call_compares_weights_and_masks():
    mesh, last = world(), dist.get_rank() == dist.get_world_size() - 1
    features, dense, statistics = data()
    weight = torch.linspace(0.5, 2, N, dtype=torch.float64)
    mask = torch.rand(N, C, generator=torch.Generator().manual_seed(5)) < 0.8
    other_mask = mask.clone()
    other_mask[N - 1, C - 1] ^= True
    where = f"[{dist.get_world_size() - 1}]"
    for name, (common, other) in {
        "sample_weight": (weight, weight * (1 + 1e-9)),
        "sample_weight ": (weight, weight.float()),
        "sample_weight  ": (weight, None),
        "sample_weight   ": (None, weight),
        "label_mask": (mask, other_mask),
        "label_mask ": (mask, None),
        "label_mask  ": (None, mask[0]),
    }.items():
        argument = name.strip()
        _, shards = pair(LossSpec.preset("DB", corpus="reuters"), statistics, mesh)
        with raises(ValueError, f"{argument}: expected the same on all", where):
            shards(features, dense, **{argument: other if last else common})
        # The ranks agree: the call goes on, in whatever form the mask comes.
        shards(features, dense, **{argument: common})
    _, shards = pair(LossSpec.preset("DB", corpus="reuters"), statistics, mesh)
    shards(features, dense, label_mask=mask[0] if last else mask[:1].expand(N, -1))
    _, shards = pair(LossSpec.preset("DB", corpus="reuters"), statistics, mesh)
    with raises(ValueError, "targets: expected the same on all"):
        shards(features, dense.to(torch.uint8) if last else dense)


def square_mesh():
    return init_device_mesh("cpu", (2, dist.get_world_size() // 2), mesh_dim_names=("data", "label"))


def own_part(mesh, tensor):
    return tensor.chunk(2)[mesh["data"].get_local_rank()]


def train_square(wrap, shard_classifier=False, update=None, steps=4, dtype=torch.float64):
    """Parameters and first gradients of a 2 x n mesh's training, and of one process with the whole batch."""
    mesh = square_mesh()
    _, dense, statistics = data()
    whole = LinearBalancedLoss.from_linear(
        linear(dtype=dtype), LossSpec.preset("DB", corpus="reuters"), statistics, update=update and update()
    )
    options = {} if shard_classifier else {"data_mesh": mesh["data"]}
    shards = LabelParallelLinearLoss.from_linear(
        linear(dtype=dtype),
        LossSpec.preset("DB", corpus="reuters"),
        statistics,
        mesh["label"],
        update=update and update(),
        **options,
    )
    encoders = Encoder(dtype), wrap(Encoder(dtype), mesh["data"])
    if shard_classifier:
        fully_shard(shards, mesh=mesh["data"])
    results = []
    for encoder, module, cut in ((encoders[0], whole, lambda x: x), (encoders[1], shards, lambda x: own_part(mesh, x))):
        groups = [{"params": list(encoder.parameters())}]
        if update is None:
            groups.append({"params": list(module.parameters())})
        optimizer = torch.optim.SGD(groups, lr=0.5, momentum=0.9)
        kept = []
        for step in range(steps):
            optimizer.zero_grad()
            module(encoder(cut(inputs_of(step, dtype))), cut(dense)).backward()
            if step == 0:
                kept += [full(part.grad).clone() for group in groups for part in group["params"]]
            optimizer.step()
        results.append([*kept, *encoder.parameters(), *module.parameters()])
    return results


def compare(results, tolerance=1e-11):
    for expected, got in zip(*results, strict=True):
        close(got, expected, tolerance)


def ddp(encoder, mesh):
    return DistributedDataParallel(encoder, process_group=mesh.get_group())


def fsdp(encoder, mesh):
    fully_shard(encoder.first, mesh=mesh)
    return fully_shard(encoder, mesh=mesh)


@check(2, 4)
def data_and_label_mesh_with_ddp():
    compare(train_square(ddp))


@check(2, 4)
def data_and_label_mesh_with_fsdp():
    compare(train_square(fsdp))


@check(4)
def classifier_sharded_over_the_data_too():
    compare(train_square(fsdp, shard_classifier=True))


@check(2, 4)
def data_and_label_mesh_with_update():
    compare(train_square(ddp, update=lambda: SGDUpdate(0.5, momentum=0.9), dtype=torch.float32), 1e-4)


@check(4)
def update_refuses_fully_shard():
    mesh = square_mesh()
    features, dense, statistics = data(dtype=torch.float32)
    shards = LabelParallelLinearLoss(
        LossSpec.preset("DB", corpus="reuters"), statistics, D, mesh["label"], update=SGDUpdate(0.1)
    )
    fully_shard(shards, mesh=mesh["data"])
    with raises(RuntimeError, "update: expected a classifier that fully_shard leaves alone"):
        shards(features, dense)


def checkpointed(num_ranks, mesh, labels):
    """With torch.optim, and with an update in place."""
    features, dense, statistics = data(num_labels=labels, dtype=torch.float32)
    spec = LossSpec.preset("DB", corpus="reuters")
    updates = (AdamWUpdate(0.05, state="row"), AdamWUpdate(0.05, state="row"))
    plain = pair(spec, statistics, mesh, num_labels=labels, dtype=torch.float32)
    updating = pair(spec, statistics, mesh, num_labels=labels, dtype=torch.float32, updates=updates)
    optimizers = [torch.optim.AdamW(module.parameters(), lr=0.05) for module in plain]

    def train(which):
        for _ in range(3):
            optimizers[which].zero_grad()
            plain[which](features, dense).backward()
            optimizers[which].step()
            updating[which](features, dense).backward()

    return plain, updating, optimizers, train


@check(2, 4)
def checkpoint_of_four_ranks_loads_in_two():
    mesh = world()
    for labels in (5, C):
        path = FOLDER / f"checkpoint-{labels}"
        plain, updating, optimizers, train = checkpointed(dist.get_world_size(), mesh, labels)
        if dist.get_world_size() == 4:
            train(1)
            model, optimizer = get_state_dict(plain[1], optimizers[1])
            dcp.save({"model": model, "optimizer": optimizer, "updating": updating[1].state_dict()}, checkpoint_id=path)
            continue
        train(0)
        # Nothing of this must be left: neither weights nor statistics.
        with torch.no_grad():
            for module in (plain[1], updating[1]):
                module.weight.fill_(9.0)
                module.counts.fill_(1)
        model, optimizer = get_state_dict(plain[1], optimizers[1])
        state = {"model": model, "optimizer": optimizer, "updating": updating[1].state_dict()}
        dcp.load(state, checkpoint_id=path)
        set_state_dict(plain[1], optimizers[1], model_state_dict=state["model"], optim_state_dict=state["optimizer"])
        updating[1].load_state_dict(state["updating"])
        assert plain[1].statistics == plain[0].statistics and updating[1].statistics == plain[0].statistics
        assert int(updating[1].update.steps) == 3
        for _ in range(2):
            for whole, shards in (plain, updating):
                close(shards.weight, whole.weight, 1e-4)
                close(shards.bias, whole.bias, 1e-4)
            train(0)
            train(1)


@check(2)
def copies():
    import copy

    _, dense, statistics = data()
    features = data()[0]
    _, shards = pair(LossSpec.preset("DB", corpus="reuters"), statistics, world())
    twin = copy.deepcopy(shards)
    close(twin(features, dense), shards(features, dense))


def fail(how):
    """A step, then rank 1 dies or stops; rank 0 has to end by itself."""
    features, dense, statistics = data()
    _, shards = pair(LossSpec.preset("DB", corpus="reuters"), statistics, world())
    shards(features, dense).backward()
    dist.barrier()
    if dist.get_rank() == 1:
        if how == "stop":
            time.sleep(60)
        os.kill(os.getpid(), signal.SIGKILL)
    begin = time.monotonic()
    try:
        shards(features, dense).backward()
    except RuntimeError as error:
        print(f"after {time.monotonic() - begin:.1f} s: {type(error).__name__}", flush=True)
        os._exit(7)


RESULTS = {}
FOLDER = Path(sys.argv[1])

if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    if len(sys.argv) > 2:
        where = f"file://{FOLDER}/store-{sys.argv[2]}"
        rank = int(sys.argv[3])
        dist.init_process_group(
            "gloo", init_method=where, rank=rank, world_size=2, timeout=datetime.timedelta(seconds=5)
        )
        fail(sys.argv[2])
    dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=60))
    for function, sizes in CHECKS:
        if dist.get_world_size() not in sizes:
            continue
        begin = time.monotonic()
        try:
            function()
            outcome = None
        except BaseException:
            outcome = traceback.format_exc()
        RESULTS[function.__name__] = outcome
        RESULTS.setdefault("seconds", {})[function.__name__] = time.monotonic() - begin
        dist.barrier()
    path = FOLDER / f"{dist.get_world_size()}-{dist.get_rank()}.json"
    path.write_text(json.dumps(RESULTS))
    dist.barrier()
    dist.destroy_process_group()
