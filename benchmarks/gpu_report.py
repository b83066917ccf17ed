"""All that needs a GPU, in one run of at most nine minutes, the most valuable first.

    python benchmarks/gpu_report.py [--minutes 9] [--output FOLDER]

It needs torch, Triton and NumPy, no network and no installation; pytest for the tests. First the eight losses are
checked against float64, by as many processes as there are cores, which so compile all kernels side by side. Then come
the measurements and the tests, in the order of their value. Each is a process of its own with a time limit: what fails
or hangs is named, and the next one begins with a device of its own. When the time is nearly over, the rest is dropped
and named. Each record is written as soon as it is there, and printed beside what ``predictions.py`` expects.

The report's tables need pandas and tabulate; without them ``report.py`` makes the tables later, on any machine. On a
CPU the same code runs at small sizes with Triton's interpreter.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
HERE = ROOT / "benchmarks"
sys.path[:0] = [str(ROOT)]
if not torch.cuda.is_available():
    # Triton reads this when it is imported. The sizes keep the calibration from taking minutes.
    os.environ.setdefault("TRITON_INTERPRET", "1")
    os.environ.setdefault("BENCHMARK_COPY_BYTES", str(1 << 22))
    os.environ.setdefault("BENCHMARK_MATMUL_SIZE", "128")

from environment import DEVICE, device, device_text, versions  # noqa: E402
from gpu_measurements import MEASUREMENTS  # noqa: E402
from records import default_folder, new_record, write_record  # noqa: E402
from report_jobs import Job, Outcome, run_jobs  # noqa: E402

# The tests that compute on the device. Losses and shapes that no other test has; the rest was run without a GPU, on the
# same machine code.
TESTS = [
    "test_losses.py", "test_edges.py", "classifier/test_linear_loss.py",
    "optim/test_classifier_update.py", "classifier/test_prediction.py", "test_modules.py",
]  # fmt: skip
# What needs no kernel of the device.
NOT_THESE = "not compile and not cpp and not eager"
TESTS_ON_CPU = ["test_spec.py"]
COMPILE_TESTS = ["backends/test_compile.py"]
TESTS_AFTER = "three million labels"
CHECK_SECONDS, TESTS_SECONDS, COMPILE_TESTS_SECONDS = 110, 150, 90
# For the report at the end.
RESERVE_SECONDS = 10


def _python(*arguments: object, **variables: str) -> tuple[Sequence[str], dict[str, str]]:
    """A process of this Python, which finds the package, the benchmarks and what the caller's PYTHONPATH has."""
    path = os.pathsep.join([str(ROOT), str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
    return [sys.executable, *map(str, arguments)], {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"} | variables


def tests_job(name: str, files: Sequence[str], processes: int, seconds: float, *options: str) -> Job:
    """The tests of some files, spread over processes."""
    paths = [ROOT / "tests" / file for file in files]
    base = ["-m", "pytest", *paths, "-q", "-o", "addopts=", "-p", "no:cacheprovider", "-p", "share_of_tests"]
    base += ["--rootdir", ROOT, "--maxfail=20", "--tb=short", *options]
    return Job(name, [_python(*base, SHARE_OF_TESTS=f"{k}/{processes}") for k in range(processes)], seconds, 20)


def jobs(output: Path, small: bool, processes: int, tests: Sequence[str] | None) -> list[Job]:
    """What a report consists of, in the order of its value. tests: files in place of TESTS; none for no tests."""
    checks = [_python(HERE / "gpu_checks.py", k, processes, output) for k in range(processes)]
    found = [Job("correctness", checks, CHECK_SECONDS)]
    files = (TESTS_ON_CPU if small else TESTS) if tests is None else tests
    for name, one in MEASUREMENTS.items():
        seconds = one.seconds * (10 if small else 1)
        found.append(Job(name, [_python(HERE / "gpu_measurements.py", name, output)], seconds))
        if name == TESTS_AFTER and files:
            found.append(tests_job("tests", files, processes, TESTS_SECONDS, "-k", NOT_THESE))
    if files and not small:
        found.append(tests_job("tests of torch.compile", COMPILE_TESTS, processes, COMPILE_TESTS_SECONDS))
    return found


def main() -> int:
    begin = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=9, help="for everything; default 9")
    parser.add_argument("--output", type=Path, help="folder for records and report; default benchmarks/results/DEVICE")
    parser.add_argument("--tests", nargs="*", help="test files below tests/; none to leave the tests out")
    parser.add_argument("--processes", type=int, default=min(16, os.cpu_count() or 1), help="for checks and tests")
    options = parser.parse_args()
    small = DEVICE.type == "cpu"
    output = options.output or (ROOT / "runs" / "gpu_report" if small else default_folder())
    if small:
        print("No GPU: small sizes with Triton's interpreter. No figure of this run means anything.")
    print(f"{device_text(device())}; {versions()}", flush=True)

    figures: dict[str, str] = {}

    def ended(outcome: Outcome) -> None:
        print(f"--- {outcome.name}: {outcome.status}, {outcome.seconds:.0f} s\n{outcome.output.rstrip()}", flush=True)
        closing = (
            outcome.output.strip().rpartition("\n")[2] if outcome.status != "ok" or "tests" in outcome.name else ""
        )
        figures[outcome.name] = f"{outcome.status}, {outcome.seconds:.0f} s" + (f": {closing}" if closing else "")
        # After each, so that it is there if the machine goes away.
        write_record(output, new_record({"operation": "device", "variant": "report"}, figures=figures))

    end = begin + 60 * options.minutes - RESERVE_SECONDS
    outcomes = run_jobs(jobs(output, small, options.processes, options.tests), end, output / "logs", ended)
    print(_report(output))
    bad = [f"{one.name} ({one.status})" for one in outcomes if one.status != "ok"]
    print(f"{time.monotonic() - begin:.0f} s; not whole: {', '.join(bad) or 'nothing'}; {output}")
    return 1 if bad else 0


def _report(folder: Path) -> str:
    """The text of report.md, which is written, or why there is none."""
    try:
        from report import write_report
    except ImportError as error:
        return f"No report.md ({error}). On a machine with pandas and tabulate: python benchmarks/report.py {folder}"
    try:
        return write_report(folder)[0].read_text()
    except ValueError as error:
        return f"No report.md: {error}"


if __name__ == "__main__":
    sys.exit(main())
