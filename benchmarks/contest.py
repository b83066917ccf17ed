"""Contestants for the same work, checked against each other, then timed in turn."""

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

# A timing of less than this is repeated within itself, so that the clock's own time does not show.
_LEAST_SECONDS = 2e-3
# Up to this, a call goes before the timing, so that nobody is timed with the last contestant's data in the cache.
_WARM_SECONDS = 20e-3
_ROUNDS = (5, 60)


@dataclass(frozen=True)
class Contestant:
    """One way to do the work.

    prepare: made before each timing, its result goes to ``run``; None for nothing. forward: what holds memory until
    the backward; None where that is no question. same_work: False for what computes less. grads: the results by which
    contestants are compared. clear: frees what a call has left.
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

    what: "value" without gradient, "forward" and "backward" of a training step, or "forward and backward".
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
    """Value within 1e-4, gradients within what the dtype can tell apart, relative to each and to the largest."""
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
    """Seconds a call, what is prepared for it not counted."""
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
    """Seconds a call of each, and calls a timing; every round times each once, so that noise falls on all.

    benchmark: pytest-benchmark's fixture, which gets the first contestant; the others run in its set-up.
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

    # What pytest-benchmark shows is a whole timing, of several calls where they are short.
    benchmark.extra_info["calls"] = calls[first.name]
    benchmark.pedantic(lambda: timing(first), setup=others, rounds=rounds)
    return times, calls


def quantiles(times: Sequence[float]) -> dict[str, float]:
    """p20, p50 and p80."""
    if len(times) == 1:
        return dict.fromkeys(("p20", "p50", "p80"), times[0])
    cuts = stats.quantiles(times, n=10, method="inclusive")
    return {"p20": cuts[1], "p50": stats.median(times), "p80": cuts[7]}


def launches(one: Contestant) -> int | None:
    """Kernels, copies and fills that a call starts on the GPU; None on the CPU."""
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
    """Times all, measures their memory, and returns the record."""
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
