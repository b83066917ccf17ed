"""Trains a linear classifier of a million labels for a few steps, in several ways, and accounts for the memory.

    python examples/million_labels.py
    python examples/million_labels.py --ranks 2

Each way is a process of its own, or as many as there are ranks, each with its share of the labels. What the machine
cannot hold is not begun.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import tempfile
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from classifier_ways import WAYS, account, available_memory, train
from torch.distributed.device_mesh import init_device_mesh

GB = 1e9
# The interpreter with PyTorch, its threads, and what the allocator holds beside.
OVERHEAD = 600e6
JOIN_SECONDS = 30
REFUSED, FAILED, INTERRUPTED = 2, 1, 130


def at_least_two(text: str) -> int:
    if int(text) < 2:
        raise ValueError
    return int(text)


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--labels", type=at_least_two, default=1_000_000)
    parser.add_argument("--features", type=int, default=256)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--ranks", type=int, default=1, help="processes that share the labels")
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
            if options.ranks > 1 and not WAYS[way].fused:
                print(f"{way}: left out: its labels cannot be sharded")
                continue
            needs, available = account(way, *sizes, options.ranks), available_memory()
            needed = options.ranks * (sum(needs.values()) + OVERHEAD)
            if available is not None and needed > available:
                print(f"{way}: not begun: needs about {needed / GB:.1f} GB, {available / GB:.1f} GB are available")
                rows.append([way, *_sizes(needs), "", "", ""])
                continue
            result = _run_apart(way, (*sizes, options.steps), options.ranks)
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


def _run_apart(way: str, settings: tuple[int, int, int, int], ranks: int) -> dict[str, Any] | str:
    """What ``train`` returns in processes of its own, with the highest peak of them; or why there is nothing."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        receivers, processes = [], []
        for rank in range(ranks):
            receiver, sender = context.Pipe(duplex=False)
            meeting = (rank, ranks, Path(folder, "meeting").as_uri())
            process = context.Process(target=_work, args=(sender, way, settings, meeting), daemon=True)
            process.start()
            sender.close()
            receivers.append(receiver)
            processes.append(process)
        try:
            results = [_result(way, receiver) for receiver in receivers]
            if all(results):
                return {**results[0], "peak": max(result["peak"] for result in results)}
            for process in processes:
                process.join(JOIN_SECONDS)
            codes = sorted({process.exitcode for process in processes} - {0}, key=str)
            killed = " (killed: the memory did not suffice?)" if -9 in codes else ""
            return f"ended with exit code {codes[0]}{killed}"
        finally:
            for process in processes:
                process.terminate()
                process.join()


def _result(way: str, receiver: Connection) -> dict[str, Any]:
    """A process's last message, empty where it ended without one; what it says before is printed."""
    try:
        while True:
            message = receiver.recv()
            if isinstance(message, dict):
                return message
            print(f"{way}: {message}", flush=True)
    except EOFError:
        return {}


def _work(sender: Connection, way: str, settings: tuple[int, int, int, int], meeting: tuple[int, int, str]) -> None:
    rank, ranks, address = meeting
    try:
        mesh = None
        if ranks > 1:
            torch.set_num_threads(max(1, torch.get_num_threads() // ranks))
            torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=ranks)
            mesh = init_device_mesh("cpu", (ranks,))
        result = train(way, *settings, sender.send if rank == 0 else lambda text: None, mesh)
        if ranks > 1:
            torch.distributed.destroy_process_group()
        sender.send(result)
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
