"""What all metrics have in common: sums over the samples, which shares of the samples add up to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..input_values import as_integer
from ..targets import SparseTargets, as_sparse_targets
from ..thresholding import check_logits


def checked_targets(logits: Tensor, targets: Any, num_labels: int) -> SparseTargets:
    """Targets [n, C] in any form, on the device of logits [n, C]; raises TypeError or ValueError."""
    check_logits(logits, num_labels)
    sparse = as_sparse_targets(targets, num_labels)
    if len(sparse) != len(logits):
        raise ValueError(f"targets: expected {len(logits)} rows, those of logits, got {len(sparse)}")
    return sparse.to(logits.device)


class StreamingMetric:
    """Sums over the samples that were counted, and how they are kept, added and sent.

    Attributes:
        num_samples: how many samples were counted.
    """

    num_samples: int
    # The sums by name; they lie on the device of the last batch.
    _sums: dict[str, Tensor]

    def _settings(self) -> dict[str, Any]:
        """What must be the same in two metrics whose sums are added."""
        raise NotImplementedError

    def _move(self, device: torch.device | str) -> None:
        self._sums = {name: value.to(device) for name, value in self._sums.items()}

    def _check_counted(self) -> None:
        if not self.num_samples:
            raise RuntimeError("no sample was counted yet: call update first")

    def merge(self, other: StreamingMetric) -> None:
        """Adds what ``other`` has counted, such as another process's share of the samples.

        Raises:
            TypeError, ValueError: unless both have the same settings.
        """
        if type(other) is not type(self):
            raise TypeError(f"other: expected a {type(self).__name__}, got {type(other).__name__}")
        self._add("other", other.state_dict())

    def all_reduce(self, process_group: Any = None) -> None:
        """Sums over all processes of torch.distributed. All of them call it once, after the last update."""
        # The sums of a process that has seen no sample are still on the CPU.
        nccl = torch.distributed.get_backend(process_group) == "nccl"
        self._move("cuda" if nccl else "cpu")
        number = torch.tensor([self.num_samples], device="cuda" if nccl else "cpu")
        for part in (*self._sums.values(), number):
            torch.distributed.all_reduce(part, group=process_group)
        self.num_samples = int(number)

    def state_dict(self) -> dict[str, Any]:
        """The sums so far, on the CPU, and the settings that they were made with."""
        sums = {name: value.cpu().clone() for name, value in self._sums.items()}
        return {**sums, "num_samples": self.num_samples, **self._settings()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Replaces the sums by those that :meth:`state_dict` gave.

        Raises:
            ValueError: unless they were made with the same settings.
        """
        self._add("state", state, onto_zero=True)

    def reset(self) -> None:
        """Sets all sums to zero."""
        for value in self._sums.values():
            value.zero_()
        self.num_samples = 0

    def _add(self, name: str, state: Mapping[str, Any], *, onto_zero: bool = False) -> None:
        own = self._settings()
        expected = sorted({*self._sums, "num_samples", *own})
        if not isinstance(state, Mapping) or sorted(state) != expected:
            raise ValueError(f"{name}: expected what {type(self).__name__}.state_dict gives, with {expected}")
        for key, setting in own.items():
            given = state[key]
            if isinstance(setting, Tensor) and isinstance(given, Tensor):
                if not torch.equal(setting, given):
                    raise ValueError(f"{name}: expected the same {key}, got others")
            elif isinstance(setting, Tensor) or isinstance(given, Tensor) or given != setting:
                raise ValueError(f"{name}: expected the {key} {setting}, got {given}")
        for key, value in self._sums.items():
            given = state[key]
            if not isinstance(given, Tensor) or given.shape != value.shape or given.dtype != value.dtype:
                self._refuse(name, key, given)
        number = as_integer(f"{name}: num_samples", state["num_samples"], at_least=0)
        if onto_zero:
            self.reset()
        for key, value in self._sums.items():
            value += state[key].to(value.device)
        self.num_samples += number

    def _refuse(self, name: str, key: str, given: Any) -> None:
        value = self._sums[key]
        got = f"{given.dtype} {list(given.shape)}" if isinstance(given, Tensor) else type(given).__name__
        raise ValueError(f"{name}: expected {key} of {value.dtype} {list(value.shape)}, got {got}")
