"""When two computations of one thing agree, though they ran at other addresses, in other blocks or on other threads.

A matrix product may take another path for another alignment, and a kernel sums in another order when it is cut into
other blocks. So such results agree up to rounding, not bit for bit, and these functions say how far.
"""

import math

import torch


def assert_same_but_for_rounding(one, other, units=32):
    """Tensors, or tuples of them, of one dtype: apart by ``units`` of its last digit, measured at the largest value.

    A sum in another order is off by a few units of its largest term; 32 units leave room for sums of sums. NaN and
    infinities must stand at the same places.
    """
    if not isinstance(one, torch.Tensor):
        for a, b in zip(one, other, strict=True):
            assert_same_but_for_rounding(a, b, units)
        return
    assert one.dtype == other.dtype and one.shape == other.shape
    if one.numel() == 0:
        return
    largest = float(other.detach().double().nan_to_num(0.0, 0.0, 0.0).abs().max())
    margin = units * torch.finfo(one.dtype).eps * largest
    torch.testing.assert_close(one, other, rtol=0, atol=margin, equal_nan=True)


def assert_rounds_alike(one, other, share=2e-3):
    """Results of stochastic rounding with equal random bits: a last digit seldom carries a number over a boundary."""
    if one.dtype in (torch.bfloat16, torch.float16):
        assert (one != other).double().mean() < share
    else:
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def assert_alike(one, other, rel=1e-3):
    """Nested results of two trainings: the same in all but the digits of their floating-point numbers."""
    if isinstance(one, dict):
        assert isinstance(other, dict) and one.keys() == other.keys()
        for name, value in one.items():
            assert_alike(value, other[name], rel)
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_alike(a, b, rel)
    elif isinstance(one, float) and isinstance(other, float):
        assert math.isclose(one, other, rel_tol=rel, abs_tol=rel), (one, other)
    else:
        assert one == other
