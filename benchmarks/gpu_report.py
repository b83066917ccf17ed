"""All that needs a GPU, in one run: the tests, then the measurements, the most important first, then the report.

    python benchmarks/gpu_report.py [--seconds 530] [--output FOLDER]

It needs torch, Triton and NumPy, no network and no installation. The report's tables need pandas and tabulate; without
them the figures are printed as plain text, and ``report.py`` makes the tables later, on any machine. Each record is
written as soon as it is there. A measurement that fails is recorded and the others go on; one for which no time is left
is named. On a CPU the same code runs at small sizes with Triton's interpreter.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]
if not torch.cuda.is_available():
    # Triton reads this when it is imported. The sizes keep the calibration from taking minutes.
    os.environ.setdefault("TRITON_INTERPRET", "1")
    os.environ.setdefault("BENCHMARK_COPY_BYTES", str(1 << 22))
    os.environ.setdefault("BENCHMARK_MATMUL_SIZE", "128")

from environment import DEVICE, device, device_text, versions  # noqa: E402
from gpu_measurements import LARGE, MEASUREMENTS, SMALL  # noqa: E402
from quantities import bytes_text, seconds_text, share_text  # noqa: E402
from records import Record, contestants_of, default_folder, new_record, title, write_record  # noqa: E402

# The tests that compute on the device, and the seconds that they may take together.
TESTS = [
    "test_losses.py", "test_edges.py", "classifier/test_linear_loss.py", "optim/test_classifier_update.py",
    "classifier/test_prediction.py", "test_modules.py", "backends/test_compile.py",
]  # fmt: skip
TESTS_ON_CPU = ["test_spec.py"]
TESTS_SECONDS = 180
NCU_METRICS = {
    "dram__throughput.avg.pct_of_peak_sustained_elapsed": "memory, % of peak",
    "sm__inst_executed_pipe_xu.avg.pct_of_peak_sustained_active": "special functions, % of peak",
    "sm__inst_issued.avg.pct_of_peak_sustained_active": "issue slots, % of peak",
    "gpu__time_duration.sum": "time, ns",
}


class OutOfTimeError(Exception):
    """The time given is over."""


@contextlib.contextmanager
def limit(seconds: float) -> Iterator[None]:
    """Raises OutOfTimeError inside the block when it has run for ``seconds``."""

    def stop(*_: object) -> None:
        raise OutOfTimeError(f"stopped after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.01))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def run_tests(files: list[str], seconds: float) -> dict[str, object]:
    """Runs test files in a process of their own, and returns the exit status, the last line and the failed tests."""
    command = [sys.executable, "-m", "pytest", *files, "-q", "-o", "addopts=", "-p", "no:cacheprovider"]
    command += ["--maxfail=20", "--tb=short"]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=max(seconds, 1)
        )
    except subprocess.TimeoutExpired as error:
        shown = error.stdout or b""
        text = shown.decode(errors="replace") if isinstance(shown, bytes) else shown
        return {"exit status": f"none after {seconds:.0f} s", "closing line": text[-300:]}
    lines = (done.stdout + done.stderr).strip().splitlines()
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    return {"exit status": done.returncode, "closing line": lines[-1] if lines else "", "failed": failed}


def profile_kernels(seconds: float) -> dict[str, object]:
    """The figures that ncu reads for the one-pass kernel, or the reason why it gave none."""
    ncu = shutil.which("ncu")
    if ncu is None:
        return {"ncu": "absent"}
    code = (
        "import sys; sys.path[:0] = ['benchmarks', '.']; import torch, peers; from problems import make_problem\n"
        "for dtype in (torch.bfloat16, torch.float32):\n"
        "    p = make_problem(1024, 18_211, dtype)\n"
        "    f = peers.make_loss(peers.OURS, p, 'DB')\n"
        "    for _ in range(2): f(p.logits).backward()\n"
        "torch.cuda.synchronize()"
    )
    command = [ncu, "--csv", "--metrics", ",".join(NCU_METRICS), "--kernel-name", "regex:logits_loss", sys.executable]
    done = subprocess.run([*command, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=max(seconds, 1))
    rows = [line for line in done.stdout.splitlines() if line.startswith('"')]
    if len(rows) < 2:
        return {"ncu": f"gave nothing (exit status {done.returncode}): {(done.stderr or done.stdout).strip()[-300:]}"}
    return {f"row {k}": row for k, row in enumerate(rows)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=530, help="for everything; default 530")
    parser.add_argument("--output", type=Path, help="folder for records and report; default benchmarks/results/DEVICE")
    parser.add_argument("--tests", nargs="*", help="test files; none to leave the tests out")
    options = parser.parse_args()
    end = time.monotonic() + options.seconds
    small = DEVICE.type == "cpu"
    output = options.output or (ROOT / "runs" / "gpu_report" if small else default_folder())
    files = options.tests
    if files is None:
        files = [f"tests/{name}" for name in (TESTS_ON_CPU if small else TESTS)]
    if small:
        print("No GPU: small sizes with Triton's interpreter. No figure of this run means anything.")
    print(f"{device_text(device())}; {versions()}", flush=True)
    problems = []

    def left() -> float:
        return end - time.monotonic()

    if files:
        # At most half of the time, because the measurements come after.
        figures = run_tests(files, min(TESTS_SECONDS, left() / 2))
        print(f"tests: {figures}", flush=True)
        write_record(output, new_record({"operation": "device", "variant": "tests"}, figures=figures))
        if figures["exit status"] != 0:
            problems.append("tests")
    for measure in MEASUREMENTS:
        if left() < 5:
            problems.append(measure.__name__)
            print(f"{measure.__name__}: no time left", flush=True)
            continue
        try:
            # The last five seconds are for the report.
            with limit(left() - 5):
                for record in measure(SMALL if small else LARGE):
                    path = write_record(output, record)
                    _show(record, path)
        except Exception as error:
            # One failure must not cost the other measurements. The records say what it was.
            problems.append(measure.__name__)
            what = f"{type(error).__name__}: {str(error)[:500]}"
            print(f"{measure.__name__}: {what}", flush=True)
            settings = {"operation": "device", "variant": f"failed {measure.__name__}"}
            write_record(output, new_record(settings, figures={"failed": what}))
        if not small:
            torch.cuda.empty_cache()
    if left() > 30:
        try:
            figures = {"ncu": "no GPU"} if small else profile_kernels(min(left() - 10, 90))
        except (OSError, subprocess.SubprocessError) as error:
            figures = {"ncu": f"{type(error).__name__}: {error}"}
        write_record(output, new_record({"operation": "device", "variant": "ncu"}, figures=figures))
        print(f"ncu: {figures}", flush=True)
    print(_report(output))
    print(f"{options.seconds - left():.0f} s; not whole: {', '.join(problems) or 'nothing'}; {output}")
    return 1 if problems else 0


def _show(record: Record, path: Path) -> None:
    """Prints a record without pandas, which a machine with a GPU may lack."""
    print(f"\n{title(record['settings'])} -> {path.name}")
    for name in contestants_of([record]) if "contestants" in record else []:
        one = record["contestants"][name]
        share, peak = share_text(one.get("share_of_floor")), bytes_text(one.get("peak_bytes"))
        shown = [f"median {seconds_text(one['seconds']['p50'])}"]
        shown += [f"of the floor {share}"] * bool(share) + [f"peak {peak}"] * bool(peak)
        print(f"  {name}: {', '.join(shown)}")
    for name, figure in (record.get("figures") or {}).items():
        print(f"  {name}: {figure}")
    sys.stdout.flush()


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
