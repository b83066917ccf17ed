"""A compiler's run: within a time limit, and with all its temporary files in one folder."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path


def run_compiler(command: list[str], scratch: Path, deadline: float) -> tuple[str, str]:
    """Runs the command: how it failed, ``""`` if it succeeds, and what it said.

    Its temporary files are in ``scratch``. At ``deadline``, in ``time.monotonic``'s seconds, the compiler and all
    processes that it has started are killed. Raises OSError where it cannot be started.
    """
    limit = max(0.0, deadline - time.monotonic())
    # A file and no pipe: whoever reads a pipe waits for every process that still holds it.
    output = scratch / "output"
    with (
        open(output, "wb") as file,
        subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=os.environ | {"TMPDIR": str(scratch), "LC_ALL": "C"},
            start_new_session=True,
        ) as process,
    ):
        reason = f"did not end within {limit:.0f} s"
        try:
            status = process.wait(limit)
            reason = f"failed with status {status}" if status else ""
        except subprocess.TimeoutExpired:
            pass
        finally:
            if process.returncode is None:
                _kill(process)
    return reason, output.read_text(errors="replace")


def _kill(process: subprocess.Popen[bytes]) -> None:
    if not hasattr(os, "killpg"):
        process.kill()
    else:
        # The compiler is a driver: its group has the processes that work.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
