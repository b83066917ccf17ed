"""Stochastic rounding to bfloat16 in PyTorch operators; the random bits are a function of seed, step and place.

A number is rounded up with the probability of its distance from the lower neighbour, in units of the distance between
the two neighbours. So the expectation of the result is the number itself (Gupta et al., ICML 2015).
"""

from __future__ import annotations

import torch
from torch import Tensor

# The multipliers of Wellons' hash "lowbias32". The multiplication of int32 wraps as that of uint32 does.
_MULTIPLIERS = (0x7FEB352D, 0x846CA68B - (1 << 32))
_COLUMN = 0x9E3779B9 - (1 << 32)


def step_key(seed: Tensor, number: Tensor, which: int) -> Tensor:
    """int32, no dimensions: a hash of seed (below 2**63), step (below 2**30) and tensor (below 4)."""
    low, high = seed.to(torch.int32), (seed >> 32).to(torch.int32)
    return _mix(_mix(_mix(low) ^ high) ^ (number * 4 + which).to(torch.int32))


def row_keys(key: Tensor, first_label: int, num_rows: int) -> Tensor:
    """int32 [num_rows, 1]: a hash of the step's key and each row's label."""
    labels = torch.arange(first_label, first_label + num_rows, device=key.device).to(torch.int32)
    return _mix(key ^ labels)[:, None]


def column_keys(num_columns: int, device: torch.device) -> Tensor:
    """int32 [num_columns]: a number for each column."""
    return torch.arange(num_columns, dtype=torch.int32, device=device) * _COLUMN


def round_stochastically(
    out: Tensor, value: Tensor, rows: Tensor, columns: Tensor, bits: Tensor, spare: Tensor
) -> None:
    """Rounds ``value`` to ``out``; NaN and infinities keep their values.

    Args:
        out: bfloat16 [b, D].
        value: float32 [b, D].
        rows, columns: int32 [b, 1] and [D], of :func:`row_keys` and :func:`column_keys`.
        bits, spare: int32 [b, D], memory to write in.
    """
    torch.bitwise_xor(rows, columns, out=bits)
    for shift, multiplier in zip((16, 15), _MULTIPLIERS, strict=True):
        # PyTorch shifts int32 with its sign: the mask makes it a logical shift.
        torch.bitwise_right_shift(bits, shift, out=spare).bitwise_and_((1 << (32 - shift)) - 1)
        bits.bitwise_xor_(spare).mul_(multiplier)
    bits.bitwise_right_shift_(16).bitwise_and_(0xFFFF)
    bits.add_(value.view(torch.int32)).bitwise_and_(-(1 << 16))
    out.copy_(bits.view(torch.float32))
    # One sum finds every NaN without memory of its own; infinities of both signs give a NaN too, which costs only time.
    if torch.isnan(value.sum()):
        out.copy_(torch.where(torch.isnan(value), value, out))


def _mix(x: Tensor) -> Tensor:
    x = x ^ ((x >> 16) & 0xFFFF)
    x = x * _MULTIPLIERS[0]
    x = x ^ ((x >> 15) & 0x1FFFF)
    x = x * _MULTIPLIERS[1]
    return x ^ ((x >> 16) & 0xFFFF)
