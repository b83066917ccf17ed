"""What the first use costs: the import, the first call with its compilation, and both again with filled caches.

    pytest benchmarks/test_cold_cost.py

Each case runs twice, each time in a new process. All caches lie in a folder that is empty before the first run. On the
CPU the first call of ours builds a C++ kernel; ``torch.compile`` builds its code at each new shape.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import peers
import pytest
from quantities import seconds_text
from records import new_record

HERE = Path(__file__).parent
PREPARE = """
import json, sys, time
sys.path.insert(0, {here!r})
import torch
start = time.perf_counter()
{imports}
imported = time.perf_counter() - start
heavy = [name for name in ("transformers", "sklearn", "triton", "torch._inductor") if name in sys.modules]
import peers
from problems import make_problem
problem = make_problem(*{shape})
loss = {loss}
z = problem.logits
start = time.perf_counter()
loss(z).backward()
first = time.perf_counter() - start
start = time.perf_counter()
loss(z).backward()
second = time.perf_counter() - start
print(json.dumps({{"import": imported, "first_call": first, "second_call": second, "heavy": heavy}}))
"""
CASES = {
    "ours, 32 x 90": ("import fused_balanced_loss", (32, 90), "peers.make_loss(peers.OURS, problem, 'DB')"),
    "ours, 32 x 18,211": ("import fused_balanced_loss", (32, 18_211), "peers.make_loss(peers.OURS, problem, 'DB')"),
    "formula, torch.compile, 32 x 18,211": (
        "",
        (32, 18_211),
        "peers.make_loss(peers.COMPILED, problem, 'DB')",
    ),
    "timm DistributionBalancedLoss, 32 x 18,211": (
        "",
        (32, 18_211),
        "peers.make_loss(peers.TIMM_DB, problem, 'DB')",
    ),
}


def run(case: str, cache: Path) -> dict:
    imports, shape, loss = CASES[case]
    code = PREPARE.format(here=str(HERE), imports=imports, shape=shape, loss=loss)
    environment = os.environ | {
        "FUSED_BALANCED_LOSS_CACHE": str(cache / "ours"),
        "TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor"),
        "TRITON_CACHE_DIR": str(cache / "triton"),
    }
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("case", CASES)
def test_first_use(keep, tmp_path, case):
    if case.startswith("timm") and peers.TIMM_DB in peers.absent():
        pytest.skip(f"absent: {peers.absent()[peers.TIMM_DB]}")
    cold, cached = run(case, tmp_path), run(case, tmp_path)
    keep(new_record({"operation": "first use", "variant": case}, cold=cold, cached=cached))
    print(
        f"\n{case}: import beside torch {seconds_text(cold['import'])}, first call {seconds_text(cold['first_call'])}, "
        f"with caches {seconds_text(cached['first_call'])}, second call {seconds_text(cached['second_call'])}"
    )
    if case.startswith("ours"):
        # Importing the library must not import these, which take seconds.
        assert "transformers" not in cold["heavy"] and "sklearn" not in cold["heavy"]
