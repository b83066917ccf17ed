"""Caches that hold a limited number of entries."""

from __future__ import annotations

from typing import Any


def keep(cache: dict[Any, Any], key: object, value: Any, most: int, spare: object = None) -> None:
    """Adds an entry to a cache of at most ``most``; the oldest make room, but not that under ``spare``."""
    if len(cache) >= most:
        # The keys are copied first, because another thread may add one meanwhile.
        for old in list(cache):
            if len(cache) < most:
                break
            if spare is None or old != spare:
                cache.pop(old, None)
    cache[key] = value
