"""A compiler's run: within a time limit, and with all its temporary files in one folder."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import NamedTuple


class Failure(NamedTuple):
    """How a compiler failed, and what it said."""

    reason: str
    output: str


def run_compiler(command: list[str], scratch: Path, deadline: float) -> Failure | None:
    """Runs the command; None if it succeeds.

    Args:
        scratch: folder for temporary files.
        deadline: when the compiler and all processes that it has started are killed, in ``time.monotonic``'s seconds.

    Raises:
        OSError: where the compiler cannot be started.
    """
    limit = max(0.0, deadline - time.monotonic())
    # A file and no pipe: whoever reads a pipe waits for every process that still holds it.
    output = scratch / "output"
    with open(output, "wb") as file:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=os.environ | {"TMPDIR": str(scratch), "LC_ALL": "C"},
            start_new_session=True,
        )
        try:
            status: int | None = process.wait(limit)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            if process.returncode is None:
                _kill(process)
    if status == 0:
        return None
    reason = f"did not end within {limit:.0f} s" if status is None else f"failed with status {status}"
    return Failure(reason, output.read_text(errors="replace"))


def _kill(process: subprocess.Popen[bytes]) -> None:
    if hasattr(os, "killpg"):
        # The compiler is a driver: its group has the processes that work.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.wait()
