"""What DistributedDataParallel does to the buffers of a module without a trace."""

from __future__ import annotations

from torch.nn.parallel import DistributedDataParallel


def is_broadcast() -> bool:
    """Whether a DistributedDataParallel is in its forward and has broadcast the buffers, which keep their version."""
    wrapper = getattr(DistributedDataParallel, "_active_ddp_module", None)
    return wrapper is not None and wrapper.will_sync_module_buffers()
