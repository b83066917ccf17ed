"""What the calls of one kind share: the checks that they have passed, and what was decided for them.

A training loop calls the loss with tensors that differ in their numbers and addresses only. What does not depend on
these is found out at the first call. Under 100 us a call, the checks would otherwise be a third of the time.
"""

from __future__ import annotations

import weakref
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .backends import device as devices
from .backends.constants import NO_CONSTANTS, constants_key
from .backends.kept import keep
from .backends.problem import LabelConstants, Problem
from .backends.select import Backend
from .label_statistics import LabelStatistics
from .spec import LossSpec
from .targets import SparseTargets

# Each batch size is a kind of its own.
_MOST_KEPT = 256
_calls: dict[object, KeptCall] = {}


class KeptCall(NamedTuple):
    """A kind of call, for logits and targets that the implementations take as they are.

    given_spec: the caller's; held, so that no other spec takes its identity.
    given_statistics: the caller's, by a weak reference; None where there are none.
    spec: with a number for ``mu``.
    constants_key: under which the statistics keep the constants of the labels; None where there are none.
    backend, plan: the implementation, and what it has decided for the kind.
    gradient: ``"forward"`` or ``"backward"``.
    scale: what the sum is multiplied by.
    on_cpu: whether the logits are, so that looking at the loss takes no wait.
    """

    given_spec: LossSpec
    given_statistics: weakref.ref[LabelStatistics] | None
    spec: LossSpec
    constants_key: object
    backend: Backend
    plan: Any
    gradient: str
    scale: float
    on_cpu: bool


def call_key(
    logits: Tensor,
    targets: Tensor | SparseTargets,
    spec: LossSpec,
    statistics: LabelStatistics | None,
    reduction: str,
    impl: str,
    gradient: str,
) -> tuple[object, ...] | None:
    """All that the checks, and the decisions after them, depend on; None where that is more than a kind can tell."""
    if (
        gradient == "in_place"
        or torch.compiler.is_compiling()
        or forward_ad._current_level >= 0
        or torch._C._get_tracing_state() is not None
        or torch._C._are_functorch_transforms_active()
    ):
        return None
    about: tuple[object, ...]
    try:
        if type(targets) is SparseTargets:
            crow, col = targets.crow, targets.col
            # The number of ids is another in each batch.
            about = (
                targets.num_labels, crow.shape, crow.dtype, col.dtype, crow.device, col.device,
                crow.is_contiguous(), col.is_contiguous(), crow.is_neg(), col.is_neg(),
            )  # fmt: skip
        else:
            about = _about(targets)
        # What is left of a transform that has ended is no plain tensor.
        if torch._C._functorch.is_functorch_wrapped_tensor(logits):
            return None
        return id(spec), id(statistics), reduction, impl, gradient, *_about(logits), *about
    except (AttributeError, TypeError, RuntimeError):
        # It is no dense tensor. The checks say what is wrong with it, or convert it.
        return None


def _about(tensor: Any) -> tuple[object, ...]:
    return (
        type(tensor), tensor.layout, tensor.is_neg(), tensor._is_zerotensor(), tensor.requires_grad,
        tensor.shape, tensor.stride(), tensor.dtype, tensor.device,
    )  # fmt: skip


def kept_call(
    key: tuple[object, ...],
    logits: Tensor,
    targets: Tensor | SparseTargets,
    statistics: LabelStatistics | None,
) -> tuple[KeptCall, Problem] | None:
    """The call kept under a key, with the problem of these tensors; None where nothing is kept for them."""
    try:
        call = _calls.get(key)
    except TypeError:
        # A setting that cannot be hashed is no setting; the checks say which.
        return None
    # Other statistics may have come to the same place in memory.
    if call is None or (call.given_statistics is not None and call.given_statistics() is not statistics):
        return None
    labels = NO_CONSTANTS
    if call.constants_key is not None and statistics is not None:
        of_statistics: LabelConstants | None = statistics.cache.get(call.constants_key)
        if of_statistics is None:
            return None
        labels = of_statistics
    return call, Problem(logits, targets, call.spec, labels, None, None, None, None, statistics, None, call.plan)


def keep_call(
    key: tuple[object, ...],
    given_spec: LossSpec,
    problem: Problem,
    backend: Backend,
    gradient: str,
    scale: float,
) -> None:
    """Keeps what was decided for a problem whose logits and targets are as the caller gave them."""
    if not (_is_plain(problem.logits) and (isinstance(problem.targets, SparseTargets) or _is_plain(problem.targets))):
        return
    statistics, spec, labels = problem.statistics, problem.spec, problem.labels
    reference = kept_under = None
    if statistics is not None:
        reference = weakref.ref(statistics)
        if any(part is not None for part in labels):
            kept_under = constants_key(spec, problem.dtype, problem.logits.device)
            if statistics.cache.get(kept_under) is not labels:
                return
    plan, on_cpu = backend.plan(problem), devices.kind(problem.logits.device) == "cpu"
    call = KeptCall(given_spec, reference, spec, kept_under, backend, plan, gradient, scale, on_cpu)
    keep(_calls, key, call, _MOST_KEPT)


def _is_plain(tensor: Tensor) -> bool:
    # What a subclass, such as a FakeTensor, does is not known from its kind.
    return type(tensor) in (Tensor, torch.nn.Parameter)


def forget() -> None:
    """Forgets all calls, so that the next of each kind is checked and decided anew."""
    _calls.clear()
