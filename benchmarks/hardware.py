"""GPUs by their public figures, and the least time that a kernel's instructions and bytes take on them.

Nothing here was measured by this project.

Sources. NVIDIA's data sheets: A100 80GB SXM (2,039 GB/s, 19.5 TFLOPS of FP32), H100 SXM (3.35 TB/s, 67 TFLOPS),
H200 SXM (4.8 TB/s, 67 TFLOPS). Multiprocessors: the architecture white papers (108 on the A100, 132 on the H100, which
the H200 shares). The boost clock is what the FP32 figure implies: 2 operations a lane a clock, 64 lanes on sm_80 and
128 on sm_90. CUDA C++ Programming Guide, "Arithmetic Instructions": 16 special functions (ex2, lg2, rcp) a clock and
multiprocessor on both; "Hardware Multithreading": four schedulers, each one instruction of 32 lanes a clock. Tensor
cores, bfloat16, dense: the data sheets (312 TFLOPS on the A100; on the H100 and H200 1,979 with sparsity, which is
twice the dense figure). Level-2 cache: the architecture white papers (40 MB on the A100, 50 MB on the H100).
"""

from __future__ import annotations

from typing import NamedTuple


class Gpu(NamedTuple):
    """A GPU.

    target: its architecture. bytes_a_second: of its memory. processors: number of multiprocessors. clock: boost clock
    in Hz. tensor_flops: operations a second of dense bfloat16 products. cache_bytes: size of the level-2 cache.
    """

    target: str
    bytes_a_second: float
    processors: int
    clock: float
    tensor_flops: float
    cache_bytes: int


GPUS = {
    "A100": Gpu("sm_80", 2.039e12, 108, 19.5e12 / (2 * 64 * 108), 312e12, 40_000_000),
    "H100": Gpu("sm_90", 3.35e12, 132, 67e12 / (2 * 128 * 132), 989e12, 50_000_000),
    "H200": Gpu("sm_90", 4.8e12, 132, 67e12 / (2 * 128 * 132), 989e12, 50_000_000),
}
# A multiprocessor executes so many instructions of single lanes, and so many special functions, in a clock.
_LANES, _SPECIAL = 128, 16


def floors(gpu: Gpu, num_bytes: float, instructions: float, special_functions: float) -> dict[str, float]:
    """Seconds an element that each resource needs; the largest of them is the floor.

    num_bytes, instructions, special_functions: of one element.
    """
    clocks = gpu.processors * gpu.clock
    return {
        "memory": num_bytes / gpu.bytes_a_second,
        "instructions": instructions / (clocks * _LANES),
        "special functions": special_functions / (clocks * _SPECIAL),
    }
