"""Every check of a caller's argument, and the gate through which each tensor passes to the implementations.

Kernels read by pointer. So what leaves this file is flat, lies on the device of the logits, has no negative bit, and
has the strides that :class:`~fused_balanced_loss.backends.problem.Problem` promises.
"""

from __future__ import annotations

import math
import numbers
import warnings
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .backends import device as devices
from .backends.select import IMPLS
from .input_values import as_tensor
from .label_statistics import LabelStatistics
from .spec import LossSpec, check_choice
from .target_checks import check_shares
from .targets import SparseTargets

Reduction = Literal["none", "sum", "mean", "batchmean"]
GradientMode = Literal["auto", "forward", "backward", "in_place"]
REDUCTIONS: tuple[str, ...] = get_args(Reduction)
GRADIENT_MODES: tuple[str, ...] = get_args(GradientMode)

LOGITS_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
# PyTorch compares these on few devices. None of their values becomes 0 or 1 as int64.
_WIDE_UNSIGNED = frozenset((torch.uint16, torch.uint32, torch.uint64))
_TARGET_DTYPES = frozenset((torch.bool, *_INTEGERS, *_WIDE_UNSIGNED, *LOGITS_DTYPES))
_DENSE_FEATURES = (
    "; use features.to_dense() for a batch, or balanced_loss with the logits "
    "torch.sparse.mm(features, weight.t()) + bias"
)
# Fewer logits than these may all lie in [0, 1] by chance.
_ENOUGH_TO_TELL = 64


def check_settings(
    spec: LossSpec,
    statistics: LabelStatistics | None,
    reduction: str,
    impl: str,
    gradient: str,
    *,
    statistics_later: bool = False,
) -> None:
    """Raises TypeError or ValueError, naming the setting, unless all fit together.

    statistics_later: whether they may be None where the spec needs them, as those of a module that loads a state dict.
    """
    if not isinstance(spec, LossSpec):
        raise TypeError(f"spec: expected a LossSpec, got {type(spec).__name__}; LossSpec.preset('DB') makes one")
    if statistics is not None or not statistics_later:
        check_statistics(statistics, spec)
    check_choice("reduction", reduction, REDUCTIONS)
    check_choice("impl", impl, IMPLS)
    check_choice("gradient", gradient, GRADIENT_MODES)
    if gradient == "in_place" and reduction == "none":
        raise ValueError("gradient: 'in_place' needs a reduction to one number, got reduction 'none'")


def check_statistics(statistics: LabelStatistics | None, spec: LossSpec) -> None:
    """Raises TypeError or ValueError unless these are the statistics that the spec needs, if it needs any."""
    if statistics is not None and not isinstance(statistics, LabelStatistics):
        raise TypeError(f"statistics: expected LabelStatistics, got {type(statistics).__name__}")
    if statistics is None and spec.needs_statistics:
        raise ValueError(
            "statistics: expected LabelStatistics, which this spec's weighting or kappa needs; got None. A module "
            "takes them when it is made, from load_state_dict, or by an assignment to module.statistics"
        )
    if spec.mu is None and spec.needs_mu and statistics is not None and statistics.mu is None:
        raise ValueError(
            "mu: expected a number, as the rebalanced weight needs one and these statistics have none; make them by "
            "LabelStatistics.from_targets(training_targets), give mu=, or take the paper's of its corpora by "
            "LossSpec.preset(..., corpus='reuters' or 'pubmed')"
        )


