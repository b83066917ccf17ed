"""What ``gpu_report.py`` measures, the most important first. Each function yields its records one by one."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import peers
import torch
import torch.nn.functional as F
from contest import Contestant, elapsed, launches, of_loss, quantiles
from environment import DEVICE, copy_bandwidth, matmul_rate
from floors import Floor, classifier_floor, logits_floor
from gpu_timing import copies, graph_seconds, host_seconds, host_synchronisations
from memory import held_bytes, peak_bytes
from peers import COMPILED, EAGER, OURS, PLAIN, TIMM_DB
from problems import make_classifier, make_problem, make_sparse_problem
from records import Record, new_record
from torch import Tensor

from fused_balanced_loss import LinearBalancedLoss, balanced_loss, linear_balanced_loss
from fused_balanced_loss.classifier.prediction import predict_topk
from fused_balanced_loss.optim.update import AdamWUpdate, SGDUpdate

BOTH = "forward and backward"
# On the CPU Triton's interpreter runs the kernels that a GPU would run.
IMPL = "auto" if DEVICE.type == "cuda" else "triton"


@dataclass(frozen=True)
class Sizes:
    """Sizes in rows and labels, and for the classifier also features."""

    streaming: tuple[tuple[int, int], ...]
    small_batch: tuple[int, int]
    sweep: tuple[tuple[int, int], ...]
    classifier: tuple[tuple[int, int, int], ...]
    million: tuple[int, int, int]
    three_million: tuple[int, int, int]


LARGE = Sizes(
    streaming=((1024, 18_211), (4096, 18_211)),
    small_batch=(32, 18_211),
    sweep=((32, 90), (1024, 90), (1024, 1000), (1, 18_211), (256, 18_211), (32, 131_072), (256, 131_072),
           (128, 670_091)),
    classifier=((128, 670_091, 768), (32, 18_211, 768), (1024, 18_211, 768)),
    million=(128, 1_000_000, 768),
    three_million=(64, 3_000_000, 768),
)  # fmt: skip
# For the interpreter, which takes milliseconds for each program: every path runs, and no figure means anything.
SMALL = Sizes(
    streaming=((4, 300),),
    small_batch=(2, 300),
    sweep=((2, 90),),
    classifier=((4, 300, 16),),
    million=(2, 600, 16),
    three_million=(2, 600, 16),
)


def _names(sizes: Sizes, *names: str) -> list[str]:
    """The names that are measured at these sizes.

    torch.compile takes seconds for each shape, so at small sizes only ``streaming`` measures it.
    """
    return [name for name in names if name != COMPILED or sizes is LARGE]


def ceilings(_: Sizes) -> Iterator[Record]:
    """The most that the device can do: the bandwidth of a copy and the rate of a large product."""
    figures = {"copy, GB/s": copy_bandwidth() / 1e9}
    figures |= {f"product {dtype}, TFLOP/s": matmul_rate(dtype) / 1e12 for dtype in (torch.bfloat16, torch.float32)}
    yield new_record({"operation": "device", "variant": "ceilings"}, figures=figures)


def _loss_runs(function: peers.Loss, buffers: list[Tensor]) -> list[Callable[[], object]]:
    def run(z: Tensor) -> Callable[[], object]:
        return lambda: torch.autograd.grad(function(z), z)

    return [run(z) for z in buffers]


def logits_on_device(
    shape: tuple[int, int], dtype: torch.dtype, form: str, names: list[str], loss: str = "DB"
) -> Record:
    """Forward and backward in a CUDA graph, so that the time of the host does not count."""
    problem = make_problem(*shape, dtype)
    buffers = copies(lambda: problem.logits)
    floor = logits_floor(*shape, dtype, form, len(problem.sparse.col), BOTH)
    assert floor is not None
    found = {}
    absent = {name: reason for name, reason in peers.absent().items() if name in names}
    for name in names:
        if name in absent:
            continue
        function = peers.make_loss(name, problem, loss, form=form, impl=IMPL)
        # A graph keeps all buffers of the formula, so the others run over two inputs only.
        runs = _loss_runs(function, buffers if name == OURS else buffers[:2])
        seconds = quantiles(graph_seconds(runs))
        one = Contestant(name, lambda _, runs=runs: runs[0]())
        found[name] = {
            "seconds": seconds,
            "same_work": name != PLAIN,
            "share_of_floor": floor.seconds / seconds["p50"],
            "bytes_a_second": floor.num_bytes / seconds["p50"],
            "peak_bytes": peak_bytes(runs[0]),
            "held_bytes": held_bytes(lambda function=function: function(problem.logits)),
            "launches": launches(one),
        }
    settings = {"operation": "logits", "loss": loss, "pass": BOTH, "rows": shape[0], "labels": shape[1]}
    settings |= {"dtype": str(dtype).removeprefix("torch."), "targets": form, "variant": "CUDA graph"}
    least = {"bytes": floor.num_bytes, "flops": 0, "seconds": floor.seconds}
    return new_record(
        settings, contestants=found, absent=absent, floor=least, ceilings={"copy_bytes_a_second": copy_bandwidth()}
    )


def streaming(sizes: Sizes) -> Iterator[Record]:
    """The one-pass kernel at sizes where memory bounds it, against the formula, eager and compiled."""
    for shape in sizes.streaming:
        for dtype in (torch.bfloat16, torch.float32):
            names = [OURS, EAGER, COMPILED, TIMM_DB, PLAIN] if shape == sizes.streaming[0] else [OURS, COMPILED]
            yield logits_on_device(shape, dtype, "csr", names)
            gc.collect()


def small_batch(sizes: Sizes) -> Iterator[Record]:
    """The paper's batch size: a replayed graph, and the host's work in an eager call."""
    for dtype in (torch.bfloat16, torch.float32):
        for form in ("csr", "uint8"):
            names = _names(sizes, OURS, EAGER, COMPILED, TIMM_DB, PLAIN)
            yield logits_on_device(sizes.small_batch, dtype, form, names)
    problem = make_problem(*sizes.small_batch, torch.bfloat16)
    spec = peers.spec_of(OURS, "DB")

    def call() -> Tensor:
        return balanced_loss(problem.logits, problem.sparse, spec, problem.statistics, impl=IMPL)

    loss_only = Contestant("forward", lambda _: call())
    backward = Contestant("backward", lambda loss: torch.autograd.grad(loss, problem.logits), call)
    figures = {
        "launches, forward": launches(loss_only),
        "launches, backward": launches(backward),
        "host synchronisations, forward": host_synchronisations(call),
        "host synchronisations, both": host_synchronisations(lambda: torch.autograd.grad(call(), problem.logits)),
        "host time, both, seconds": host_seconds(lambda: torch.autograd.grad(call(), problem.logits)),
    }
    settings = {"operation": "device", "variant": "host, launches", "rows": sizes.small_batch[0]}
    yield new_record(settings | {"labels": sizes.small_batch[1], "dtype": "bfloat16"}, figures=figures)


def classifier(sizes: Sizes) -> Iterator[Record]:
    """The fused classifier and loss in bf16, against F.linear followed by a loss over its logits."""
    for shape in sizes.classifier:
        yield _classifier(shape, torch.bfloat16 if DEVICE.type == "cuda" else torch.float32)
        gc.collect()


def _classifier(shape: tuple[int, int, int], dtype: torch.dtype) -> Record:
    problem = make_problem(*shape[:2], dtype)
    x, w, b = leaves = make_classifier(*shape, dtype)
    spec, y, statistics = peers.spec_of(OURS, "DB"), problem.sparse, problem.statistics
    formula = peers.make_loss(EAGER, problem, "DB")
    forwards: dict[str, Callable[[], Tensor]] = {
        "ours": lambda: linear_balanced_loss(x, w, b, y, spec, statistics, impl=IMPL),
        "F.linear + our loss": lambda: balanced_loss(F.linear(x, w, b), y, spec, statistics, impl=IMPL),
        "F.linear + formula, eager": lambda: formula(F.linear(x, w, b)),
    }
    floor = classifier_floor(*shape, dtype, BOTH)
    found = {}
    for name, forward in forwards.items():
        one = of_loss(name, forward, leaves, BOTH)
        grad = [lambda forward=forward: torch.autograd.grad(forward(), leaves)]
        seconds = quantiles(graph_seconds(grad, replays=10))
        found[name] = {
            "seconds": seconds,
            "same_work": True,
            "share_of_floor": floor.seconds / seconds["p50"],
            "peak_bytes": peak_bytes(lambda one=one: one.run(None), one.clear),
            "held_bytes": held_bytes(forward, one.clear),
            "launches": launches(one),
        }
        for leaf in leaves:
            leaf.grad = None
    settings = {"operation": "classifier", "loss": "DB", "pass": BOTH, "rows": shape[0], "labels": shape[1]}
    settings |= {"features": shape[2], "dtype": str(dtype).removeprefix("torch."), "targets": "csr"}
    least = {"bytes": floor.num_bytes, "flops": floor.num_flops, "seconds": floor.seconds}
    return new_record(settings | {"variant": "CUDA graph"}, contestants=found, absent={}, floor=least)


def in_place_update(sizes: Sizes) -> Iterator[Record]:
    """Training steps and predictions of a classifier of millions of labels, whose gradient never exists as a whole."""
    dtype = torch.bfloat16
    updates = {"SGD": lambda: SGDUpdate(0.01), "AdamW, state by row": lambda: AdamWUpdate(0.01, state="row")}
    for shape, names in ((sizes.three_million, ["SGD"]), (sizes.million, list(updates))):
        for name in names:
            num_rows, num_labels, num_features = shape
            problem = make_sparse_problem(num_rows, num_labels)
            module = LinearBalancedLoss(
                peers.spec_of(OURS, "DB"), problem.statistics, num_features, update=updates[name](),
                device=DEVICE, dtype=dtype, impl=IMPL,
            ).to(DEVICE)  # fmt: skip
            features = torch.randn(num_rows, num_features, device=DEVICE, dtype=dtype).requires_grad_()

            def step(module=module, features=features, problem=problem) -> None:
                features.grad = None
                module(features, problem.sparse).backward()

            peak = peak_bytes(step)
            own = [*module.parameters(), *module.buffers()]
            floor = classifier_floor(num_rows, num_labels, num_features, dtype, "update")
            state = sum(one.nbytes for one in own) - 2 * num_labels * (num_features + 1)
            floor = Floor(floor.num_bytes + 2 * state, floor.num_flops, dtype)
            seconds = _repeated(step)
            entry = {"seconds": seconds, "same_work": True, "peak_bytes": peak}
            entry |= {"share_of_floor": floor.seconds / seconds["p50"], "launches": None}
            whole = torch.cuda.max_memory_allocated() if DEVICE.type == "cuda" else None
            settings = {"operation": "in-place update", "loss": "DB", "pass": "step", "rows": num_rows}
            settings |= {"labels": num_labels, "features": num_features, "dtype": "bfloat16", "variant": name}
            top = _repeated(
                lambda m=module, f=features: predict_topk(f.detach(), m.weight.detach(), m.bias.detach(), 5)
            )
            yield new_record(
                settings,
                contestants={"ours": entry, "ours, top 5 alone": {"seconds": top, "same_work": False}},
                absent={},
                floor={"bytes": floor.num_bytes, "flops": floor.num_flops, "seconds": floor.seconds},
                figures={"all memory at the peak, bytes": whole},
            )
            del module, own, step, features
            gc.collect()
            if DEVICE.type == "cuda":
                torch.cuda.empty_cache()


def _repeated(run: Callable[[], object], rounds: int = 7) -> dict[str, float]:
    one = Contestant("", lambda _: run())
    elapsed(one)
    return quantiles([elapsed(one) for _ in range(rounds if DEVICE.type == "cuda" else 2)])


def sweep(sizes: Sizes) -> Iterator[Record]:
    """More sizes, dense targets, and the other losses."""
    for shape in sizes.sweep:
        yield logits_on_device(shape, torch.bfloat16, "csr", _names(sizes, OURS, COMPILED, PLAIN))
        gc.collect()
    for loss in ("BCE", "FL", "CB-NTR", "ASL"):
        yield logits_on_device(sizes.streaming[0], torch.bfloat16, "csr", [OURS, PLAIN], loss)
    yield logits_on_device(sizes.streaming[0], torch.bfloat16, "uint8", [OURS])


MEASUREMENTS = [ceilings, streaming, small_batch, classifier, in_place_update, sweep]
