"""What the modules of the losses share: label counts as buffers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .backends.constants import label_constants
from .label_statistics import LabelStatistics
from .spec import LossSpec


class StatisticsModule(nn.Module):
    """A module with a ``spec`` whose label counts ``state_dict``, ``.to()`` and ``copy.deepcopy`` carry."""

    spec: LossSpec
    statistics: LabelStatistics | None
    counts: Tensor | None
    num_samples: Tensor | None

    def keep_statistics(self, statistics: LabelStatistics | None) -> None:
        """Registers the buffers; called once, by the constructor."""
        self.statistics = statistics
        device = None if statistics is None else torch.get_default_device()
        self.register_buffer("counts", None if statistics is None else statistics.counts.to(device, copy=True))
        self.register_buffer(
            "num_samples", None if statistics is None else torch.tensor(statistics.num_samples, device=device)
        )
        self._prepare()

    def _prepare(self) -> None:
        """Has the constants at hand before the first call, which may be traced or captured."""
        if self.counts is not None and self.counts.device.type != "meta":
            label_constants(self.statistics, self.spec, torch.float32, self.counts.device)

    def _apply(self, fn: Any, recurse: bool = True) -> StatisticsModule:
        super()._apply(fn, recurse)
        if self.statistics is not None and self.counts is not None and self.num_samples is not None:
            # ``to_empty`` gives the buffers new memory.
            with torch.inference_mode(self.counts.is_inference()):
                self.counts.copy_(self.statistics.counts)
                self.num_samples.fill_(self.statistics.num_samples)
        self._prepare()
        return self

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        before = len(error_msgs)
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        if len(error_msgs) > before or self.counts is None or self.num_samples is None:
            return
        if self.counts.device.type != "meta":
            self.statistics = LabelStatistics.from_counts(self.counts, int(self.num_samples), degenerate="ignore")
            self._prepare()
