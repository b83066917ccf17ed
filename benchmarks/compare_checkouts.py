"""Compares two checkouts of the package in one run: time of forward and backward, and host frames before a launch.

    git worktree add ../before COMMIT
    python benchmarks/compare_checkouts.py ../before . [--rows 32 --labels 90 --losses DB --csv FILE]

Each checkout has a process of its own. For each case both must give the same loss, then they are timed in turn, one
timing of each in a round, so that a slow moment of the machine falls on both. Times are medians over the rounds, in
microseconds. "new / old" is the median of the rounds' ratios, and "p20 to p80" says how far these spread.
BCEWithLogitsLoss is the same in both checkouts: its ratio shows the noise that is left.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import math
import os
import statistics as stats
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
from contest import quantiles
from tables import markdown

HERE = Path(__file__).parent
TARGETS = {"csr": "label ids", "uint8": "uint8", "float": "float"}
# The module at the size of Reuters, beside PyTorch's own loss.
MODULES = [("module", "DB", "csr"), ("module", "DB", "float"), ("BCEWithLogitsLoss", "BCE", "float")]


class Worker:
    """A process that runs the package of one checkout."""

    def __init__(self, checkout: Path, **environment: str) -> None:
        self.checkout = checkout
        path = os.pathsep.join(filter(None, [str(checkout), os.environ.get("PYTHONPATH")]))
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "checkout_worker.py")], env=os.environ | environment | {"PYTHONPATH": path},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def __enter__(self) -> Worker:
        package = self.ask("where")["package"]
        if package != str((self.checkout / "fused_balanced_loss").resolve()):
            raise RuntimeError(f"{self.checkout}: expected the package of this checkout, got {package}")
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def ask(self, do: str, **request: Any) -> dict[str, Any]:
        """Raises RuntimeError where the request failed, or the process has ended."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            print(json.dumps({"do": do} | request), file=self._process.stdin, flush=True)
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        answer = json.loads(line) if line else {"error": f"the process ended with status {self._process.wait()}"}
        if "error" in answer:
            raise RuntimeError(f"{self.checkout}: {do} {request}: {answer['error']}")
        return answer


def measure(old: Worker, new: Worker, case: dict[str, Any], rounds: int, seconds: float) -> dict[str, float]:
    """Seconds of one call of both, and median, p20 and p80 of the rounds' ratios."""
    values = [worker.ask("prepare", **case)["value"] for worker in (old, new)]
    if not math.isclose(*values, rel_tol=1e-4):
        raise RuntimeError(f"{case}: the losses differ: {values}")
    times: dict[Worker, list[float]] = {old: [], new: []}
    for number in range(rounds):
        for worker in (old, new) if number % 2 else (new, old):
            times[worker].append(worker.ask("time", seconds=seconds)["seconds"])
    ratios = quantiles([mine / theirs for theirs, mine in zip(times[old], times[new], strict=True)])
    return {"old": stats.median(times[old]), "new": stats.median(times[new])} | ratios


def cases(options: argparse.Namespace) -> list[dict[str, Any]]:
    sizes = itertools.product(options.losses, options.rows, options.labels, TARGETS)
    found = [
        {"call": "function", "loss": loss, "rows": rows, "labels": labels, "targets": targets}
        for loss, rows, labels, targets in sizes
    ]
    return found + [
        {"call": call, "loss": loss, "rows": 32, "labels": 90, "targets": targets} for call, loss, targets in MODULES
    ]


def shown(case: dict[str, Any], figures: dict[str, float]) -> dict[str, str]:
    """A row of the table."""
    name = {"function": case["loss"], "module": f"{case['loss']}, module"}.get(case["call"], case["call"])
    return {
        "": f"{name}, {case['rows']} x {case['labels']:,}, {TARGETS[case['targets']]}",
        "old, us": f"{1e6 * figures['old']:.0f}",
        "new, us": f"{1e6 * figures['new']:.0f}",
        "new / old": f"{figures['p50']:.2f}",
        "p20 to p80": f"{figures['p20']:.2f} to {figures['p80']:.2f}",
    }


def host_frames(checkouts: dict[str, Path]) -> str:
    """The table of files and host frames, for the C++ kernel and for Triton's (in its interpreter)."""
    columns = {}
    kernels = (("C++", "auto", "0"), ("Triton", "triton", "1"))
    for (kernel, impl, interpret), (name, checkout) in itertools.product(kernels, checkouts.items()):
        with Worker(checkout, TRITON_INTERPRET=interpret) as worker:
            columns[f"{kernel}, {name}"] = worker.ask("frames", impl=impl)
    # A checkout that launched no kernel has no figures.
    frame = pd.DataFrame(columns).astype("Int64").astype(str).replace("<NA>", "none")
    return markdown(frame.rename_axis("").reset_index())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("old", type=Path, help="folder of a checkout")
    parser.add_argument("new", type=Path, help="folder of a checkout")
    parser.add_argument("--losses", nargs="+", default=["DB", "FL", "ASL"])
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 8, 32, 256])
    parser.add_argument("--labels", nargs="+", type=int, default=[90, 1000, 18_211])
    parser.add_argument("--rounds", type=int, default=9, help="timings of each checkout; default 9")
    parser.add_argument("--seconds", type=float, default=0.02, help="of one timing, at least; default 0.02")
    parser.add_argument("--csv", type=Path, default=Path("runs/compare_checkouts.csv"), help="default %(default)s")
    options = parser.parse_args()
    checkouts = {name: getattr(options, name).resolve() for name in ("old", "new")}
    for name, checkout in checkouts.items():
        if not (checkout / "fused_balanced_loss" / "__init__.py").exists():
            parser.error(f"{name}: expected a checkout of the package, got {checkout}")
    rows, failed, todo = [], 0, cases(options)
    options.csv.parent.mkdir(parents=True, exist_ok=True)
    with open(options.csv, "w", newline="") as file, Worker(checkouts["old"]) as old, Worker(checkouts["new"]) as new:
        table = csv.DictWriter(file, [*todo[0], "old", "new", "p20", "p50", "p80"])
        table.writeheader()
        for number, case in enumerate(todo, 1):
            try:
                figures = measure(old, new, case, options.rounds, options.seconds)
            except RuntimeError as error:
                failed += 1
                print(f"{number} of {len(todo)}: {error}", file=sys.stderr)
                continue
            table.writerow(case | figures)
            file.flush()
            rows.append(shown(case, figures))
            print(f"{number} of {len(todo)}: {', '.join(rows[-1].values())}", file=sys.stderr)
    if rows:
        print(f"\n{markdown(pd.DataFrame(rows))}")
    print(f"\nFrom loss(z, y) to the launch, DB, 1,000 labels:\n\n{host_frames(checkouts)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
