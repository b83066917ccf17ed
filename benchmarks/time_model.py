"""How long a GPU should take for a kernel, and for the loss over logits: launches, bytes, operations and instructions.

*Nothing here was measured on a GPU.* A kernel takes the time of a launch and the longest of four: its bytes of memory
at the rate of a copy; all its bytes at the rate of the level-2 cache; its products at the rate of the tensor cores; its
instructions. Kernels run one after the other. Where the host starts kernels more slowly than the device runs them, an
eager call takes the host's time; a replayed CUDA graph has no such limit.

``hardware.py`` has the published figures. Assumed, and to be replaced by what a GPU measures: ``ASSUMED`` below.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from hardware import GPUS, Gpu


class Assumed(NamedTuple):
    """What no data sheet says.

    launch: seconds from the end of a kernel to the work of the next, in one stream or graph.
    copy: share of the data sheet's bandwidth that a copy reaches.
    tensor: share of the data sheet's operations that a large product reaches at its limit of power.
    cache: share of the level-2 cache that holds what was read before; the cache has two halves that copy each other.
    cache_bytes_a_second: of the level-2 cache; NVIDIA publishes none for the H100.
    latency: seconds from the first load of a kernel's last wave to its last store.
    operator, allocation, triton_launch: seconds of the host for a PyTorch operator, for one that only takes memory, and
        for the launch of a Triton kernel that is kept compiled.
    call: seconds of the host for autograd, checks and the plan of a forward and a backward.
    """

    launch: float = 2.5e-6
    copy: float = 0.9
    tensor: float = 0.7
    cache: float = 0.6
    cache_bytes_a_second: float = 5.5e12
    latency: float = 1.5e-6
    operator: float = 4e-6
    allocation: float = 1e-6
    triton_launch: float = 4e-6
    call: float = 40e-6


ASSUMED = Assumed()
# Instructions of an element of the one-pass kernel, by rows: the constants of a label are loaded once for many rows.
# They were counted once, outside of this repository, by running the PTX of sm_90 on a CPU (bfloat16, label ids);
# `make static` counts those of the loop alone.
INSTRUCTIONS = ((64, 41.8), (256, 35.7), (1024, 32.2))
SPECIAL_FUNCTIONS = 4.0
# Logits of a main program's row, and the programs that a multiprocessor runs at a time.
_TILE, _PROGRAMS = 256, 32
_SLOTS = _PROGRAMS * GPUS["H200"].processors
# Allocations of memory that a pass over a chunk makes: the loss, its partial sums, and where each tile's labels begin.
LOSS_ALLOCATIONS = 3


class Kernel(NamedTuple):
    """The work of one kernel.

    memory_bytes, cache_bytes: bytes that memory moves, and that the level-2 cache moves beside them.
    flops: operations of the tensor cores. elements: logits whose loss is computed, ``instructions`` each.
    launches: of kernels that belong together, such as a product and the sum of its parts.
    waves: how often all places for programs are taken; a part of a wave takes the time of a whole one. 0 where the
        kernel fills the machine. triton: started by Triton, not by a PyTorch operator.
    """

    name: str
    memory_bytes: float = 0.0
    cache_bytes: float = 0.0
    flops: float = 0.0
    elements: float = 0.0
    instructions: float = 0.0
    launches: int = 1
    waves: float = 0.0
    triton: bool = False

    def parts(self, gpu: Gpu) -> dict[str, float]:
        """Seconds by what takes them; without the launches they overlap."""
        clocks = gpu.processors * gpu.clock
        per_element = max(self.instructions / 128, SPECIAL_FUNCTIONS / 16) if self.elements else 0.0
        last_wave = math.ceil(self.waves) / self.waves if self.waves else 1.0
        return {
            "memory": self.memory_bytes / copy_rate(gpu),
            "cache": (self.memory_bytes + self.cache_bytes) / ASSUMED.cache_bytes_a_second,
            "tensor cores": self.flops / (gpu.tensor_flops * ASSUMED.tensor),
            "instructions": self.elements * per_element / clocks * last_wave,
            "launches": self.launches * ASSUMED.launch,
        }

    def seconds(self, gpu: Gpu) -> float:
        parts = self.parts(gpu)
        return parts.pop("launches") + max(parts.values()) + ASSUMED.latency * (self.waves > 0)


def copy_rate(gpu: Gpu) -> float:
    """Bytes a second, read and written together, of a copy."""
    return gpu.bytes_a_second * ASSUMED.copy


def total(kernels: list[Kernel], gpu: Gpu) -> float:
    return sum(kernel.seconds(gpu) for kernel in kernels)


def num_launches(kernels: list[Kernel]) -> int:
    return sum(kernel.launches for kernel in kernels)


def host_seconds(kernels: list[Kernel], setup: int = 0) -> float:
    """Seconds of the host to start the kernels of a call; setup: PyTorch operators besides theirs."""
    triton = sum(kernel.triton for kernel in kernels)
    losses = sum(kernel.elements > 0 for kernel in kernels)
    return (
        ASSUMED.call
        + (len(kernels) - triton + setup) * ASSUMED.operator
        + triton * ASSUMED.triton_launch
        + losses * LOSS_ALLOCATIONS * ASSUMED.allocation
    )


def instructions(num_rows: int) -> float:
    """Instructions of an element at so many rows, between the counts in proportion to 1 / rows."""
    rows, counts = zip(*INSTRUCTIONS, strict=True)
    if num_rows <= rows[0]:
        return counts[0]
    for k in range(1, len(rows)):
        if num_rows <= rows[k]:
            share = (1 / num_rows - 1 / rows[k]) / (1 / rows[k - 1] - 1 / rows[k])
            return counts[k] + share * (counts[k - 1] - counts[k])
    return counts[-1]


def _programs(num_rows: int, num_labels: int) -> int:
    return num_rows * -(-num_labels // _TILE)


def logits_kernels(num_rows: int, num_labels: int, itemsize: int = 2, target_bytes: float = 0.0) -> list[Kernel]:
    """Forward and backward of the loss over logits [N, C]: the rows' terms, the pass, and the look at the upstream
    gradient. target_bytes: of an element of dense targets, which the rows' terms read too; 0 for label ids.
    """
    elements = num_rows * num_labels
    return [
        *terms_kernels(num_rows, num_labels, target_bytes),
        loss_kernel(num_rows, num_labels, (2 * itemsize + target_bytes) * elements, 0.0),
        Kernel("upstream gradient", waves=1.0, triton=True),
    ]


def terms_kernels(num_rows: int, num_labels: int, target_bytes: float = 0.0) -> list[Kernel]:
    """What runs before the one-pass kernel: nothing for label ids of which all programs fit into one wave."""
    if not target_bytes and _programs(num_rows, num_labels) <= _SLOTS:
        return []
    return [Kernel("rows' terms", memory_bytes=target_bytes * num_rows * num_labels, waves=1.0, triton=True)]


def loss_kernel(num_rows: int, num_labels: int, memory_bytes: float, cache_bytes: float) -> Kernel:
    """The one-pass kernel: reads logits, writes their gradient."""
    elements = num_rows * num_labels
    # Rows a program are chosen so that the waves are whole; fewer programs than places cannot fill one.
    waves = min(1.0, _programs(num_rows, num_labels) / _SLOTS)
    return Kernel("loss", memory_bytes, cache_bytes, 0.0, elements, instructions(num_rows), 1, waves, True)
