"""Records, tables, report and comparison of the benchmarks; and the GPU report from end to end without a GPU."""

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def run(script, *arguments, status=0, path=(), cwd=None):
    python_path = [*map(str, path), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(python_path)}
    command = [sys.executable, str(ROOT / "benchmarks" / script), *map(str, arguments)]
    done = subprocess.run(command, env=environment, cwd=cwd, capture_output=True, text=True, timeout=900)
    assert done.returncode == status, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


def unpadded(markdown):
    return re.sub(" +", " ", markdown)


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
    text = unpadded((tmp_path / "report.md").read_text())
    assert "Some GPU" in text and "torch 9.9" in text and "2030-01-02" in text
    assert "| formula, eager | 10 s | 9 s to 11 s | 10.00 | 50 % | 1 kB |" in text
    assert "timm DistributionBalancedLoss: absent" in text
    assert "formula, eager: ours is ahead at 2, level at 0, behind at 0 sizes" in text
    # The report says that this peer computes less, and at which sizes it is ahead.
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
    # The peers became slower as much as ours did, so the machine was slower.
    write(after, 32, ours=2.0, peers=20.0)
    assert "| 2.00 | 1.00 +- 0.14 | level |" in unpadded(run("compare.py", before, after))
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


@pytest.fixture
def bare(tmp_path):
    """A folder for PYTHONPATH with which Python has no pandas, as on a machine with torch and Triton only."""
    folder = tmp_path / "bare"
    folder.mkdir()
    (folder / "pandas.py").write_text('raise ImportError("no pandas here")\n')
    return folder


def test_gpu_report_from_end_to_end(tmp_path, bare):
    """At small sizes with Triton's interpreter, without pandas; the report is made afterwards."""
    pytest.importorskip("triton")
    if torch.cuda.is_available():
        pytest.skip("on a GPU it measures for minutes: make gpu-report")
    options = ("--output", tmp_path, "--minutes", 14, "--processes", 2, "--tests", "test_spec.py")
    text = run("gpu_report.py", *options, path=[bare])
    assert "not whole: nothing" in text
    assert "  ours: median " in text and "No report.md (no pandas here)" in text
    assert "--- correctness: ok" in text and "DB fp32 csr: loss off by " in text
    assert not (tmp_path / "report.md").exists()
    names = {path.stem for path in (tmp_path / "records").glob("*.json")}
    parts = (
        "ceilings",
        "device-report",
        "host-launches",
        "classifier-db",
        "in-place-update-db",
        "cuda-graph",
        "part-2",
    )
    for part in parts:
        assert any(part in name for name in names), (part, names)
    run("report.py", tmp_path)
    assert "| ours " in (tmp_path / "report.md").read_text()


def test_gpu_report_without_time_names_what_is_missing(tmp_path):
    pytest.importorskip("triton")
    text = run("gpu_report.py", "--output", tmp_path, "--minutes", 0.1, "--tests", status=1)
    assert "one pass (dropped)" in text and "Traceback" not in text
    record = json.loads((tmp_path / "records" / "device-report.json").read_text())
    assert record["figures"]["classifier, 670,091 labels"].startswith("dropped, 0 s: ")


def test_two_checkouts(tmp_path):
    """The checkout against itself: the times of one size, and the host frames of both kernels."""
    pytest.importorskip("triton")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "fused_balanced_loss").symlink_to(ROOT / "fused_balanced_loss")
    options = ["--losses", "DB", "--rows", 2, "--labels", 90, "--rounds", 2, "--seconds", 0]
    text = unpadded(run("compare_checkouts.py", tmp_path / "other", ROOT, *options, "--csv", tmp_path / "times.csv"))
    assert "| DB, 2 x 90, uint8 | " in text and "| BCEWithLogitsLoss, 32 x 90, float | " in text
    rows = list(csv.DictReader((tmp_path / "times.csv").open()))
    assert len(rows) == 6 and all(float(row["new"]) > 0 and float(row["p50"]) > 0 for row in rows)
    frames = [int(cell) for cell in re.search(r"\| of them the package's \|(.*)\|", text)[1].split("|")]
    assert len(frames) == 4 and frames[0] == frames[1] > 0 and frames[2] == frames[3] > 0


def test_what_is_no_checkout_is_named(tmp_path):
    assert "old: expected a checkout of the package" in run("compare_checkouts.py", tmp_path, ROOT, status=2)
