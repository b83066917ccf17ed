"""Types of command-line arguments, with messages that say what was expected."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path


def integer(least: int) -> Callable[[str], int]:
    """An integer of at least ``least``."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least:
            raise argparse.ArgumentTypeError(f"expected an integer >= {least}, got {text!r}")
        return value

    return parse


def number(low: float, high: float, *, closed: bool = False) -> Callable[[str], float]:
    """A number below ``high`` and above ``low``, or at ``low`` where ``closed``."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (low < value < high or (closed and value == low)):
            bounds = f"{'[' if closed else '('}{low:g}, {high:g})"
            raise argparse.ArgumentTypeError(f"expected a number in {bounds}, got {text!r}")
        return value

    return parse


def size(text: str) -> float:
    """A number of documents, or below 1 a share of them."""
    value = number(0, math.inf)(text)
    if value >= 1 and value != int(value):
        raise argparse.ArgumentTypeError(f"expected a share below 1 or a number of documents, got {text!r}")
    return value


def years(text: str) -> tuple[int, int] | None:
    """``2020-2021``, ``2021``, or ``all``, which is None."""
    if text == "all":
        return None
    parts = text.split("-")
    if len(parts) > 2 or not all(part.isdecimal() for part in parts) or int(parts[0]) > int(parts[-1]):
        raise argparse.ArgumentTypeError(f"expected years such as 2020-2021, or all, got {text!r}")
    return int(parts[0]), int(parts[-1])


def existing_file(text: str) -> Path:
    path = Path(text)
    if not path.is_file():
        raise argparse.ArgumentTypeError(f"expected a file, got {text!r}")
    return path
