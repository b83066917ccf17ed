"""Types of command-line arguments that say what was expected, and options that a dataclass of settings describes."""

import argparse
import math
from collections.abc import Callable
from dataclasses import Field, field, fields
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


def checked(
    parse: Callable[[str], T], expected: str, holds: Callable[[T], bool] = lambda value: True
) -> Callable[[str], T]:
    """A type of arguments that ``parse`` reads, with ValueError for what it cannot, and for which ``holds`` is true."""

    def argument(text: str) -> T:
        try:
            value = parse(text)
            if holds(value):
                return value
        except ValueError:
            pass
        raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}")

    return argument


def integer(least: int) -> Callable[[str], int]:
    return checked(int, f"an integer >= {least}", lambda value: value >= least)


def number(low: float, high: float, *, closed: bool = False) -> Callable[[str], float]:
    """A number below ``high`` and above ``low``, or at ``low`` where ``closed``."""
    bounds = f"{'[' if closed else '('}{low:g}, {high:g})"
    return checked(float, f"a number in {bounds}", lambda value: low < value < high or (closed and value == low))


def _first_and_last(text: str) -> tuple[int, int] | None:
    first, _, last = text.partition("-")
    years = None if text == "all" else (int(first), int(last or first))
    if years and years[0] > years[1]:
        raise ValueError
    return years


years = checked(_first_and_last, "years such as 2020-2021, or all")
size = checked(
    float, "a share below 1 or a number of documents", lambda value: value > 0 and (value < 1 or value.is_integer())
)


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(sorted({float(part) for part in text.split(",")}))


numbers_in_0_1 = checked(_numbers, "numbers in (0, 1) parted by commas", lambda found: 0 < found[0] <= found[-1] < 1)
some_text = checked(str, "at least one character", bool)
existing_file = checked(Path, "a file", Path.is_file)
positive = number(0, math.inf)
not_negative = number(0, math.inf, closed=True)


def setting(value: Any, kind: Any, text: str, *, flag: str = "", aside: bool = False, **options: Any) -> Any:
    """Field of a dataclass of settings that is an option too.

    Args:
        value: the default; MISSING for a field without one.
        kind: the option's type.
        text: its help.
        flag: its name where it is not the field's.
        aside: whether the result of a run does not depend on it.
        options: further arguments of ``add_argument``.
    """
    option = {"type": kind, "help": text, **options}
    return field(default=value, metadata={"aside": aside, "flag": flag, "option": option})


def add_settings(parser: Any, settings: Any, prefix: str = "", *, with_defaults: bool = True) -> None:
    """An option for each field made by :func:`setting`; without their defaults, those not given are not there.

    settings: a dataclass, or one of its instances, whose values are then the defaults.
    """
    for part in fields(settings):
        if "option" in part.metadata:
            default = getattr(settings, part.name, None) if with_defaults else None
            # The help shows every default that is one.
            shown = {"default": argparse.SUPPRESS if default is None else default}
            parser.add_argument(f"--{_flag(part, prefix)}", **{**shown, **part.metadata["option"]})


def given_settings(settings: type, options: argparse.Namespace, prefix: str = "") -> dict[str, Any]:
    """What the options say, by field."""
    found = {part.name: _flag(part, prefix).replace("-", "_") for part in fields(settings)}
    return {name: getattr(options, flag) for name, flag in found.items() if flag in options}


def _flag(part: Field[Any], prefix: str) -> str:
    return prefix + (part.metadata.get("flag") or part.name.replace("_", "-"))
