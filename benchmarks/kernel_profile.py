"""What NVIDIA's ncu reads of the one-pass kernel."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NCU_METRICS = {
    "dram__throughput.avg.pct_of_peak_sustained_elapsed": "memory, % of peak",
    "sm__inst_executed_pipe_xu.avg.pct_of_peak_sustained_active": "special functions, % of peak",
    "sm__inst_issued.avg.pct_of_peak_sustained_active": "issue slots, % of peak",
    "gpu__time_duration.sum": "time, ns",
}
_CODE = """
import sys; sys.path[:0] = ["benchmarks", "."]
import torch, peers
from problems import make_problem
for dtype in (torch.bfloat16, torch.float32):
    p = make_problem(1024, 18_211, dtype)
    f = peers.make_loss(peers.OURS, p, "DB")
    for _ in range(2): f(p.logits).backward()
torch.cuda.synchronize()
"""


def ncu_command(ncu: str) -> list[str]:
    """ncu leaves the clocks alone: it may not be allowed to change them, and elsewhere they are not fixed either."""
    options = ["--csv", "--clock-control", "none", "--metrics", ",".join(NCU_METRICS)]
    return [ncu, *options, "--kernel-name", "regex:logits_loss", sys.executable, "-c", _CODE]


def profile_kernels() -> dict[str, object]:
    """The figures by row of ncu's table, or the reason why it gave none."""
    ncu = shutil.which("ncu")
    if ncu is None:
        return {"ncu": "absent"}
    done = subprocess.run(ncu_command(ncu), cwd=ROOT, capture_output=True, text=True)
    rows = [line for line in done.stdout.splitlines() if line.startswith('"')]
    if len(rows) < 2:
        return {"ncu": f"gave nothing (exit status {done.returncode}): {(done.stderr or done.stdout).strip()[-300:]}"}
    return {f"row {k}": row for k, row in enumerate(rows)}
