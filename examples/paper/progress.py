"""Progress on the terminal: one line a run, rewritten as it goes on."""

from __future__ import annotations

import sys
import time
from typing import Any

from encoders.processes import is_main

# Without a terminal a line of progress is printed now and then.
QUIET_SECONDS = 30.0


class Progress:
    """Lines such as ``[3/9] DB seed 0  epoch 12/20  validation micro-F1 91.32``."""

    def __init__(self) -> None:
        self.terminal = sys.stdout.isatty()
        self.silent = not is_main()
        self.name = ""
        self.last = time.monotonic()

    def start(self, name: str) -> None:
        self.name = f"{name:<20} "
        if self.terminal:
            self.say("...")

    def say(self, text: str) -> None:
        """A line that the next one replaces."""
        if self.silent:
            return
        if self.terminal:
            print(f"\r\x1b[2K{self.name}{text}", end="", flush=True)
        elif time.monotonic() - self.last > QUIET_SECONDS:
            self._print(text)

    def epoch(self, epoch: dict[str, Any], epochs: int) -> None:
        self.say(f"epoch {epoch['number']}/{epochs}  validation micro-F1 {100 * epoch['micro_f1']:.2f}")

    def finish(self, text: str) -> None:
        """A line that stays."""
        if self.silent:
            return
        if self.terminal:
            print("\r\x1b[2K", end="")
        self._print(text)
        self.name = ""

    def note(self, text: str) -> None:
        """A line of its own, whatever was going on."""
        if self.terminal and self.name:
            print("\r\x1b[2K", end="")
        self.name = ""
        self.finish(text)

    def warn(self, text: str) -> None:
        if self.terminal:
            print("\r\x1b[2K", end="", flush=True)
        print(f"warning: {text}", file=sys.stderr, flush=True)

    def _print(self, text: str) -> None:
        print(f"{self.name}{text}", flush=True)
        self.last = time.monotonic()
