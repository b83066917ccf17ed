"""Progress of the runs: one line a run, rewritten after each epoch on a terminal."""

from __future__ import annotations

import sys

from tfidf_network import Epoch


class Progress:
    """Lines such as ``[3/9] DB seed 0  epoch 12/20  validation micro-F1 91.32``."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.done = 0
        self.terminal = sys.stdout.isatty()

    def start(self, name: str) -> None:
        self.done += 1
        self.name = f"[{self.done}/{self.total}] {name:<14}"
        if self.terminal:
            self._rewrite("...")

    def epoch(self, epoch: Epoch, epochs: int) -> None:
        if self.terminal:
            self._rewrite(f"epoch {epoch.number}/{epochs}  validation micro-F1 {100 * epoch.micro_f1:.2f}")

    def finish(self, text: str) -> None:
        if self.terminal:
            self._rewrite(text)
            print()
        else:
            print(f"{self.name} {text}", flush=True)

    def _rewrite(self, text: str) -> None:
        print(f"\r\x1b[2K{self.name} {text}", end="", flush=True)
