"""The processes of one training under torchrun; by itself, a process is the main one."""

from __future__ import annotations

import atexit
import os
from typing import TypeVar

import torch.distributed as dist

T = TypeVar("T")


def is_main() -> bool:
    return int(os.environ.get("RANK", "0")) == 0


def number_of_processes() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def from_main(value: T) -> T:
    """The main process's value, in every process."""
    if not _joined():
        return value
    values = [value]
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
