"""The loss of :mod:`.mixed_targets` by a C++ kernel, for CPU tensors."""

from __future__ import annotations

import ctypes
import functools
import struct
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...backends import device
from ...backends.cpp import LOGITS
from ...backends.cpp_build import available, library, num_threads
from ...backends.problem import compute_dtype
from ...label_weights import Weight
from ...spec import LossSpec

_NAME = "mixed_targets"
# The members of ``Call`` in kernels/mixed_targets.cpp.
_CALL = struct.Struct("@13Q7d")


def can_take(logits: Tensor) -> bool:
    """Whether the kernel takes these logits; it is built at the first question."""
    if device.kind(logits.device) != "cpu" or type(logits) not in (Tensor, torch.nn.Parameter):
        return False
    return available(_NAME, (("LOGITS", LOGITS[logits.dtype]),))


def value_and_gradient(
    logits: Tensor,
    targets: Tensor,
    spec: LossSpec,
    weight: Weight | None,
    pos_weight: Weight | None,
    factors: tuple[float, float],
    elements: bool,
) -> tuple[Tensor, Tensor]:
    """The loss of each of ``elements`` [N, C], or its sum; and the gradient [N, C] of the logits.

    The arguments are those of :func:`.mixed_targets.mixed_loss`, [N, C] with unit stride in the last dimension.
    """
    dtype = compute_dtype(logits.dtype)
    num_rows, num_labels = logits.shape
    gradient = torch.empty_like(logits, memory_format=torch.contiguous_format)
    loss = logits.new_empty((), dtype=dtype)
    each = logits.new_empty(logits.shape, dtype=dtype) if elements else None
    targets = targets if targets.dtype in (torch.bool, torch.uint8) else targets.to(dtype)
    weights = [_of_labels(one, num_labels, dtype) for one in (weight, pos_weight)]
    call = _CALL.pack(
        logits.data_ptr(),
        logits.stride(0),
        gradient.data_ptr(),
        num_rows,
        num_labels,
        targets.data_ptr(),
        targets.stride(0),
        int(targets.dtype != dtype),
        *(0 if one is None else one.data_ptr() for one in (*weights, each, loss)),
        num_threads(logits.numel()),
        *spec.gammas,
        spec.probability_margin,
        spec.poly_epsilon,
        spec.label_smoothing,
        *factors,
    )
    _kernel(logits.dtype)(call)
    return loss if each is None else each, gradient


def _of_labels(weight: Weight | None, num_labels: int, dtype: torch.dtype) -> Tensor | None:
    if weight is None:
        return None
    return torch.as_tensor(weight, dtype=dtype, device="cpu").expand(num_labels).contiguous()


@functools.cache
def _kernel(dtype: torch.dtype) -> Callable[[bytes], Any]:
    kernel = library(_NAME, (("LOGITS", LOGITS[dtype]),)).mixed_targets
    kernel.argtypes = [ctypes.c_char_p]
    kernel.restype = None
    return kernel
