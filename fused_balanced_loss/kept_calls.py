"""What the calls of one kind share: the checks that they have passed, and what was decided for them.

A training loop calls the loss with tensors that differ in their numbers and addresses only. What does not depend on
these is found out at the first call; for a small batch it would otherwise be a third of the time of each.

Calls with weights, masks or ``ignore_index``, in-place gradients, weights pooled by row, and what torch.compile,
functorch or a trace looks at are checked each time.
"""

from __future__ import annotations

import weakref
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .backends.constants import NO_CONSTANTS, constants_key
from .backends.kept import keep
from .backends.problem import LabelConstants, Problem
from .backends.select import Backend
from .label_statistics import LabelStatistics
from .spec import LossSpec
from .targets import SparseTargets

Key: TypeAlias = tuple[object, ...]

# Each batch size is a kind of its own.
_MOST_KEPT = 256
_calls: dict[Key, KeptCall] = {}
_PLAIN = (Tensor, torch.nn.Parameter)
# ``Function.apply`` itself asks the first. Where PyTorch has them no longer, nothing is kept.
_in_transform = getattr(torch._C, "_are_functorch_transforms_active", lambda: True)
_is_wrapped = getattr(torch._C._functorch, "is_functorch_wrapped_tensor", lambda tensor: True)


class KeptCall(NamedTuple):
    """A kind of call, for logits and targets that the implementations take as they are.

    given_spec: the caller's; held, so that no other spec takes its identity.
    given_statistics: the caller's, by a weak reference; None where there are none.
    spec: with a number for ``mu``.
    constants_key: under which the statistics keep the constants of the labels; None where there are none.
    backend, plan: the implementation, and what it has decided for the kind.
    gradient: ``"forward"`` or ``"backward"``.
    scale: what the sum is multiplied by.
    """

    given_spec: LossSpec
    given_statistics: weakref.ref[LabelStatistics] | None
    spec: LossSpec
    constants_key: object
    backend: Backend
    plan: Any
    gradient: str
    scale: float


def find_call(
    logits: Tensor,
    targets: Tensor | SparseTargets,
    spec: LossSpec,
    statistics: LabelStatistics | None,
    reduction: str,
    impl: str,
    gradient: str,
) -> tuple[Key | None, KeptCall | None, Problem | None]:
    """The key of a call, and what is kept under it, with the problem of these tensors.

    All are None where a call cannot be kept. Under torch.compile nothing that is kept is looked at, because it would be
    guarded on.
    """
    if (
        gradient == "in_place"
        or torch.compiler.is_compiling()
        or forward_ad._current_level >= 0
        or torch._C._get_tracing_state() is not None
        or _in_transform()
    ):
        return None, None, None
    try:
        key = id(spec), id(statistics), reduction, impl, gradient, *_kind(logits), *_kind_of_targets(targets)
        call = _calls.get(key)
    except (AttributeError, TypeError, RuntimeError):
        # The checks say what is wrong with an argument that is no dense tensor, or with a setting that has no hash.
        return None, None, None
    # Other statistics may have come to the same place in memory.
    if call is None or (call.given_statistics is not None and call.given_statistics() is not statistics):
        return key, None, None
    labels = NO_CONSTANTS
    if call.constants_key is not None and statistics is not None:
        of_statistics: LabelConstants | None = statistics.cache.get(call.constants_key)
        if of_statistics is None:
            return key, None, None
        labels = of_statistics
    # The logits are not detached, which takes time: implementations read them by pointer, or detach them.
    return key, call, Problem(logits, targets, call.spec, labels, statistics=statistics, plan=call.plan)


def _kind(tensor: Any) -> Key:
    """All that a check, or a decision after it, asks of a dense tensor; an error for other objects."""
    if tensor.is_neg() or tensor._is_zerotensor() or _is_wrapped(tensor):
        # A wrapped tensor, which a transform that has ended left behind, has the class of a plain one.
        raise TypeError
    return (
        type(tensor), tensor.layout, tensor.requires_grad, tensor.shape, tensor.stride(), tensor.dtype, tensor.device,
    )  # fmt: skip


def _kind_of_targets(targets: Tensor | SparseTargets) -> Key:
    if type(targets) is not SparseTargets:
        return _kind(targets)
    crow, col = targets.crow, targets.col
    if not (crow.is_contiguous() and col.is_contiguous()) or crow.is_neg() or col.is_neg():
        raise TypeError
    # The number of ids is another in each batch.
    return targets.num_labels, type(crow), crow.shape, crow.dtype, crow.device, type(col), col.dtype, col.device


def keep_call(key: Key, given_spec: LossSpec, problem: Problem, backend: Backend, gradient: str, scale: float) -> None:
    """Keeps what was decided for a problem whose logits and targets are as the caller gave them."""
    # What a subclass does, such as a FakeTensor, is not known from its kind.
    if any(part is not None and type(part) not in _PLAIN for part in (problem.logits, *problem.target_tensors())):
        return
    statistics, spec, labels = problem.statistics, problem.spec, problem.labels
    reference = kept_under = None
    if statistics is not None:
        reference = weakref.ref(statistics)
        if any(part is not None for part in labels):
            kept_under = constants_key(spec, problem.dtype, problem.logits.device)
            if statistics.cache.get(kept_under) is not labels:
                return
    call = KeptCall(given_spec, reference, spec, kept_under, backend, backend.plan(problem), gradient, scale)
    keep(_calls, key, call, _MOST_KEPT)


def forget() -> None:
    """Forgets all calls, so that the next of each kind is checked and decided anew."""
    _calls.clear()
