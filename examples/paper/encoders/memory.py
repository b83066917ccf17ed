"""Memory in use, as the records and the commands report it."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import torch


def peak_memory(device: torch.device) -> int:
    """Bytes: of the device's allocations in this run, or of the process so far where the device is the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def resident_memory() -> dict[str, int]:
    """Bytes of the process's memory now: its own, and what it has mapped of files, which the system may take back.

    Empty where the system does not tell.
    """
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return {}
    fields = {line.split(":")[0]: line.split()[1] for line in lines if line.endswith(" kB")}
    return {"own": 1024 * int(fields["RssAnon"]), "mapped": 1024 * int(fields["RssFile"])}


def describe_memory() -> str:
    """The latter as text, such as ``0.61 GiB (and 0.20 of files)``."""
    found = resident_memory()
    return f"{found['own'] / 2**30:.2f} GiB, and {found['mapped'] / 2**30:.2f} of files" if found else "unknown"
