"""Runs the losses of one checkout on request. ``compare_checkouts.py`` starts one such process for each checkout.

Every request and every answer is one line of JSON, on standard input and standard output. Requests:

    {"do": "where"}                    the folder of the package: {"package": ...}
    {"do": "prepare", "call": ..., "loss": ..., "rows": ..., "labels": ..., "targets": ...}
                                       makes a case; its loss: {"value": ...}
    {"do": "time", "seconds": ...}     seconds of one forward and backward of that case: {"seconds": ...}
    {"do": "frames", "impl": ...}      see ``frames``; only as the first request that computes anything

The answer to a request that failed is {"error": text}.
"""

from __future__ import annotations

import ctypes
import functools
import json
import os
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from peers import OURS, our_targets, spec_of
from problems import make_problem
from torch import Tensor

import fused_balanced_loss

PACKAGE = os.path.dirname(fused_balanced_loss.__file__)


def make_case(
    call: str, loss: str, rows: int, labels: int, targets: str, impl: str = "auto"
) -> tuple[Any, Tensor, Any]:
    """A loss, its logits and its targets. call: "function", "module", or the name of a loss in torch.nn."""
    problem = make_problem(rows, labels)
    z, y = problem.logits, our_targets(problem, targets)
    if hasattr(torch.nn, call):
        return getattr(torch.nn, call)(), z, y
    # By keywords, since old checkouts take the statistics before the spec.
    settings = {"spec": spec_of(OURS, loss), "statistics": problem.statistics, "impl": impl}
    if call == "module":
        return fused_balanced_loss.BalancedLoss(**settings), z, y
    return functools.partial(fused_balanced_loss.balanced_loss, **settings), z, y


def step(loss: Any, z: Tensor, y: Any) -> Tensor:
    z.grad = None
    value: Tensor = loss(z, y)
    value.backward()
    return value


def seconds_of(case: tuple[Any, Tensor, Any], at_least: float) -> float:
    """Seconds of one forward and backward, the mean over as many as fill ``at_least`` seconds."""
    # The first step brings the data into the cache, and lets the threads of the other process fall asleep.
    step(*case)
    steps, start = 0, time.perf_counter()
    while (took := time.perf_counter() - start) < at_least or not steps:
        step(*case)
        steps += 1
    return took / steps


def frames(impl: str) -> dict[str, int]:
    """What the host passes through from ``loss(z, y)`` to the launch of the loss kernel: for 1,000 labels of few rows.

    A launch is a call of a C++ kernel through ctypes, or a call into Triton's runtime. The frames are those on
    the stack at the launch, without that of the caller of ``loss``; the calls and files are all that were entered
    before it.
    """
    calls: list[str] = []
    found: dict[str, int] = {}
    here = sys._getframe()

    def is_host(file: str) -> bool:
        # The kernels' own files run as Python in Triton's interpreter only.
        return file.startswith(PACKAGE) and not file.startswith(os.path.join(PACKAGE, "kernels"))

    def launched(frame: FrameType | None) -> None:
        # Kernels that prepare the rows come first, so the last launch is the loss kernel's.
        stack = []
        while frame is not None and frame is not here:
            stack.append(frame.f_code.co_filename)
            frame = frame.f_back
        own = [file for file in stack if is_host(file)]
        found.update({"frames on the stack": len(stack), "of them the package's": len(own)})
        found.update({"files of the package on the stack": len(set(own))})
        found.update({"files of the package entered": len(set(calls)), "calls in the package": len(calls)})

    class Library(ctypes.CDLL):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)

            class Function(self._FuncPtr):  # type: ignore[name-defined, misc]
                _flags_, _restype_ = self._FuncPtr._flags_, self._FuncPtr._restype_

                def __call__(self, *arguments: Any) -> Any:
                    launched(sys._getframe(1))
                    return super().__call__(*arguments)

            self._FuncPtr = Function

    def profile(frame: FrameType, event: str, _: Any) -> None:
        file = frame.f_code.co_filename
        if event != "call" or frame.f_back is None:
            return
        if is_host(file):
            calls.append(file)
        elif f"triton{os.sep}runtime" in file and is_host(frame.f_back.f_code.co_filename):
            launched(frame.f_back)

    # Before the first call, since the package keeps the libraries that it has loaded.
    ctypes.CDLL = Library  # type: ignore[misc]
    loss, z, y = make_case("module", "DB", 2 if impl == "triton" else 32, 1000, "csr", impl)
    for _ in range(3):
        loss(z, y)
    calls.clear()
    found.clear()
    sys.setprofile(profile)
    loss(z, y)
    sys.setprofile(None)
    return found


def answer(request: dict[str, Any], case: list[Any]) -> dict[str, Any]:
    """The answer to a request. case: what the last "prepare" has made."""
    do = request.pop("do")
    if do == "where":
        return {"package": str(Path(PACKAGE).resolve())}
    if do == "prepare":
        case[:] = make_case(**request)
        # torch.compile, which old checkouts use, may compile again at the second call.
        return {"value": [step(*case).item() for _ in range(3)][-1]}
    if do == "time":
        return {"seconds": seconds_of(tuple(case), request["seconds"])}
    return frames(**request)


def main() -> None:
    output = os.fdopen(os.dup(1), "w")
    # Whatever a library prints must not come between the answers.
    os.dup2(2, 1)
    case: list[Any] = []
    for line in sys.stdin:
        try:
            found = answer(json.loads(line), case)
        except Exception as error:
            found = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(found), file=output, flush=True)


if __name__ == "__main__":
    main()
