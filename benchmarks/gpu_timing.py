"""Time on the device, host time and synchronisations. On the CPU each function does what comes nearest."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from contest import Contestant, elapsed, quantiles
from environment import DEVICE, synchronize

BOTH = "forward and backward"
# On the CPU Triton's interpreter runs the kernels that a GPU would run.
IMPL = "auto" if DEVICE.type == "cuda" else "triton"
_REPLAYS = 25
# A device that has had nothing to do runs at a low clock, which would falsify small measurements.
_WARM_SECONDS = 0.3


def warm_clock(seconds: float = _WARM_SECONDS) -> None:
    """Keeps a GPU busy until its clock has risen."""
    if DEVICE.type == "cpu":
        return
    a = torch.randn(4096, 4096, device=DEVICE, dtype=torch.bfloat16)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for _ in range(20):
            torch.mm(a, a)
        synchronize()


def graph_seconds(runs: Sequence[Callable[[], Any]], *, replays: int = _REPLAYS) -> list[float]:
    """Seconds of one call on the device, one figure for each replay of a CUDA graph that holds all calls.

    Pass several runs, each over buffers of its own, so that the cache cannot hold the data. On the CPU the calls are
    simply made.

    Raises:
        RuntimeError: where a call cannot be captured because it waits for the device.
    """
    if DEVICE.type == "cpu":
        return [_wall(runs) for _ in range(2)]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            for run in runs:
                run()
    torch.cuda.current_stream().wait_stream(side)
    synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = [run() for run in runs]
    times = []
    graph.replay()
    warm_clock()
    for _ in range(replays):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        synchronize()
        times.append(start.elapsed_time(end) * 1e-3 / len(runs))
    del kept
    return times


def _wall(runs: Sequence[Callable[[], Any]]) -> float:
    start = time.perf_counter()
    for run in runs:
        run()
    return (time.perf_counter() - start) / len(runs)


def host_seconds(run: Callable[[], Any], calls: int = 50) -> float:
    """Seconds that the host takes to start a call, without waiting for the device."""
    calls = calls if DEVICE.type == "cuda" else 2
    for _ in range(min(calls, 10)):
        run()
    synchronize()
    start = time.perf_counter()
    for _ in range(calls):
        run()
    took = (time.perf_counter() - start) / calls
    synchronize()
    return took


def host_synchronisations(run: Callable[[], Any]) -> int | None:
    """The number of times that the call makes the host wait for the device; None on the CPU."""
    run()
    if DEVICE.type == "cpu":
        return None
    synchronize()
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            run()
    finally:
        torch.cuda.set_sync_debug_mode(mode)
    return sum("synchroniz" in str(one.message) for one in caught)


def copies(make: Callable[[], torch.Tensor], at_least: int = 4) -> list[torch.Tensor]:
    """Copies of a tensor, as many as together take four times the memory of the device's cache, and at most 64."""
    first = make()
    if DEVICE.type == "cpu":
        return [first]
    cache = getattr(torch.cuda.get_device_properties(DEVICE), "L2_cache_size", 50 << 20)
    number = max(at_least, -(-4 * cache // first.nbytes))
    return [first, *(first.detach().clone().requires_grad_(first.requires_grad) for _ in range(min(number, 64) - 1))]


def repeated(run: Callable[[], object], rounds: int = 7) -> dict[str, float]:
    """The quantiles of a call's time, host and device together."""
    one = Contestant("", lambda _: run())
    elapsed(one)
    return quantiles([elapsed(one) for _ in range(rounds if DEVICE.type == "cuda" else 2)])


def reason(error: Exception) -> str:
    """An error in a line, for a contestant that failed."""
    return f"{type(error).__name__}: {str(error)[:200]}"