def check_floating(name: str, tensor: Tensor) -> None:
    """Raises TypeError or RuntimeError unless the kernels can read and differentiate the tensor."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(tensor).__name__}")
    if tensor.layout != torch.strided or tensor.is_nested:
        kind = "a nested tensor" if tensor.is_nested else f"layout {tensor.layout}"
        way_out = "" if name != "features" or tensor.is_nested else _DENSE_FEATURES
        raise TypeError(f"{name}: expected a dense tensor, got {kind}{way_out}")
    if tensor.dtype not in LOGITS_DTYPES:
        raise TypeError(f"{name}: expected float16, bfloat16, float32 or float64, got {tensor.dtype}")
    if torch.compiler.is_compiling():
        return
    # What the kernels do would be lost.
    if torch._C._get_tracing_state() is not None:
        raise RuntimeError(f"{name}: expected no torch.jit.trace, which cannot record the kernels; use torch.export")
    if forward_ad._current_level >= 0 and forward_ad.unpack_dual(tensor).tangent is not None:
        raise NotImplementedError(f"{name}: expected no tangent, as the losses have no forward-mode derivative (jvp)")


def check_logits(logits: Tensor, statistics: LabelStatistics | None) -> None:
    """Raises TypeError, ValueError or RuntimeError unless the losses can take ``logits``."""
    check_floating("logits", logits)
    if logits.dim() < 2 or logits.shape[-1] == 0:
        raise ValueError(f"logits: expected [..., C] with at least two dimensions and C >= 1, got {list(logits.shape)}")
    if statistics is not None and logits.shape[-1] != statistics.num_labels:
        raise ValueError(
            f"logits: expected {statistics.num_labels} labels in the last dimension, as in statistics, "
            f"got shape {list(logits.shape)}"
        )


def check_writable(logits: Tensor) -> None:
    """Raises ValueError where the gradient cannot be written over the logits."""
    if logits.is_neg():
        raise ValueError("logits: expected no negative bit for gradient='in_place', got a view that negates")
    base = logits._base if logits._is_view() else logits
    if logits.requires_grad and (base is None or base.is_leaf):
        raise ValueError("logits: expected the result of a computation for gradient='in_place', got a leaf or its view")
    try:
        rows, columns = logits.view(-1, logits.shape[-1]).stride()
    except RuntimeError:
        rows, columns = 0, 0
    num_labels = logits.shape[-1]
    if (columns != 1 and num_labels > 1) or (rows < num_labels and logits.numel() > num_labels):
        raise ValueError(
            f"logits: expected rows side by side in memory for gradient='in_place', got shape {list(logits.shape)} "
            f"with strides {list(logits.stride())}"
        )


def flat_rows(tensor: Tensor) -> Tensor:
    """[..., C] as [N, C] with unit stride in the last dimension and without a negative bit; differentiable."""
    flat = tensor if tensor.dim() == 2 else tensor.reshape(-1, tensor.shape[-1])
    if not torch.compiler.is_compiling() and (flat.is_neg() or flat._is_zerotensor()):
        flat = flat.clone(memory_format=torch.contiguous_format)
    return flat if flat.stride(1) == 1 or flat.shape[1] == 1 else flat.contiguous()


class Batch(NamedTuple):
    """What belongs to logits [N, C], through the gate.

    targets: dense [N, C] or SparseTargets of N rows. sample_weight: [N], or None. label_mask: bool [N, C] whose rows
    may repeat by stride 0, or None.
    """

    targets: Tensor | SparseTargets
    sample_weight: Tensor | None
    label_mask: Tensor | None

    def num_kept(self) -> Tensor | None:
        """How many elements the mask keeps, at least 1; None without a mask."""
        return None if self.label_mask is None else self.label_mask.sum().clamp(min=1)


def check_targets(targets: Tensor | SparseTargets, label_mask: Tensor | None) -> None:
    """Raises ValueError, naming the place, for an invalid id, or a target outside [0, 1] that is not masked."""
    if isinstance(targets, SparseTargets):
        targets.check()
    else:
        check_shares(targets, label_mask)


def check_targets_of(loss: Tensor, targets: Tensor | SparseTargets, label_mask: Tensor | None) -> None:
    """As ``check_targets``, where an invalid target may have made the loss NaN; on a CPU, where looking is cheap.

    To look at the targets only then costs a good call nothing.
    """
    # A loss of another type, such as a FakeTensor, may have no number to look at.
    if torch.compiler.is_compiling() or type(loss) is not Tensor or devices.kind(loss.device) != "cpu":
        return
    if bool(torch.isnan(loss).any()) if loss.dim() else math.isnan(loss.item()):
        check_targets(targets, label_mask)


def flat_batch(
    shape: tuple[int, ...],
    device: torch.device,
    targets: Tensor | SparseTargets,
    sample_weight: Tensor | None,
    label_mask: Tensor | None,
    ignore_index: int | float | None,
) -> Batch:
    """What belongs to logits of ``shape`` [..., C] on ``device``; raises TypeError or ValueError."""
    targets = _flat_targets(targets, shape, device)
    mask = _flat_label_mask(label_mask, shape, device)
    if ignore_index is not None:
        kept = not_ignored(targets, ignore_index)
        mask = kept if mask is None else mask & kept
    return Batch(targets, _flat_sample_weight(sample_weight, shape, device), mask)


def _check_given(
    name: str, value: Tensor | SparseTargets, shapes: tuple[tuple[int, ...], ...], meaning: str, device: torch.device
) -> None:
    if value.shape not in shapes:
        expected = " or ".join(str(list(shape)) for shape in shapes)
        raise ValueError(f"{name}: expected shape {expected}{meaning}, got {list(value.shape)}")
    if isinstance(value, Tensor) and value.requires_grad:
        raise ValueError(
            f"{name}: expected a tensor without gradient, got one that requires it (the order is logits, {name})"
        )
    if value.device != device:
        raise ValueError(f"{name}: expected the device of the logits, {device}, got {value.device}")


def _flat_targets(
    targets: Tensor | SparseTargets, shape: tuple[int, ...], device: torch.device
) -> Tensor | SparseTargets:
    if isinstance(targets, Tensor) and targets.layout != torch.strided:
        targets = SparseTargets.from_torch(targets)
    if isinstance(targets, SparseTargets):
        _check_given("targets", targets, ((math.prod(shape[:-1]), shape[-1]),), ", as the logits", device)
        return targets.contiguous()
    if not isinstance(targets, Tensor):
        return _flat_targets(from_numpy_or_scipy(targets, device), shape, device)
    if targets.dtype not in _TARGET_DTYPES:
        raise TypeError(f"targets: expected bool, an integer or a floating-point dtype, got {targets.dtype}")
    _check_given("targets", targets, (shape,), ", as the logits", device)
    return flat_rows(targets.to(torch.int64) if targets.dtype in _WIDE_UNSIGNED else targets)


def from_numpy_or_scipy(targets: Any, device: torch.device) -> Tensor | SparseTargets:
    """The targets of an array, a table such as a pandas DataFrame, or a scipy sparse matrix, on ``device``."""
    if hasattr(targets, "tocsr"):
        return SparseTargets.from_scipy(targets).to(device)
    if not hasattr(targets, "__array__"):
        raise TypeError(
            f"targets: expected a tensor, SparseTargets, a NumPy array or a scipy sparse matrix, got "
            f"{type(targets).__name__}; SparseTargets.from_lists makes one of lists of label ids"
        )
    return as_tensor("targets", targets).to(device)


def _flat_sample_weight(sample_weight: Tensor | None, shape: tuple[int, ...], device: torch.device) -> Tensor | None:
    if sample_weight is None:
        return None
    if not isinstance(sample_weight, Tensor):
        raise TypeError(f"sample_weight: expected a tensor, got {type(sample_weight).__name__}")
    if sample_weight.is_complex() or sample_weight.layout != torch.strided:
        raise TypeError(
            f"sample_weight: expected a dense tensor of real numbers, got {sample_weight.dtype} of layout "
            f"{sample_weight.layout}"
        )
    _check_given("sample_weight", sample_weight, (shape[:-1],), ", one for each sample", device)
    return flat_rows(sample_weight.reshape(1, -1))[0]


def _flat_label_mask(label_mask: Tensor | None, shape: tuple[int, ...], device: torch.device) -> Tensor | None:
    if label_mask is None:
        return None
    if not isinstance(label_mask, Tensor) or label_mask.dtype != torch.bool or label_mask.layout != torch.strided:
        got = label_mask.dtype if isinstance(label_mask, Tensor) else type(label_mask).__name__
        raise TypeError(f"label_mask: expected a dense bool tensor, got {got}")
    _check_given("label_mask", label_mask, (shape[-1:], shape), "", device)
    if label_mask.dim() == 1:
        return label_mask.contiguous().expand(math.prod(shape[:-1]), -1)
    return flat_rows(label_mask)


def not_ignored(targets: Tensor | SparseTargets, ignore_index: int | float) -> Tensor:
    """bool of the shape of the targets, whether each is another number than ``ignore_index``; TypeError, ValueError."""
    if isinstance(ignore_index, bool) or not isinstance(ignore_index, numbers.Real) or math.isnan(ignore_index):
        raise TypeError(f"ignore_index: expected a number, got {ignore_index!r}")
    if ignore_index in (0, 1):
        raise ValueError(f"ignore_index: expected a number other than the targets 0 and 1, got {ignore_index}")
    if isinstance(targets, SparseTargets):
        raise ValueError("ignore_index: expected None with label ids, which have no place for an ignored element")
    if not targets.dtype.is_floating_point and targets.dtype != torch.bool:
        limits = torch.iinfo(targets.dtype)
        if not limits.min <= ignore_index <= limits.max:
            # PyTorch would wrap the number around into the dtype, where it could meet another value.
            return torch.ones_like(targets, dtype=torch.bool)
    return targets != ignore_index


_looked_for_probabilities = False


def warn_of_probabilities(logits: Tensor) -> None:
    """Warns, at the first call of a process that can tell, of logits that are all in [0, 1], like probabilities."""
    global _looked_for_probabilities
    if _looked_for_probabilities or torch.compiler.is_compiling():
        return
    if logits.numel() < _ENOUGH_TO_TELL or type(logits) is not Tensor or devices.kind(logits.device) != "cpu":
        return
    _looked_for_probabilities = True
    low, high = logits.detach().aminmax()
    # A classifier that begins at zero gives logits that are all the same.
    if 0 <= low < high <= 1:
        warnings.warn(
            "logits: expected raw scores of any sign, got numbers that are all in [0, 1]; if they are probabilities, "
            "leave out the sigmoid: the loss takes it",
            stacklevel=3,
        )
