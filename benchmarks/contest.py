"""Contestants that do the same work: they are checked against each other, then timed in turn."""

from __future__ import annotations

import gc
import math
import statistics as stats
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from environment import DEVICE, copy_bandwidth, synchronize
from floors import Floor
from memory import held_bytes, peak_bytes
from records import Record, new_record
from torch import Tensor

# A timing covers as many calls as fill this time, so that reading the clock does not count.
_LEAST_SECONDS = 2e-3
# A call that takes less than this is made once before its timing, so that the cache holds its own data and not those
# of the contestant before.
_WARM_SECONDS = 20e-3
# The least and the most rounds.
_ROUNDS = (5, 60)


@dataclass(frozen=True)
class Contestant:
    """One way to do the work.

    run: does the work. It gets what ``prepare`` returned.
    prepare: called before each timing and not timed; None where nothing needs preparing.
    forward: the part whose result holds memory until the backward; None where memory is not asked for.
    grads: returns the value and the gradients by which contestants are compared.
    clear: frees what a call leaves behind, such as gradients.
    same_work: False for a contestant that computes less.
    """

    name: str
    run: Callable[[Any], Any]
    prepare: Callable[[], Any] | None = None
    forward: Callable[[], Any] | None = None
    grads: Callable[[], list[Tensor]] | None = None
    clear: Callable[[], None] | None = None
    same_work: bool = True


def of_loss(
    name: str, forward: Callable[[], Tensor], leaves: Sequence[Tensor], what: str, *, same_work: bool = True
) -> Contestant:
    """The contestant for one pass of a loss.

    forward: computes the loss, a tensor of no dimensions.
    leaves: the tensors whose gradients the backward makes.
    what: "value" (without a gradient), "forward" or "backward" of a training step, or "forward and backward".
    """

    def value(_: Any = None) -> Tensor:
        with torch.no_grad():
            return forward()

    def clear() -> None:
        for leaf in leaves:
            leaf.grad = None

    def both(_: Any = None) -> None:
        clear()
        forward().backward()

    def ready() -> Tensor:
        clear()
        return forward()

    def results() -> list[Tensor]:
        clear()
        loss = forward()
        loss.backward()
        found = [loss.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]
        clear()
        return found

    common = {"grads": results, "clear": clear, "same_work": same_work}
    if what == "value":
        return Contestant(name, value, **common)
    if what == "forward":
        return Contestant(name, lambda _: forward(), forward=forward, **common)
    if what == "backward":
        return Contestant(name, lambda loss: loss.backward(), ready, **common)
    return Contestant(name, both, forward=forward, **common)


def assert_equal_results(one: Contestant, other: Contestant, dtype: torch.dtype) -> None:
    """Raises AssertionError unless the values agree within 1e-4 and the gradients within the precision of ``dtype``.

    Differences are relative to each element, with a small part of the largest element added.
    """
    assert one.grads is not None and other.grads is not None
    tolerance = {torch.float32: 1e-4, torch.bfloat16: 2**-6, torch.float16: 2**-9}[dtype]
    for k, (mine, theirs) in enumerate(zip(one.grads(), other.grads(), strict=True)):
        what = "value" if k == 0 else f"gradient {k}"
        top = theirs.abs().max().item()
        relative = 1e-4 if k == 0 and mine.dtype == theirs.dtype == torch.float32 else tolerance
        torch.testing.assert_close(
            mine.float(),
            theirs.float(),
            rtol=relative,
            atol=relative / 10 * top,
            msg=lambda text, what=what: f"{one.name} against {other.name}, {what}: {text}",
        )


def elapsed(one: Contestant, calls: int = 1) -> float:
    """Seconds of one call, without its preparation."""
    ready = [None if one.prepare is None else one.prepare() for _ in range(calls)]
    synchronize()
    start = time.perf_counter()
    for k in range(calls):
        one.run(ready[k])
    synchronize()
    return (time.perf_counter() - start) / calls


