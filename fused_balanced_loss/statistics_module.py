"""Label counts as buffers of a module, and the LabelStatistics derived from them."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor
from torch.nn.parallel import DistributedDataParallel

from .arguments import check_statistics
from .backends.constants import label_constants
from .label_statistics import LabelStatistics
from .label_weights import Weight
from .spec import LossSpec
from .weight_arguments import check_weight

_CHANGED = (
    "counts, num_samples: expected the values of the last call, but the buffers were changed where this call cannot "
    "follow. Assign module.statistics or load a state dict, on all ranks, or call the module once by itself, outside "
    "of torch.compile and DistributedDataParallel"
)


class StatisticsModule(nn.Module):
    """A module with a ``spec`` and the label counts of the training set.

    The buffers ``counts``, int64 [C], and ``num_samples``, int64 [], hold the counts; :attr:`statistics` is derived
    from them. So whatever changes the buffers changes the loss: ``load_state_dict``, ``torch.func.functional_call``, a
    broadcast of DistributedDataParallel, an assignment.

    A call finds out by object, version and address that the buffers are still the same, without a look at their values.
    Two kinds of calls do not see a new version:

    - One inside of DistributedDataParallel, which broadcasts the buffers at each forward. On a CPU the values are
      compared. On a GPU, where that would wait for the device, an assertion of the device fails where the first rank's
      counts have changed since the module was wrapped.
    - A compiled call, in which the counts are constants. An assignment to :attr:`statistics` and ``load_state_dict``
      are seen; after another change the call raises RuntimeError (on a GPU, an assertion of the device fails).
    """

    spec: LossSpec
    counts: Tensor | None
    num_samples: Tensor | None

    # The statistics of the buffers as they were last seen, and a copy of their counts on the device of the buffer.
    _derived: LabelStatistics | None = None
    _snapshot: Tensor | None = None
    # The buffers with their versions and addresses: what tells that they have not changed.
    _seen: tuple[Tensor, Tensor, tuple[int, ...]] | None = None

    def keep_statistics(self, statistics: LabelStatistics | None) -> None:
        """Registers the buffers."""
        values: dict[str, Tensor | None] = {"counts": None, "num_samples": None}
        if statistics is not None:
            device = torch.get_default_device()
            values["counts"] = statistics.counts.to(device, copy=True)
            values["num_samples"] = torch.tensor(statistics.num_samples, device=device)
        for name, value in values.items():
            self.register_buffer(name, value)
        self._remember(statistics)

    def keep_label_weights(self, num_labels: int | None, **weights: Weight | None) -> None:
        """Registers the caller's weights of the labels: tensors as buffers, which are copies, and numbers as they are.

        Raises:
            TypeError, ValueError: for weights that are no weights of ``num_labels`` labels, where that is known.
        """
        for name, value in weights.items():
            if isinstance(value, Tensor):
                check_weight(name, value, value.numel() if num_labels is None else num_labels, value.device)
            elif value is not None:
                check_weight(name, value)
            if isinstance(value, Tensor):
                self.register_buffer(name, value.detach().clone())
            else:
                # A buffer that is None would take a search at each call.
                setattr(self, name, None if value is None else float(value))

    @property
    def statistics(self) -> LabelStatistics | None:
        """The LabelStatistics of the buffers; those that were last seen where the buffers have no values.

        An assignment writes the buffers in place. It raises TypeError or ValueError for None where the spec needs
        statistics, and for another number of labels.
        """
        counts, num_samples = self._buffers["counts"], self._buffers["num_samples"]
        if counts is None or num_samples is None:
            return None
        compiling = torch.compiler.is_compiling()
        if compiling or self._are_seen(counts, num_samples):
            if not compiling and not _is_broadcast():
                return self._derived
            if compiling or counts.device.type != "cpu":
                if self._snapshot is not None:
                    torch._assert_async(self._same_values(counts, num_samples), _CHANGED)
                return self._derived
        if _has_values(counts) and _has_values(num_samples):
            self._remember(self._derive(counts, num_samples))
        return self._derived

    @statistics.setter
    def statistics(self, statistics: LabelStatistics | None) -> None:
        check_statistics(statistics, self.spec)
        if statistics is None or self.counts is None:
            self.keep_statistics(statistics)
            return
        if statistics.num_labels != len(self.counts):
            raise ValueError(f"statistics: expected {len(self.counts)} labels, got {statistics.num_labels}")
        self._write(statistics)
        self._remember(statistics)

    def _are_seen(self, counts: Tensor, num_samples: Tensor) -> bool:
        seen = self._seen
        if seen is None or seen[0] is not counts or seen[1] is not num_samples:
            return False
        return seen[2] == _marks(counts, num_samples)

    def _write(self, statistics: LabelStatistics) -> None:
        """Writes the buffers in place, so that whoever shares them sees the change."""
        for buffer, value in ((self.counts, statistics.counts), (self.num_samples, statistics.num_samples)):
            if buffer is not None and _has_values(buffer):
                local = _local(buffer)
                with torch.no_grad(), torch.inference_mode(local.is_inference()):
                    local.copy_(torch.as_tensor(value, device="cpu"))

    def _derive(self, counts: Tensor, num_samples: Tensor) -> LabelStatistics | None:
        """The statistics of the buffers; the same object as before where the values are the same."""
        snapshot = self._snapshot
        counts = _local(counts)
        comparable = snapshot is not None and (snapshot.device, snapshot.shape) == (counts.device, counts.shape)
        if comparable and bool(self._same_values(counts, num_samples)):
            return self._derived
        return LabelStatistics.from_counts(counts, int(_local(num_samples)), degenerate="ignore")

    def _same_values(self, counts: Tensor, num_samples: Tensor) -> Tensor:
        """bool [], whether the buffers hold the values that were last seen; without waiting for their device."""
        assert self._derived is not None and self._snapshot is not None
        return _local(counts).eq(self._snapshot).all() & _local(num_samples).eq(self._derived.num_samples)

    def _remember(self, statistics: LabelStatistics | None) -> None:
        """Takes ``statistics`` as those of the buffers, and makes the constants of the loss.

        They are made here, because the next call may be traced or captured in a CUDA graph.
        """
        counts, num_samples = self.counts, self.num_samples
        if statistics is not self._derived:
            self._derived, self._snapshot = statistics, None
        self._seen = None
        if statistics is None or counts is None or num_samples is None or not _has_values(counts):
            return
        if self._snapshot is None or self._snapshot.device != counts.device:
            self._snapshot = statistics.counts.to(counts.device)
        # An inference tensor has no version, so its values are compared at each call.
        if not (counts.is_inference() or num_samples.is_inference()):
            self._seen = counts, num_samples, _marks(counts, num_samples)
        label_constants(statistics, self.spec, torch.float32, counts.device)

    def _apply(self, fn: Any, recurse: bool = True) -> StatisticsModule:
        statistics = self.statistics
        super()._apply(fn, recurse)
        if statistics is not None:
            # `to_empty` gives the buffers new memory, whose values are not those of the counts.
            self._write(statistics)
        self._remember(statistics)
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        before, buffers, errors = None, dict(self._buffers), arguments[-1]
        with contextlib.suppress(TypeError, ValueError):
            # The buffers may hold no counts, as those of a broken file.
            before = self.statistics
        failures = len(errors)
        super()._load_from_state_dict(state_dict, prefix, *arguments)
        try:
            # The constants are made now, and counts that are none are reported here.
            _ = self.statistics
        except (TypeError, ValueError) as error:
            if len(errors) == failures:
                errors.append(f"{prefix}{error}")
        if len(errors) > failures and before is not None:
            # One buffer may have been loaded before the other was refused.
            self._buffers.update(buffers)
            self._write(before)
            self._remember(before)

    def __getstate__(self) -> dict[str, Any]:
        # A copy has other buffers.
        return {**self.__dict__, "_seen": None}


def _marks(one: Tensor, other: Tensor) -> tuple[int, ...]:
    return one._version, other._version, one.data_ptr(), other.data_ptr()


def _local(tensor: Tensor) -> Tensor:
    """A DTensor's values on this rank, which are all of them, because `distribute_module` replicates buffers."""
    # The class is known by its name: an import of its module takes longer than that of this package.
    local: Tensor = tensor.to_local() if type(tensor).__name__ == "DTensor" else tensor  # type: ignore[attr-defined]
    return local


def _is_broadcast() -> bool:
    """Whether a DistributedDataParallel is in its forward and has broadcast the buffers, which keep their version."""
    wrapper = getattr(DistributedDataParallel, "_active_ddp_module", None)
    return wrapper is not None and wrapper.will_sync_module_buffers()


def _has_values(tensor: Tensor) -> bool:
    return tensor.device.type != "meta" and not isinstance(tensor, FakeTensor)
