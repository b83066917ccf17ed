"""Progress on the terminal: one line a run, rewritten as it goes on."""

import sys
import time
from typing import Any

from machine import is_main
from rich.console import Console
from rich.text import Text

# Without a terminal a line of progress is printed now and then.
QUIET_SECONDS = 30.0


class Progress:
    """Lines such as ``[3/9] DB seed 0  epoch 12/20  validation micro-F1 91.32``, of the main process alone."""

    def __init__(self) -> None:
        # What is printed may hold any text, such as a label's name: nothing in it is markup.
        self.console = Console(soft_wrap=True, highlight=False, markup=False, emoji=False, quiet=not is_main())
        self.status = self.console.status("")
        self.name = self.so_far = ""
        self.last = time.monotonic()

    def start(self, name: str) -> None:
        self.name, self.so_far = f"{name:<20} ", ""
        if self.console.is_terminal:
            self.say("...")

    def say(self, text: str) -> None:
        """A line that the next one replaces."""
        if self.console.is_terminal and is_main():
            self.status.update(Text(self.name + text))
            self.status.start()
        elif time.monotonic() - self.last > QUIET_SECONDS:
            self._print(text)

    def epoch(self, epoch: dict[str, Any], epochs: int, what: str = "") -> None:
        self.so_far = f"{what}epoch {epoch['number']}/{epochs}  validation micro-F1 {100 * epoch['micro_f1']:.2f}"
        self.say(self.so_far)

    def step(self, done: int, total: int) -> None:
        self.say(f"{self.so_far}  step {done:,}/{total:,}".strip())

    def finish(self, text: str) -> None:
        """A line that stays."""
        self.status.stop()
        self._print(text)
        self.name = ""

    def note(self, text: str) -> None:
        """A line of its own, whatever was going on."""
        self.name = ""
        self.finish(text)

    def warn(self, text: str) -> None:
        if is_main():
            print(f"warning: {text}", file=sys.stderr, flush=True)

    def _print(self, text: str) -> None:
        self.console.print(self.name + text)
        self.last = time.monotonic()


# A process has one terminal.
progress = Progress()
