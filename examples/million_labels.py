"""Trains a linear classifier of a million labels for a few steps, in several ways, and accounts for the memory.

    python examples/million_labels.py

Each way is a process of its own. What the machine cannot hold is not begun.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any

from argument_types import integer
from classifier_ways import WAYS, account, available_memory, train

GB = 1e9
# The interpreter with PyTorch, its threads, and what the allocator holds beside.
OVERHEAD = 600e6
REFUSED, FAILED, INTERRUPTED = 2, 1, 130


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--labels", type=integer(2), default=1_000_000)
    parser.add_argument("--features", type=integer(1), default=256)
    parser.add_argument("--batch", type=integer(1), default=128)
    parser.add_argument("--steps", type=integer(1), default=3)
    parser.add_argument(
        "--ways", nargs="+", choices=list(WAYS), default=list(WAYS)[:3], help="default: the first three"
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_arguments(arguments)
    sizes = options.labels, options.features, options.batch
    print(f"{options.labels:,} labels, {options.features} features, batches of {options.batch}, {options.steps} steps")
    rows, status = [], REFUSED
    try:
        for way in dict.fromkeys(options.ways):
            needs, available = account(way, *sizes), available_memory()
            needed = sum(needs.values()) + OVERHEAD
            if available is not None and needed > available:
                print(f"{way}: not begun: needs about {needed / GB:.1f} GB, {available / GB:.1f} GB are available")
                rows.append([way, *_sizes(needs), "", "", ""])
                continue
            result = _run_apart(way, (*sizes, options.steps))
            if isinstance(result, str):
                print(f"{way}: {result}", file=sys.stderr)
                rows.append([way, *_sizes(needs), "", "", ""])
                status = FAILED
                continue
            figures = [f"{result['peak'] / GB:.2f}", f"{result['seconds']:.2f}", f"{result['loss']:.3g}"]
            rows.append([way, *_sizes(needs), *figures])
            status = status if status == FAILED else 0
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr)
        status = INTERRUPTED
    if rows:
        _print_table(rows)
    return status


def _run_apart(way: str, settings: tuple[int, int, int, int]) -> dict[str, Any] | str:
    """What ``train`` returns in a process of its own, or why there is nothing."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(sender, way, settings), daemon=True)
    process.start()
    sender.close()
    try:
        while True:
            message = receiver.recv()
            if isinstance(message, dict):
                return message
            print(f"{way}: {message}", flush=True)
    except EOFError:
        process.join()
        killed = " (killed: the memory did not suffice?)" if process.exitcode == -9 else ""
        return f"ended with exit code {process.exitcode}{killed}"
    finally:
        process.terminate()
        process.join()


def _work(sender: Connection, way: str, settings: tuple[int, int, int, int]) -> None:
    try:
        sender.send(train(way, *settings, sender.send))
    except KeyboardInterrupt:
        pass
    except (MemoryError, RuntimeError) as error:
        sender.send(f"error: {str(error).partition(chr(10))[0]}")
        sys.exit(1)


def _sizes(needs: dict[str, float]) -> list[str]:
    return [f"{value / GB:.2f}" for value in needs.values()]


def _print_table(rows: list[list[str]]) -> None:
    head = ["way", *account("plain", 1, 1, 1), "peak measured", "s a step", "last loss"]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    print("\nMemory in GB: what each way holds at its peak, computed, and the process's high-water mark.")
    for row in (head, *rows):
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        print("  ".join(cells))


if __name__ == "__main__":
    sys.exit(main())
