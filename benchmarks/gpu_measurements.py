"""What ``gpu_report.py`` measures, the most valuable first. Each function yields its records one by one.

python benchmarks/gpu_measurements.py NAME FOLDER        # one measurement; its records go into FOLDER
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import peers
import torch
from contest import Contestant, launches, quantiles
from environment import DEVICE, copy_bandwidth, matmul_rate
from floors import logits_floor
from gpu_classifier import against_linear, in_place_update
from gpu_timing import BOTH, IMPL, copies, graph_seconds, host_seconds, host_synchronisations, reason, repeated
from kernel_profile import profile_kernels
from memory import held_bytes, peak_bytes
from peers import COMPILED, EAGER, OURS, PLAIN, TIMM_DB
from problems import make_problem
from records import Record, new_record, write_record
from report_text import record_text
from torch import Tensor

from fused_balanced_loss import balanced_loss


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
    classifier=((128, 670_091, 768), (32, 18_211, 768), (128, 131_072, 768)),
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
        try:
            function = peers.make_loss(name, problem, loss, form=form, impl=IMPL)
            # A graph keeps all buffers of the formula, so the others run over two inputs only.
            runs = _loss_runs(function, buffers if name == OURS else buffers[:2])
            seconds = quantiles(graph_seconds(runs))
        except Exception as error:
            if name == OURS:
                raise
            # A peer that fails must not cost our figures.
            absent[name] = reason(error)
            continue
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


def host_time(sizes: Sizes) -> Iterator[Record]:
    """The host's work in an eager call at the paper's batch size, and the time of the whole call."""
    problem = make_problem(*sizes.small_batch, torch.bfloat16)
    spec = peers.spec_of(OURS, "DB")

    def call() -> Tensor:
        return balanced_loss(problem.logits, problem.sparse, spec, problem.statistics, impl=IMPL)

    def both() -> tuple[Tensor, ...]:
        return torch.autograd.grad(call(), problem.logits)

    loss_only = Contestant("forward", lambda _: call())
    backward = Contestant("backward", lambda loss: torch.autograd.grad(loss, problem.logits), call)
    figures = {
        "host time, forward, seconds": host_seconds(call),
        "host time, both, seconds": host_seconds(both),
        "eager call, both, seconds": repeated(both)["p50"],
        "launches, forward": launches(loss_only),
        "launches, backward": launches(backward),
        "host synchronisations, forward": host_synchronisations(call),
        "host synchronisations, both": host_synchronisations(both),
    }
    settings = {"operation": "device", "variant": "host, launches", "rows": sizes.small_batch[0]}
    yield new_record(settings | {"labels": sizes.small_batch[1], "dtype": "bfloat16"}, figures=figures)


def one_pass(sizes: Sizes) -> Iterator[Record]:
    """The one-pass kernel at sizes where memory bounds it."""
    for dtype in (torch.bfloat16, torch.float32):
        for shape in sizes.streaming:
            yield logits_on_device(shape, dtype, "csr", [OURS])
            gc.collect()


def small_batch(sizes: Sizes) -> Iterator[Record]:
    """The paper's batch size in a replayed graph."""
    for form in ("csr", "uint8"):
        yield logits_on_device(sizes.small_batch, torch.bfloat16, form, [OURS])


def peers_one_pass(sizes: Sizes) -> Iterator[Record]:
    """The one-pass kernel against the formula, eager and compiled, and others. The records take the place of
    ``one_pass``."""
    for dtype in (torch.bfloat16, torch.float32):
        for shape in sizes.streaming:
            first = shape == sizes.streaming[0]
            yield logits_on_device(
                shape, dtype, "csr", [OURS, EAGER, COMPILED, TIMM_DB, PLAIN] if first else [OURS, COMPILED]
            )
            gc.collect()


def peers_small_batch(sizes: Sizes) -> Iterator[Record]:
    """The paper's batch size against others. The records take the place of ``small_batch``."""
    for dtype in (torch.bfloat16, torch.float32):
        for form in ("csr", "uint8"):
            names = _names(sizes, OURS, EAGER, COMPILED, TIMM_DB, PLAIN)
            yield logits_on_device(sizes.small_batch, dtype, form, names)


def classifier(number: int, sizes: Sizes) -> Iterator[Record]:
    """The fused classifier and loss in bf16, against F.linear followed by a loss over its logits."""
    shape = sizes.classifier[min(number, len(sizes.classifier) - 1)]
    yield against_linear(shape, torch.bfloat16 if DEVICE.type == "cuda" else torch.float32)


def three_million(sizes: Sizes) -> Iterator[Record]:
    return in_place_update(sizes.three_million, ["SGD"])


def million(sizes: Sizes) -> Iterator[Record]:
    return in_place_update(sizes.million, ["SGD", "AdamW, state by row"])


def sweep(sizes: Sizes) -> Iterator[Record]:
    """More sizes, dense targets, and the other losses."""
    for shape in sizes.sweep:
        yield logits_on_device(shape, torch.bfloat16, "csr", _names(sizes, OURS, COMPILED, PLAIN))
        gc.collect()
    for loss in ("BCE", "FL", "CB-NTR", "ASL"):
        yield logits_on_device(sizes.streaming[0], torch.bfloat16, "csr", [OURS, PLAIN], loss)
    yield logits_on_device(sizes.streaming[0], torch.bfloat16, "uint8", [OURS])


def kernel_profile(sizes: Sizes) -> Iterator[Record]:
    """What ncu reads of the one-pass kernel."""
    figures = profile_kernels() if DEVICE.type == "cuda" else {"ncu": "no GPU"}
    yield new_record({"operation": "device", "variant": "ncu"}, figures=figures)


class Measurement(NamedTuple):
    """A function of the sizes, and the seconds that it may take."""

    function: Callable[[Sizes], Iterator[Record]]
    seconds: float


# The most valuable first: what time is left for decides how far a report comes.
MEASUREMENTS = {
    "host time": Measurement(host_time, 45),
    "one pass": Measurement(one_pass, 60),
    "small batch": Measurement(small_batch, 45),
    "classifier, 670,091 labels": Measurement(partial(classifier, 0), 60),
    "classifier, 18,211 labels": Measurement(partial(classifier, 1), 45),
    "classifier, 131,072 labels": Measurement(partial(classifier, 2), 45),
    "three million labels": Measurement(three_million, 60),
    "ceilings": Measurement(ceilings, 30),
    "ncu": Measurement(kernel_profile, 60),
    "peers, one pass": Measurement(peers_one_pass, 100),
    "peers, small batch": Measurement(peers_small_batch, 100),
    "a million labels": Measurement(million, 60),
    "sweep": Measurement(sweep, 100),
}


def main() -> None:
    name, folder = sys.argv[1], Path(sys.argv[2])
    for record in MEASUREMENTS[name].function(LARGE if DEVICE.type == "cuda" else SMALL):
        path = write_record(folder, record)
        print(record_text(record, path), flush=True)


if __name__ == "__main__":
    main()
