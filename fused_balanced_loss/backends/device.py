"""What the implementations ask of a device, and nowhere else."""

from __future__ import annotations

import contextlib
import functools
import os

import torch

# How many processors Triton's interpreter is taken to have, so that a test's grid has several programs.
_INTERPRETED_PROCESSORS = 8


def interpreting() -> bool:
    """Whether Triton's interpreter runs kernels on CPU tensors."""
    return os.environ.get("TRITON_INTERPRET", "0") in ("1", "true", "True", "on")


def kind(device: torch.device) -> str:
    """``"cpu"``, ``"cuda"`` (also for AMD's GPUs, as PyTorch names them), or another of PyTorch's device types."""
    return device.type


@functools.cache
def num_processors(device: torch.device) -> int:
    """Streaming multiprocessors of a GPU, which a grid should keep busy."""
    if device.type == "cpu":
        return _INTERPRETED_PROCESSORS
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def has_ptx(device: torch.device) -> bool:
    """Whether a kernel for this device may contain inline PTX."""
    return device.type == "cuda" and torch.version.hip is None and not interpreting()


_NOTHING_TO_DO = contextlib.nullcontext()


def guard(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Makes ``device`` the current one: Triton launches on the current device and its current stream."""
    if device.type != "cuda" or device.index == torch.cuda.current_device():
        return _NOTHING_TO_DO
    return torch.cuda.device(device)


def stream(device: torch.device) -> int:
    """The current stream of a GPU as a number; 0 where there are no streams."""
    # The public torch.cuda.current_stream makes an object each time, at several times the cost.
    return int(torch._C._cuda_getCurrentRawStream(device.index)) if device.type == "cuda" else 0


def is_capturing(device: torch.device) -> bool:
    """Whether the current stream's work is recorded in a CUDA graph instead of done."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def multiplies_into_float32(device: torch.device) -> bool:
    """Whether ``torch.mm`` and ``torch.addmm`` of half precision take ``out_dtype=torch.float32`` on this device, and
    ``addmm`` adds to a float32 tensor."""
    return device.type == "cuda" and _HAS_OUT_DTYPE


# PyTorch 2.11 to 2.13 have it; whether it will be called so later is not known.
_HAS_OUT_DTYPE = all(hasattr(function, "dtype_out") for function in (torch.ops.aten.mm, torch.ops.aten.addmm))
