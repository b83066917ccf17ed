"""Jobs in processes of their own, in order, until the time is over: what fails or hangs stops nothing else."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

# A process that does not end when it is killed hangs in a driver: it is left behind.
_KILL_SECONDS = 5.0
_POLL_SECONDS = 0.02
_MOST_SHOWN = 6000


class Job(NamedTuple):
    """Processes that run side by side.

    commands: of each process, with the variables that it gets beside those of this process.
    seconds: at most, whatever time is left.
    least: it is not begun with less time.
    """

    name: str
    commands: Sequence[tuple[Sequence[str], dict[str, str]]]
    seconds: float
    least: float = 5.0


class Outcome(NamedTuple):
    """How a job ended. status: "ok", "failed", "stopped" (its time was over) or "dropped" (no time was left for it).

    output: what the processes printed; of each its end where it is long.
    """

    name: str
    status: str
    seconds: float
    output: str


def run_jobs(
    jobs: Iterable[Job],
    end: float,
    logs: Path,
    ended: Callable[[Outcome], None],
    clock: Callable[[], float] = time.monotonic,
) -> list[Outcome]:
    """Runs the jobs one after the other until ``end`` (by ``clock``); ``ended`` gets each outcome as it comes."""
    logs.mkdir(parents=True, exist_ok=True)
    outcomes = []
    for job in jobs:
        left = end - clock()
        if left < job.least:
            outcome = Outcome(job.name, "dropped", 0.0, f"{max(left, 0):.0f} s were left")
        else:
            outcome = _run(job, min(job.seconds, left), logs)
        outcomes.append(outcome)
        ended(outcome)
    return outcomes


def _run(job: Job, seconds: float, logs: Path) -> Outcome:
    start = time.monotonic()
    paths = [logs / f"{job.name.replace(' ', '_')}.{number}.txt" for number in range(len(job.commands))]
    running: list[subprocess.Popen[bytes]] = []
    try:
        for path, (command, variables) in zip(paths, job.commands, strict=True):
            with open(path, "wb") as log:
                # A session of its own, so that the process can be ended together with what it starts.
                running.append(
                    subprocess.Popen(
                        command,
                        env=os.environ | variables,
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                    )
                )
        while any(one.poll() is None for one in running) and time.monotonic() - start < seconds:
            time.sleep(_POLL_SECONDS)
        # Before the rest is killed, so that None says who did not end.
        codes = [one.poll() for one in running]
    except OSError as error:
        return Outcome(job.name, "failed", time.monotonic() - start, f"{type(error).__name__}: {error}")
    finally:
        _end(running)
    stopped = None in codes
    status = "stopped" if stopped else "ok" if not any(codes) else "failed"
    output = "".join(_shown(path, code) for path, code in zip(paths, codes, strict=True))
    if stopped:
        output += f"stopped after {seconds:.0f} s\n"
    return Outcome(job.name, status, time.monotonic() - start, output)


def _shown(path: Path, code: int | None) -> str:
    text = path.read_text(errors="replace")
    cut = "" if len(text) <= _MOST_SHOWN else "[...]\n"
    return cut + text[-_MOST_SHOWN:] + (f"exit status {code}\n" if code else "")


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Kills what still runs, with what it has started."""
    for one in processes:
        if one.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(one.pid, signal.SIGKILL)
    for one in processes:
        with contextlib.suppress(subprocess.TimeoutExpired):
            one.wait(_KILL_SECONDS)
