"""Label counts as buffers of a module, and the LabelStatistics derived from them."""

from __future__ import annotations

import contextlib
import math
import struct
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor

from .arguments import check_statistics
from .backends.constants import label_constants, pooling_constants, resolved
from .broadcast import is_broadcast
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

    The buffers ``counts``, int64 [C], ``num_samples``, int64 [], and ``mu_bits``, int64 [], the bits of the float64
    ``mu`` (NaN for none), hold the statistics; :attr:`statistics` is derived from them. A floating-point buffer would
    lose digits of ``mu`` with ``half()``. So whatever changes the buffers changes the loss: ``load_state_dict``,
    ``torch.func.functional_call``, a broadcast of DistributedDataParallel, an assignment. A module that was made
    without statistics takes those of the state dict that it loads, also strictly.

    A state dict without ``mu_bits``, as earlier versions wrote it, or with none in it, leaves the ``mu`` of a module
    with the same counts as it is.

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
    mu_bits: Tensor | None

    # The statistics of the buffers as they were last seen, a copy of their counts on the device of the buffer, and the
    # values of the other buffers.
    _derived: LabelStatistics | None = None
    _snapshot: Tensor | None = None
    _values: tuple[int, int] = (0, 0)
    # The buffers with their versions and addresses: what tells that they have not changed.
    _seen: tuple[_Buffers, tuple[int, ...]] | None = None

    def keep_statistics(self, statistics: LabelStatistics | None) -> None:
        """Registers the buffers."""
        values: _Buffers | tuple[None, None, None] = (None, None, None)
        if statistics is not None:
            device = torch.get_default_device()
            numbers = (torch.tensor(number, device=device) for number in _numbers(statistics))
            values = _Buffers(statistics.counts.to(device, copy=True), *numbers)
        for name, value in zip(_Buffers._fields, values, strict=True):
            self.register_buffer(name, value)
        self._remember(statistics)

    def keep_label_weights(
        self, num_labels: int | None, device: torch.device | None = None, **weights: Weight | None
    ) -> None:
        """Registers the caller's weights of the labels: tensors as buffers, which are copies, and numbers as they are.

        device: of the buffers; None leaves them where the tensors are.

        Raises:
            TypeError, ValueError: for weights that are no weights of ``num_labels`` labels, where that is known.
        """
        for name, value in weights.items():
            if isinstance(value, (list, tuple, np.ndarray)):
                value = torch.as_tensor(value, dtype=torch.get_default_dtype())
            if isinstance(value, Tensor):
                check_weight(name, value, value.numel() if num_labels is None else num_labels, value.device)
            elif value is not None:
                check_weight(name, value)
            if isinstance(value, Tensor):
                self.register_buffer(name, value.detach().to(device, copy=True))
            else:
                # A buffer that is None would take a search at each call.
                setattr(self, name, None if value is None else float(value))

    @property
    def statistics(self) -> LabelStatistics | None:
        """The LabelStatistics of the buffers; those that were last seen where the buffers have no values.

        An assignment writes the buffers in place. It raises TypeError or ValueError for None where the spec needs
        statistics, and for another number of labels.
        """
        if self._buffers["counts"] is None:
            return None
        compiling = torch.compiler.is_compiling()
        seen = compiling or self._are_seen()
        if seen and not compiling and not is_broadcast():
            return self._derived
        buffers = self._statistics_buffers()
        if buffers is None:
            return None
        if seen and (compiling or buffers.counts.device.type != "cpu"):
            if self._snapshot is not None:
                torch._assert_async(self._same_values(buffers), _CHANGED)
            return self._derived
        if all(map(_has_values, buffers)):
            self._remember(self._derive(buffers))
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

    def _statistics_buffers(self) -> _Buffers | None:
        counts, num_samples, mu_bits = map(self._buffers.get, _Buffers._fields)
        if counts is None or num_samples is None or mu_bits is None:
            return None
        return _Buffers(counts, num_samples, mu_bits)

    def _are_seen(self) -> bool:
        if self._seen is None:
            return False
        (counts, num_samples, mu_bits), marks = self._seen
        own = self._buffers
        same = own["counts"] is counts and own["num_samples"] is num_samples and own["mu_bits"] is mu_bits
        return same and marks == _marks(counts, num_samples, mu_bits)

    def _write(self, statistics: LabelStatistics) -> None:
        """Writes the buffers in place, so that whoever shares them sees the change."""
        values = (statistics.counts, *_numbers(statistics))
        for buffer, value in zip(self._statistics_buffers() or (), values, strict=False):
            if _has_values(buffer):
                local = _local(buffer)
                with torch.no_grad(), torch.inference_mode(local.is_inference()):
                    local.copy_(torch.as_tensor(value, device="cpu"))

    def _derive(self, buffers: _Buffers) -> LabelStatistics | None:
        """The statistics of the buffers; the same object as before where the values are the same."""
        snapshot = self._snapshot
        counts = _local(buffers.counts)
        comparable = snapshot is not None and (snapshot.device, snapshot.shape) == (counts.device, counts.shape)
        if comparable and bool(self._same_values(buffers)):
            return self._derived
        num_samples, bits = (int(_local(number)) for number in buffers[1:])
        (mu,) = struct.unpack("<d", struct.pack("<q", bits))
        return LabelStatistics.from_counts(counts, num_samples, mu=None if math.isnan(mu) else mu, degenerate="ignore")

    def _same_values(self, buffers: _Buffers) -> Tensor:
        """bool [], whether the buffers hold the values that were last seen; without waiting for their device."""
        assert self._derived is not None and self._snapshot is not None
        num_samples, bits = self._values
        same = _local(buffers.counts).eq(self._snapshot).all() & _local(buffers.num_samples).eq(num_samples)
        return same & _local(buffers.mu_bits).eq(bits)

    def _remember(self, statistics: LabelStatistics | None) -> None:
        """Takes ``statistics`` as those of the buffers, and makes the constants of the loss.

        They are made here, because the next call may be traced or captured in a CUDA graph.
        """
        buffers = self._statistics_buffers()
        if statistics is not self._derived:
            self._derived, self._snapshot = statistics, None
            self._values = (0, 0) if statistics is None else _numbers(statistics)
        self._seen = None
        if statistics is None or buffers is None or not _has_values(buffers.counts):
            return
        device = buffers.counts.device
        if self._snapshot is None or self._snapshot.device != device:
            self._snapshot = statistics.counts.to(device)
        # An inference tensor has no version, so its values are compared at each call.
        if not any(buffer.is_inference() for buffer in buffers):
            self._seen = buffers, _marks(*buffers)
        label_constants(statistics, self.spec, torch.float32, device)
        if self.spec.pooling != "label":
            pooling_constants(statistics, self.spec, device)
        if statistics.mu is not None:
            resolved(self.spec, statistics)

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
        if self.counts is None:
            self._make_room(state_dict, prefix)
        failures = len(errors)
        _add_mu(state_dict, prefix)
        bits = state_dict.get(f"{prefix}mu_bits")
        if isinstance(bits, Tensor) and bits.dtype != torch.int64:
            errors.append(f"{prefix}mu_bits: expected int64, the bits of a float64, got {bits.dtype}")
            return
        super()._load_from_state_dict(state_dict, prefix, *arguments)
        try:
            # The constants are made now, and counts that are none are reported here.
            loaded = self.statistics
            if loaded is not None and before is not None and loaded.mu is None and _same_counts(loaded, before):
                loaded = self.statistics = before
            if loaded is not None:
                check_statistics(loaded, self.spec)
        except (TypeError, ValueError) as error:
            if len(errors) == failures:
                errors.append(f"{prefix}{error}")
        if len(errors) > failures and (before is not None or buffers["counts"] is None):
            # One buffer may have been loaded before the other was refused.
            self._buffers.update(buffers)
            if before is not None:
                self._write(before)
            self._remember(before)

    def _make_room(self, state_dict: dict[str, Any], prefix: str) -> None:
        """Registers buffers for the counts of a state dict, which a module that was made without takes as its own."""
        counts, num_samples = (state_dict.get(prefix + name) for name in ("counts", "num_samples"))
        if isinstance(counts, Tensor) and isinstance(num_samples, Tensor):
            self.register_buffer("counts", torch.zeros(counts.shape, dtype=torch.int64))
            for name in ("num_samples", "mu_bits"):
                self.register_buffer(name, torch.zeros(num_samples.shape, dtype=torch.int64))

    def __getstate__(self) -> dict[str, Any]:
        # A copy has other buffers.
        return {**self.__dict__, "_seen": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        # An earlier version had no such buffer.
        num_samples = self._buffers.get("num_samples")
        if "mu_bits" not in self._buffers:
            self._buffers["mu_bits"] = None if num_samples is None else torch.full_like(num_samples, _bits(None))


class _Buffers(NamedTuple):
    """counts: [C]. num_samples, mu_bits: no dimensions. All int64."""

    counts: Tensor
    num_samples: Tensor
    mu_bits: Tensor


def _numbers(statistics: LabelStatistics) -> tuple[int, int]:
    """The values of the buffers ``num_samples`` and ``mu_bits``."""
    return statistics.num_samples, _bits(statistics.mu)


def _bits(mu: float | None) -> int:
    (bits,) = struct.unpack("<q", struct.pack("<d", math.nan if mu is None else mu))
    return int(bits)


def _add_mu(state_dict: dict[str, Any], prefix: str) -> None:
    """Adds a ``mu_bits`` for none to the state dict of an earlier version."""
    num_samples = state_dict.get(f"{prefix}num_samples")
    if isinstance(num_samples, Tensor) and f"{prefix}mu_bits" not in state_dict:
        state_dict[f"{prefix}mu_bits"] = torch.full_like(num_samples, _bits(None), dtype=torch.int64)


def _same_counts(one: LabelStatistics, other: LabelStatistics) -> bool:
    return one.num_samples == other.num_samples and torch.equal(one.counts, other.counts)


def _marks(one: Tensor, two: Tensor, three: Tensor) -> tuple[int, ...]:
    return one._version, two._version, three._version, one.data_ptr(), two.data_ptr(), three.data_ptr()


def _local(tensor: Tensor) -> Tensor:
    """A DTensor's values on this rank, which are all of them, because `distribute_module` replicates buffers."""
    # The class is known by its name: an import of its module takes longer than that of this package.
    local: Tensor = tensor.to_local() if type(tensor).__name__ == "DTensor" else tensor  # type: ignore[attr-defined]
    return local


def _has_values(tensor: Tensor) -> bool:
    return tensor.device.type != "meta" and not isinstance(tensor, FakeTensor)
