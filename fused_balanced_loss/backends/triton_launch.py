"""Launches of compiled Triton kernels that skip what Triton looks up at each launch.

Triton's own call finds out anew each time which compiled kernel its arguments need: 10 us and more with 45 arguments.
The compiled kernel's launcher, which that call ends in, takes about 3.
"""

from __future__ import annotations

import functools
import operator
import re
import sys
from collections.abc import Mapping
from typing import Any

import torch
import triton
from torch import Tensor
from triton import knobs
from triton.runtime.jit import JITFunction

# The versions whose launchers take the arguments that `_Direct` gives them.
_KNOWN_VERSIONS = ((3, 6), (3, 9))
_VERSION_OF_C = (3, 9)
_LAUNCHERS = ("triton.backends.nvidia.driver.CudaLauncher", "triton.backends.amd.driver.HIPLauncher")
# Triton compiles a kernel of its own for pointers that are multiples of this many bytes.
_ALIGNMENT = 16


def _version() -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", triton.__version__)[:2])


_IS_KNOWN = _KNOWN_VERSIONS[0] <= _version() <= _KNOWN_VERSIONS[1]
# Triton keeps hooks in chains; without them nobody can tell whether there is one.
_HAS_CHAINS = all(hasattr(getattr(knobs.runtime, f"launch_{when}_hook", None), "calls") for when in ("enter", "exit"))


class Launch:
    """A kernel with its constants, for tensors of one set of dtypes on one device.

    Triton compiles for dtypes, for arguments that are None, for constants, and for which pointers are multiples of 16
    bytes. The maker of a Launch fixes all of these but the last, which is looked at in each call. The kernel must have
    its integers in ``do_not_specialize``, those with a type too, and tensors first among its parameters, then numbers,
    then constants.

    The first call for an alignment is Triton's own, and so is every call under launch hooks, debugging or the
    interpreter, and with a Triton whose launcher is not known here.
    """

    def __init__(
        self, kernel: Any, device: torch.device, constants: Mapping[str, Any], num_warps: int | None = None
    ) -> None:
        self._kernel = kernel
        self._device = device.index or 0
        self._options: dict[str, Any] = {**constants, "enable_fp_fusion": True}
        if num_warps is not None:
            self._options["num_warps"] = num_warps
        self._constants = tuple(constants.values())
        self._may_be_direct = _IS_KNOWN and isinstance(kernel, JITFunction) and _HAS_CHAINS
        self._direct: dict[object, _Direct] = {}

    def __call__(
        self, grid: tuple[int, int, int], tensors: tuple[Tensor | None, ...], numbers: tuple[int | float, ...]
    ) -> None:
        """Launches on the current stream of the current device, which must be the tensors'; integers must fit int32."""
        if not self._may_be_direct or _is_watched(self._kernel):
            self._ordinary(grid, tensors, numbers)
            return
        pointers = [tensor.data_ptr() for tensor in tensors if tensor is not None]
        # The number of pointers belongs to it: one more or less would shift all arguments that follow. That all are
        # aligned, the common case, is one number.
        alignment = (
            len(pointers),
            functools.reduce(operator.or_, pointers) % _ALIGNMENT
            and tuple(pointer % _ALIGNMENT for pointer in pointers),
        )
        driver = triton.runtime.driver.active
        direct = self._direct.get(alignment)
        if direct is None or direct.driver is not driver:
            compiled = self._ordinary(grid, tensors, numbers)
            if _has_known_launcher(compiled):
                self._direct[alignment] = _Direct(compiled, driver, len(pointers) + len(numbers))
            return
        stream = driver.get_current_stream(self._device)
        # There are no hooks, so their three arguments are None; the kernel needs no scratch, so its two are None.
        if direct.in_c is not None:
            direct.in_c(
                *grid, stream, direct.function, *direct.flags, direct.metadata, None, None, None, None, None,
                *direct.kinds, (*pointers, *numbers),
            )  # fmt: skip
        else:
            given = iter(pointers)
            all_pointers = [None if tensor is None else next(given) for tensor in tensors]
            direct.run(
                *grid, stream, direct.function, direct.metadata, None, None, None,
                *all_pointers, *numbers, *self._constants,
            )  # fmt: skip

    def _ordinary(
        self, grid: tuple[int, int, int], tensors: tuple[Tensor | None, ...], numbers: tuple[int | float, ...]
    ) -> Any:
        return self._kernel[grid](*tensors, *numbers, **self._options)


class _Direct:
    """What a launch of a compiled kernel needs.

    run: Triton's launcher, which all known versions call in the same way.
    in_c: the function in C that it ends in, with its flags and the kinds of the arguments that the kernel has in fact,
        where it takes them as Triton 3.9 does for NVIDIA's GPUs; else None.
    """

    __slots__ = ("driver", "flags", "function", "in_c", "kinds", "metadata", "run")

    def __init__(self, compiled: Any, driver: Any, number: int) -> None:
        run = compiled.run
        self.run, self.function, self.metadata, self.driver = run, compiled.function, compiled.packed_metadata, driver
        self.in_c = None
        # What is a constant, or None, is not handed over. The signature has a byte for each of the others.
        if (
            _version() == _VERSION_OF_C
            and type(run).__name__ == "CudaLauncher"
            and not run.gsan_enabled
            and run.global_scratch_size == run.profile_scratch_size == 0
            and len(run.kernel_signature) == number
        ):
            self.in_c = run.launch
            self.flags = run.launch_cooperative_grid, run.launch_pdl
            # Triton for AMD's GPUs need not have this module.
            module: Any = sys.modules[type(run).__module__]
            kind = module.PyKernelArg(nested_tuple=None, type=module.ARG_KERNEL)
            self.kinds = [kind] * number, run.kernel_signature


def _is_watched(kernel: Any) -> bool:
    """Whether somebody wants to see each launch, as profilers do, or debugging asks for another kernel."""
    runtime = knobs.runtime
    return bool(
        runtime.launch_enter_hook.calls
        or runtime.launch_exit_hook.calls
        or kernel.pre_run_hooks
        or runtime.debug
        or getattr(runtime, "add_stages_inspection_hook", None)
    )


def _has_known_launcher(compiled: Any) -> bool:
    launcher = type(getattr(compiled, "run", None))
    return f"{launcher.__module__}.{launcher.__qualname__}" in _LAUNCHERS


@functools.lru_cache(maxsize=512)
def launch_of(
    kernel: Any,
    device: torch.device,
    dtypes: tuple[torch.dtype | None, ...],
    constants: tuple[tuple[str, Any], ...],
    num_warps: int | None = None,
) -> Launch:
    """The Launch for these; kept, so that what Triton found is found once for all batch sizes.

    dtypes: of the tensors, None for those that are None; they tell one Launch from another.
    """
    return Launch(kernel, device, dict(constants), num_warps)
