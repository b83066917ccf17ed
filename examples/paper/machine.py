"""The processes of one training under torchrun, and the memory in use."""

import atexit
import os
import resource
import sys
from typing import TypeVar

import psutil
import torch
import torch.distributed as dist

T = TypeVar("T")


def is_main() -> bool:
    """Whether this is the process that writes and prints; by itself, a process is."""
    return int(os.environ.get("RANK", "0")) == 0


def number_of_processes() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def from_main(value: T) -> T:
    """The main process's value, in every process."""
    values = [value]
    if _joined():
        dist.broadcast_object_list(values, src=0)
    return values[0]


def wait_for_all() -> None:
    if _joined():
        dist.barrier()


def _joined() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


@atexit.register
def _leave() -> None:
    if _joined():
        dist.destroy_process_group()


def peak_memory(device: torch.device) -> int:
    """Bytes: of the device's allocations in this run, or of the process so far where the device is the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def resident_memory() -> dict[str, int]:
    """Bytes of the process's memory now: its own, and what it has mapped of files, which the system may take back."""
    found = psutil.Process().memory_info()
    # Linux alone tells them apart.
    mapped = getattr(found, "shared", 0)
    return {"own": found.rss - mapped, "mapped": mapped}


def describe_memory() -> str:
    """The latter as text, such as ``0.61 GiB (and 0.20 of files)``."""
    found = resident_memory()
    return f"{found['own'] / 2**30:.2f} GiB, and {found['mapped'] / 2**30:.2f} of files"
