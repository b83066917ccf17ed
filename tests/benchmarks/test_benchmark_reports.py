"""Records, tables, report and comparison of the benchmarks; and the GPU report from end to end without a GPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def run(script, *arguments, status=0):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "benchmarks" / script), *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == status, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


def entry(median, *, peak=1000, same_work=True):
    seconds = {"p20": 0.9 * median, "p50": median, "p80": 1.1 * median}
    return {"seconds": seconds, "same_work": same_work, "peak_bytes": peak, "share_of_floor": 0.5}


def write(folder, rows, *, ours=1.0, peers=10.0, peak=1_000_000):
    settings = {"operation": "logits", "loss": "DB", "pass": "forward and backward", "rows": rows, "labels": 18_211}
    record = {
        "settings": settings | {"dtype": "float32", "targets": "csr"},
        "contestants": {
            "formula, eager": entry(peers),
            "ours": entry(ours, peak=peak),
            "BCEWithLogitsLoss": entry(ours / 2, same_work=False),
        },
        "absent": {"timm DistributionBalancedLoss": "No module named 'timm'"},
        "floor": None,
        "device": {"kind": "gpu", "name": "Some GPU", "memory_bytes": 1, "processors": 1},
        "versions": {"torch": "9.9", "commit": "abc"},
        "date": "2030-01-02",
    }
    (folder / "records").mkdir(parents=True, exist_ok=True)
    (folder / "records" / f"{rows}.json").write_text(json.dumps(record))


def test_report_names_device_versions_and_absent_peers(tmp_path):
    write(tmp_path, 32)
    write(tmp_path, 256, ours=2.0)
    run("report.py", tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "Some GPU" in text and "torch 9.9" in text and "2030-01-02" in text
    assert "| formula, eager | 10 s | 9 s to 11 s | 10.00 | 50 % | 1 kB |" in text
    assert "timm DistributionBalancedLoss: absent" in text
    assert "formula, eager: ours is ahead at 2, level at 0, behind at 0 sizes" in text
    # Half the time for less work: said, and where.
    assert "BCEWithLogitsLoss (computes less): ours is ahead at 0, level at 0, behind at 2 sizes: " in text


def test_plots(tmp_path):
    pytest.importorskip("matplotlib")
    write(tmp_path, 32)
    write(tmp_path, 256)
    run("report.py", tmp_path)
    assert (tmp_path / "time_by_rows.png").stat().st_size > 10_000
    assert not (tmp_path / "time_by_labels.png").exists()


def test_comparison_divides_by_the_machine_and_flags_memory(tmp_path):
    before, after = tmp_path / "before", tmp_path / "after"
    write(before, 32)
    # Everything twice as slow: the machine, not the change.
    write(after, 32, ours=2.0, peers=20.0)
    assert "| 2.00 | 1.00 +- 0.14 | level |" in run("compare.py", before, after)
    write(after, 32, ours=0.5, peak=1_500_000)
    text = run("compare.py", before, after, status=1)
    assert "faster" in text and "peak_bytes 1,000,000 -> 1,500,000" in text


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"settings": {"operation": "x"}}'])
def test_broken_records_are_named(tmp_path, content):
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / "one.json").write_text(content)
    for script, arguments in (("report.py", [tmp_path]), ("compare.py", [tmp_path, tmp_path])):
        text = run(script, *arguments, status=2)
        assert "one.json: expected a record" in text and "Traceback" not in text


def test_nothing_measured(tmp_path):
    text = run("report.py", tmp_path / "none", status=2)
    assert "expected records/*.json, found none" in text


def test_gpu_report_from_end_to_end(tmp_path):
    """Small sizes with Triton's interpreter."""
    pytest.importorskip("triton")
    if torch.cuda.is_available():
        pytest.skip("on a GPU it is the real thing and takes minutes: make gpu-report")
    text = run("gpu_report.py", "--output", tmp_path, "--seconds", 300, "--tests", "tests/test_spec.py")
    assert "not whole: nothing" in text
    names = {path.stem for path in (tmp_path / "records").glob("*.json")}
    for part in ("ceilings", "device-tests", "host-launches", "classifier-db", "in-place-update-db", "cuda-graph"):
        assert any(part in name for name in names), (part, names)
    assert (tmp_path / "report.md").exists()


def test_gpu_report_without_time_names_what_is_missing(tmp_path):
    pytest.importorskip("triton")
    text = run("gpu_report.py", "--output", tmp_path, "--seconds", 1, "--tests", status=1)
    assert "streaming: no time left" in text
