"""Host time of a call on a GPU beside that of a bare Triton kernel, with the launches that a call makes.

    pytest benchmarks/test_host_time.py

No GPU is needed: ``host_time.py`` says what stands for it. The figures are recorded; what is asserted is that no launch
goes through Triton's look-up, how many there are, and on a GPU the loss.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from records import new_record

pytest.importorskip("triton")

ROOT = Path(__file__).parents[1]


def test_host_time(keep, full):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", str(ROOT / "benchmarks" / "host_time.py")]
    done = subprocess.run(
        [*command, "--calls", "2000" if full else "200"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(results) == 8
    for result in results:
        seconds = result["seconds"]
        # Dense targets are summed up row by row before the loss.
        forward = 1 if result["targets"] == "csr" else 2
        for passes, launches in (("forward", forward), ("forward and backward", forward + 1)):
            made = result[passes]
            assert made["looked_up"] == 0
            assert made["launches"] in (None, launches)
            print(
                f"{result['rows']} x {result['labels']:,}, {result['dtype']}, {result['targets']}, {passes}: "
                f"{1e6 * seconds[passes]:.1f} us, {seconds[passes] / seconds['bare kernel']:.1f} x a bare kernel; "
                f"{launches} launches"
            )
            settings = {
                "operation": "host time",
                "loss": "DB",
                "pass": passes,
                "rows": result["rows"],
                "labels": result["labels"],
                "dtype": result["dtype"],
                "targets": result["targets"],
                "variant": f"{result['driver']} driver",
            }
            bare = {"bare kernel": seconds["bare kernel"], "ours": seconds[passes]}
            keep(new_record(settings, seconds=bare, launches=launches))
        assert result.get("error", 0) < (1e-2 if result["dtype"] == "bfloat16" else 1e-5)