def time_in_turn(
    contestants: Sequence[Contestant], seconds: float, benchmark: Any = None
) -> tuple[dict[str, list[float]], dict[str, int]]:
    """For each contestant, the seconds of a call in each round, and the number of calls in one timing.

    Every round times each contestant once, so that a slow moment of the machine falls on all of them.

    seconds: the time that all rounds together may take.
    benchmark: the fixture of pytest-benchmark, which times the first contestant; the others run in its set-up.
    """
    calls, warm = {}, {}
    for one in contestants:
        elapsed(one)
        took = max(elapsed(one), 1e-9)
        calls[one.name] = max(1, min(20, math.ceil(_LEAST_SECONDS / took)))
        warm[one.name] = took < _WARM_SECONDS
    gc.collect()

    def timing(one: Contestant) -> None:
        if warm[one.name]:
            elapsed(one)
        times[one.name].append(elapsed(one, calls[one.name]))

    a_round = sum(elapsed(one, calls[one.name]) * calls[one.name] for one in contestants)
    rounds = int(max(_ROUNDS[0], min(_ROUNDS[1], seconds / max(a_round, 1e-9))))
    times: dict[str, list[float]] = {one.name: [] for one in contestants}
    first = contestants[0]

    def others() -> None:
        for one in contestants[1:]:
            timing(one)

    if benchmark is None:
        for _ in range(rounds):
            others()
            timing(first)
        return times, calls

    # pytest-benchmark shows the time of a whole timing, which has several calls where they are short.
    benchmark.extra_info["calls"] = calls[first.name]
    benchmark.pedantic(lambda: timing(first), setup=others, rounds=rounds)
    return times, calls


def quantiles(times: Sequence[float]) -> dict[str, float]:
    """The quantiles p20, p50 and p80."""
    if len(times) == 1:
        return dict.fromkeys(("p20", "p50", "p80"), times[0])
    cuts = stats.quantiles(times, n=10, method="inclusive")
    return {"p20": cuts[1], "p50": stats.median(times), "p80": cuts[7]}


def launches(one: Contestant) -> int | None:
    """The number of kernels, copies and fills that a call starts on the GPU; None on the CPU."""
    if DEVICE.type != "cuda":
        return None
    ready = None if one.prepare is None else one.prepare()
    synchronize()
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        one.run(ready)
        synchronize()
    return sum(event.device_type == torch.autograd.DeviceType.CUDA for event in profile.events())


def hold(
    settings: dict[str, Any],
    contestants: Sequence[Contestant],
    absent: dict[str, str],
    floor: Floor | None,
    *,
    seconds: float = 1.5,
    benchmark: Any = None,
) -> Record:
    """Times all contestants, measures their memory, and returns the record.

    absent: the reason for each peer that this machine lacks.
    floor: the least work of a call; None where that is not known.
    """
    times, calls = time_in_turn(contestants, seconds, benchmark)
    found: dict[str, dict[str, Any]] = {}
    for one in contestants:
        entry: dict[str, Any] = {"seconds": quantiles(times[one.name]), "rounds": len(times[one.name])}
        entry |= {"calls": calls[one.name], "same_work": one.same_work, "launches": launches(one)}
        if one.prepare is None:
            entry["peak_bytes"] = peak_bytes(lambda one=one: one.run(None), one.clear)
        if one.forward is not None:
            entry["held_bytes"] = held_bytes(one.forward, one.clear)
        if floor is not None:
            entry["share_of_floor"] = floor.seconds / entry["seconds"]["p50"]
        found[one.name] = entry
    least = None if floor is None else {"bytes": floor.num_bytes, "flops": floor.num_flops, "seconds": floor.seconds}
    return new_record(
        settings, contestants=found, absent=absent, floor=least, ceilings={"copy_bytes_a_second": copy_bandwidth()}
    )
