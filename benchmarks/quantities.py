"""Times, sizes and shares as short text, each with its unit."""

from __future__ import annotations


def seconds_text(seconds: float) -> str:
    for unit, factor in (("s", 1), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= factor:
            return f"{seconds / factor:.3g} {unit}" if seconds < 100 * factor else f"{seconds / factor:.0f} {unit}"
    return f"{seconds * 1e9:.3g} ns"


def bytes_text(number: float | None) -> str:
    """Empty for None, which says that nothing was measured."""
    if number is None:
        return ""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= factor:
            return f"{number / factor:.3g} {unit}" if number < 100 * factor else f"{number / factor:.0f} {unit}"
    return f"{number} B"


def share_text(share: float | None) -> str:
    """The share of the floor in percent; empty for None.

    A share of 1 or more means that the data stayed in the cache, which is faster than the memory that sets the floor.
    """
    return "" if share is None else f"{100 * share:.0f} %" if share < 1 else "in cache"
