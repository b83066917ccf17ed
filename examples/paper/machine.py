"""The processes of one training under torchrun, and the memory in use."""

import atexit
import os
import resource
import sys

import psutil
import torch
import torch.distributed as dist


def is_main() -> bool:
    """Whether this is the process that writes and prints; by itself, a process is."""
    return int(os.environ.get("RANK", "0")) == 0


def number_of_processes() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


@atexit.register
def _leave() -> None:
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def peak_memory(device: torch.device) -> int:
    """Bytes: of the device's allocations in this run, or of the process so far where the device is the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def resident_memory() -> tuple[int, int]:
    """Bytes of the process's memory now: its own, and what it has mapped of files, which the system may take back."""
    found = psutil.Process().memory_info()
    # Linux alone tells them apart.
    mapped = getattr(found, "shared", 0)
    return found.rss - mapped, mapped


def describe_memory() -> str:
    own, mapped = resident_memory()
    return f"{own / 2**30:.2f} GiB, and {mapped / 2**30:.2f} of files"
