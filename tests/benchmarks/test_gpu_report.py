"""The GPU report's flow of control, with stubs for measurements: one fails, one hangs, the time runs out."""

import os
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def add_benchmarks(monkeypatch):
    """Puts their folder on the path, and out of the way the examples' modules of the same names."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    for path in (ROOT / "benchmarks").glob("*.py"):
        other = sys.modules.get(path.stem)
        if other is not None and not str(other.__file__).startswith(str(path.parent)):
            monkeypatch.delitem(sys.modules, path.stem)


@pytest.fixture
def jobs(monkeypatch):
    add_benchmarks(monkeypatch)
    import report_jobs

    return report_jobs


@pytest.fixture
def gpu_report(monkeypatch):
    pytest.importorskip("triton")
    add_benchmarks(monkeypatch)
    # The module sets them where there is no GPU; they must not outlive the test.
    for name in ("TRITON_INTERPRET", "BENCHMARK_COPY_BYTES", "BENCHMARK_MATMUL_SIZE"):
        monkeypatch.setenv(name, os.environ.get(name, "1"))
    import gpu_report

    return gpu_report


def python(code, **variables):
    return [sys.executable, "-c", code], variables


def run(jobs, stubs, tmp_path, seconds=60.0, **options):
    ended = []
    outcomes = jobs.run_jobs(stubs, time.monotonic() + seconds, tmp_path, ended.append, **options)
    assert ended == outcomes
    return {one.name: one for one in outcomes}


def test_what_fails_or_hangs_stops_nothing_else(jobs, tmp_path):
    stubs = [
        jobs.Job("fails", [python("print('first', flush=True); raise ValueError('broken')")], 30),
        jobs.Job("hangs", [python("import time; print('begun', flush=True); time.sleep(600)")], 8),
        jobs.Job("is killed", [python("import os; os.kill(os.getpid(), 11)")], 30),
        jobs.Job("cannot start", [([str(tmp_path / "nothing")], {})], 30),
        jobs.Job("works", [python("import os; print(os.environ['GIVEN'])", GIVEN="for me")], 30),
    ]
    found = run(jobs, stubs, tmp_path)
    status = {name: one.status for name, one in found.items()}
    assert status == {
        "fails": "failed",
        "hangs": "stopped",
        "is killed": "failed",
        "cannot start": "failed",
        "works": "ok",
    }
    assert "first\n" in found["fails"].output and "ValueError: broken" in found["fails"].output
    assert found["hangs"].output == "begun\nstopped after 8 s\n" and found["hangs"].seconds < 30
    assert found["works"].output == "for me\n"


def test_a_job_that_is_stopped_takes_its_children_along(jobs, tmp_path):
    child = "import subprocess, sys, time; "
    child += "one = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']); "
    child += "print(one.pid, flush=True); time.sleep(600)"
    output = run(jobs, [jobs.Job("parent", [python(child)], 8)], tmp_path)["parent"].output
    pid, end = int(output.split()[0]), time.monotonic() + 30
    while _is_alive(pid) and time.monotonic() < end:
        time.sleep(0.05)
    assert not _is_alive(pid)


def _is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_processes_of_a_job_run_side_by_side_and_one_failure_fails_it(jobs, tmp_path):
    # Each waits for the other's file.
    code = "import sys, time, pathlib; folder = pathlib.Path({folder!r}); (folder / '{mine}').touch()\n"
    code += "while not (folder / '{other}').exists(): time.sleep(0.01)\nsys.exit({status})"
    commands = [
        python(code.format(folder=str(tmp_path), mine=mine, other=other, status=status))
        for mine, other, status in (("a", "b", 0), ("b", "a", 3))
    ]
    one = run(jobs, [jobs.Job("two", commands, 60)], tmp_path / "logs")["two"]
    assert one.status == "failed" and one.output == "exit status 3\n"


def test_when_the_time_is_over_the_rest_is_dropped(jobs, tmp_path):
    now = iter([0.0, 8.0, 8.0])
    stubs = [jobs.Job(name, [python("print('here')")], 30, least) for name, least in (("a", 5), ("b", 5), ("c", 1))]
    found = {}
    jobs.run_jobs(stubs, 10.0, tmp_path, lambda one: found.update({one.name: one}), clock=lambda: next(now))
    assert [found[name].status for name in "abc"][:2] == ["ok", "dropped"]
    assert found["b"].output == "2 s were left"
    # A job gets no more than what is left.
    assert found["c"].seconds < 30


def test_only_the_end_of_a_long_output_is_kept(jobs, tmp_path):
    code = "print('x' * 100_000); print('the end')"
    output = run(jobs, [jobs.Job("long", [python(code)], 30)], tmp_path)["long"].output
    assert output.startswith("[...]\n") and output.endswith("the end\n") and len(output) < 10_000


def test_the_most_valuable_comes_first_and_all_fit_into_nine_minutes(gpu_report, tmp_path):
    found = gpu_report.jobs(tmp_path, small=False, processes=16, tests=None)
    names = [job.name for job in found]
    order = [
        "correctness",
        "host time",
        "one pass",
        "small batch",
        "classifier, 670,091 labels",
        "three million labels",
    ]
    assert [name for name in names if name in order] == order
    assert names.index("tests") > names.index("three million labels")
    # What must not be dropped fits, even if each of them takes all that it may.
    must = found[: names.index("three million labels") + 1]
    assert sum(job.seconds for job in must) < 9 * 60 - gpu_report.RESERVE_SECONDS
    assert all(len(job.commands) == 16 for job in found if job.name in ("correctness", "tests"))
    shares = [variables["SHARE_OF_TESTS"] for _, variables in found[names.index("tests")].commands]
    assert shares == [f"{k}/16" for k in range(16)]


def test_tests_of_the_report_exist(gpu_report):
    files = [*gpu_report.TESTS, *gpu_report.TESTS_ON_CPU, *gpu_report.COMPILE_TESTS]
    assert all((ROOT / "tests" / file).is_file() for file in files)
    assert gpu_report.TESTS_AFTER in gpu_report.MEASUREMENTS


def test_shares_of_the_tests_are_all_tests(gpu_report, jobs, tmp_path):
    (tmp_path / "test_some.py").write_text(
        "import pytest\n@pytest.mark.parametrize('k', range(7))\ndef test(k): print(f'number {k}.')\n"
    )
    job = gpu_report.tests_job("tests", [tmp_path / "test_some.py"], 3, 120, "-s")
    one = run(jobs, [job], tmp_path / "logs", 120)["tests"]
    assert one.status == "ok", one.output
    assert all(one.output.count(f"number {k}.") == 1 for k in range(7))
    for passed in ("3 passed", "2 passed"):
        assert passed in one.output


def test_measured_stands_beside_predicted(gpu_report):
    from predictions import predict_logits
    from report_text import record_text

    seconds = {"p20": 1e-5, "p50": 4e-5, "p80": 1e-4}
    settings = {"operation": "logits", "loss": "DB", "pass": "forward and backward", "rows": 1024, "labels": 18_211}
    record = {
        "settings": settings | {"dtype": "bfloat16", "targets": "csr"},
        "contestants": {"ours": {"seconds": seconds}, "other": {"seconds": seconds}},
        "absent": {"third": "not here"},
        "device": {"name": "NVIDIA H200"},
    }
    text = record_text(record, Path("some.json"))
    expected = predict_logits(gpu_report_gpus()["H200"], 1024, 18_211)
    assert f"measured / predicted {4e-5 / expected.seconds:.2f}" in text and expected.reason in text
    assert text.count(" predicted ") == 2 and "third: absent, not here" in text
    record["contestants"]["ours"]["eager_seconds"] = seconds
    text = record_text(record, Path("some.json"))
    longer = max(expected.seconds, expected.host)
    assert f"eager 40 us, predicted {longer * 1e6:.3g} us (measured / predicted {4e-5 / longer:.2f})" in text
    record["device"]["name"] = "Some GPU"
    assert "predicted" not in record_text(record, Path("some.json"))


def gpu_report_gpus():
    from hardware import GPUS

    return GPUS


def test_ncu_leaves_the_clocks_alone(gpu_report):
    from kernel_profile import ncu_command

    command = ncu_command("ncu")
    assert command[command.index("--clock-control") + 1] == "none"


def test_a_peer_that_fails_is_absent_and_ours_that_fails_is_an_error(gpu_report, monkeypatch):
    import gpu_measurements as measurements
    import torch

    make_loss = measurements.peers.make_loss
    broken = {measurements.PLAIN}

    def make(name, *arguments, **options):
        if name in broken:
            raise RuntimeError(f"{name} is broken")
        return make_loss(name, *arguments, **options)

    monkeypatch.setattr(measurements.peers, "make_loss", make)
    monkeypatch.setattr(measurements, "IMPL", "eager")
    names = [measurements.OURS, measurements.PLAIN]
    record = measurements.logits_on_device((2, 50), torch.float32, "csr", names)
    assert list(record["contestants"]) == [measurements.OURS]
    assert record["absent"] == {measurements.PLAIN: "RuntimeError: BCEWithLogitsLoss is broken"}
    broken.add(measurements.OURS)
    with pytest.raises(RuntimeError, match="ours is broken"):
        measurements.logits_on_device((2, 50), torch.float32, "csr", names)
