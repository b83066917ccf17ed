"""Where a measurement is made: the device, the versions, and what the device can do at most."""

from __future__ import annotations

import contextlib
import datetime
import functools
import importlib.metadata
import os
import platform
import re
import statistics as stats
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
_PACKAGES = ("torch", "triton", "timm", "torchvision", "fvcore", "numpy")


def synchronize() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


@functools.cache
def device() -> dict[str, Any]:
    """The name and the size of the device that computes."""
    if DEVICE.type == "cuda":
        properties = torch.cuda.get_device_properties(DEVICE)
        return {
            "kind": "gpu",
            "name": properties.name,
            "memory_bytes": properties.total_memory,
            "processors": properties.multi_processor_count,
        }
    name, vector = platform.processor() or platform.machine(), torch.backends.cpu.get_cpu_capability()
    with contextlib.suppress(OSError, TypeError):
        name = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())[1]  # type: ignore[index]
    return {"kind": "cpu", "name": f"{name}, {vector}", "threads": torch.get_num_threads()}


def device_text(one: dict[str, Any]) -> str:
    return one["name"] if one["kind"] == "gpu" else f"{one['name']}, {one['threads']} threads"


def slug(text: str) -> str:
    """The text as a part of a file name: lower case, and a dash for whatever a file name should not have."""
    return re.sub(r"[^a-z0-9.]+", "-", text.lower().replace("(r)", "").replace("(tm)", "")).strip("-.")


@functools.cache
def versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {"python": platform.python_version()}
    found |= {name: _version(name) for name in _PACKAGES}
    found["cuda"] = torch.version.cuda
    found["commit"] = _commit()
    return found


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of the checkout, with a "+" where the measured code differs from it; None outside of a checkout."""
    root = Path(__file__).resolve().parents[1]
    try:
        run = functools.partial(subprocess.run, cwd=root, capture_output=True, text=True, check=True)
        commit = run(["git", "rev-parse", "--short", "HEAD"]).stdout.strip()
        changed = run(["git", "status", "--porcelain", "-uno", "fused_balanced_loss", "kernels"]).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("+" if changed else "")


def today() -> str:
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d")


@functools.cache
def copy_bandwidth(num_bytes: int | None = None) -> float:
    """Bytes a second, read and written together, of a copy on the device: the most that a pass can reach."""
    if num_bytes is None:
        num_bytes = int(os.environ.get("BENCHMARK_COPY_BYTES", 1 << 30 if DEVICE.type == "cuda" else 1 << 28))
    source = torch.zeros(num_bytes // 4, device=DEVICE)
    target = torch.zeros_like(source)
    return 2 * num_bytes / median_seconds(lambda: target.copy_(source))


@functools.cache
def matmul_rate(dtype: torch.dtype, size: int | None = None) -> float:
    """Floating-point operations a second of a square product on the device."""
    if size is None:
        size = int(os.environ.get("BENCHMARK_MATMUL_SIZE", 8192 if DEVICE.type == "cuda" else 1536))
    a = torch.randn(size, size, device=DEVICE).to(dtype)
    out = torch.empty_like(a)
    return 2 * size**3 / median_seconds(lambda: torch.mm(a, a, out=out))


def median_seconds(run: Callable[[], Any], rounds: int = 9) -> float:
    """The median time of one call. A first call is made and not counted."""
    run()
    times = []
    for _ in range(rounds):
        synchronize()
        start = time.perf_counter()
        run()
        synchronize()
        times.append(time.perf_counter() - start)
    return stats.median(times)
