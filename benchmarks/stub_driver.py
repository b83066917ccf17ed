"""A CUDA driver that does nothing, by which the host's share of a launch is measured without a GPU.

Triton compiles real kernels for sm_90 and uses its own launcher; beneath lies a libcuda of a few lines that remembers
the last launch. The package takes the way that it takes on a GPU, with tensors of the CPU. Nothing is computed. Only
for a process of its own: what is installed stays.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
import sysconfig
import tempfile
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget

CAPABILITY = 9, 0
NUM_PROCESSORS = 132
_MOST_PARAMETERS = 64

_NOTHING = (
    *("cuInit", "cuCtxSetCurrent", "cuCtxSetLimit", "cuCtxGetLimit", "cuCtxGetDevice", "cuDeviceGet"),
    *("cuDevicePrimaryCtxRetain", "cuModuleUnload", "cuFuncSetAttribute", "cuFuncSetCacheConfig"),
    *("cuFuncSetSharedMemConfig", "cuStreamIsCapturing", "cuOccupancyMaxActiveClusters", "cuTensorMapEncodeTiled"),
    *("cuTensorMapEncodeIm2col", "cuTensorMapEncodeIm2colWide", "cuGetErrorString", "cuPointerGetAttributes"),
)
_SOURCE = (
    "".join(f"int {name}(void) {{ return 0; }}\n" for name in _NOTHING)
    + f"""
#include <string.h>
/* What the last launch was given; parameters beyond number_of_parameters are not looked at. */
long long launches = 0, parameters[{_MOST_PARAMETERS}], number_of_parameters = 0, programs = 0;
struct config {{ unsigned grid_x, grid_y, grid_z; }};

static int write_int(int *to, int value) {{ *to = value; return 0; }}
static int write_pointer(void **to, long value) {{ *to = (void *)value; return 0; }}
int cuDriverGetVersion(int *version) {{ return write_int(version, 13000); }}
int cuDeviceGetCount(int *count) {{ return write_int(count, 1); }}
int cuDeviceGetAttribute(int *value) {{ return write_int(value, 1 << 17); }}
int cuFuncGetAttribute(int *value, int which) {{ return write_int(value, which == 0 ? 1024 : 0); }}
int cuCtxGetCurrent(void **context) {{ return write_pointer(context, 1); }}
int cuModuleLoadData(void **module) {{ return write_pointer(module, 2); }}
int cuModuleGetFunction(void **function) {{ return write_pointer(function, 3); }}
int cuPointerGetAttribute(void **to, int which, void *pointer) {{ *to = pointer; return 0; }}
int cuLaunchKernelEx(const struct config *config, void *function, void **given) {{
    launches++;
    programs = (long long)config->grid_x * config->grid_y * config->grid_z;
    for (int k = 0; k < number_of_parameters; k++)
        memcpy(&parameters[k], given[k], 8);
    return 0;
}}
"""
)


class Stub:
    """The driver that does nothing, installed in this process."""

    def __init__(self) -> None:
        folder = Path(tempfile.mkdtemp(prefix="stub-driver-"))
        source, library = folder / "stub.c", folder / "libcuda.so.1"
        source.write_text(_SOURCE)
        compiler = os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc"
        command = [*compiler.split(), "-O2", "-w", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1"]
        subprocess.run([*command, str(source), "-o", str(library)], check=True, timeout=120)
        os.environ["TRITON_LIBCUDA_PATH"] = str(folder)
        self._library = ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
        from triton.backends.nvidia import driver

        stub = driver.CudaDriver.__new__(driver.CudaDriver)
        stub.utils, stub.launcher_cls = driver.CudaUtils(), driver.CudaLauncher
        stub.get_current_device = lambda: 0
        stub.set_current_device = lambda device: None
        stub.get_current_stream = lambda device: 0
        stub.get_device_capability = lambda device=0: CAPABILITY
        stub.get_current_target = lambda: GPUTarget("cuda", 10 * CAPABILITY[0] + CAPABILITY[1], 32)
        triton.runtime.driver.set_active(stub)

    def _number(self, name: str) -> ctypes.c_longlong:
        return ctypes.c_longlong.in_dll(self._library, name)

    @property
    def launches(self) -> int:
        """How many launches there have been."""
        return self._number("launches").value

    @property
    def programs(self) -> int:
        """Programs of the last launch."""
        return self._number("programs").value

    def parameters(self, sizes: list[int]) -> list[int]:
        """The last launch's parameters, of so many bytes each, as unsigned numbers; see ``watch``."""
        all_of_them = (ctypes.c_ulonglong * _MOST_PARAMETERS).in_dll(self._library, "parameters")
        return [all_of_them[k] % (1 << 8 * size) for k, size in enumerate(sizes)]

    def watch(self, number: int) -> None:
        """Remembers the first ``number`` parameters of each launch from now on."""
        if number > _MOST_PARAMETERS:
            raise ValueError(f"number: expected at most {_MOST_PARAMETERS}, got {number}")
        self._number("number_of_parameters").value = number


def take_cpu_for_gpu() -> None:
    """What the package asks of a device gets the answers of an NVIDIA GPU."""
    from fused_balanced_loss.backends import device

    device.kind = lambda where: "cuda"
    device.num_processors = lambda where: NUM_PROCESSORS
    device.has_ptx = lambda where: True
    device.guard = lambda where: contextlib.nullcontext()
