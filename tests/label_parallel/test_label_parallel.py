"""The classifier sharded over 1, 2 and 4 ranks; each check of label_parallel_rank.py runs in all ranks of a launch."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
    pytest.skip("needs torch.distributed with gloo", allow_module_level=True)

pytestmark = pytest.mark.distributed

SCRIPT = Path(__file__).with_name("label_parallel_rank.py")
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"},
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": os.pathsep.join([str(SCRIPT.parents[2]), os.environ.get("PYTHONPATH", "")]),
}
MARKED = re.findall(r"@check\(([\d, ]+)\)\ndef (\w+)", SCRIPT.read_text())
CHECKS = [(name, int(size)) for sizes, name in MARKED for size in sizes.split(",")]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """What the checks came to: {(number of ranks, rank): {check: None or traceback}}."""
    folder = tmp_path_factory.mktemp("ranks")
    found = {}
    # Four first: two load their checkpoint.
    for size in (4, 2, 1):
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(size)]
        run = subprocess.run(
            [*launch, str(SCRIPT), str(folder)], env=ENVIRONMENT, capture_output=True, text=True, timeout=300
        )
        assert run.returncode == 0, run.stderr[-3000:]
        for rank in range(size):
            found[size, rank] = json.loads((folder / f"{size}-{rank}.json").read_text())
    return found


@pytest.mark.parametrize(("name", "size"), CHECKS)
def test_check(name, size, outcomes):
    for rank in range(size):
        outcome = outcomes[size, rank][name]
        assert outcome is None, f"rank {rank}: {outcome}"


def test_initial_values_are_those_of_any_number_of_ranks(outcomes):
    one, two, four = (torch.tensor(outcomes[size, 0]["sums"]) for size in (1, 2, 4))
    torch.testing.assert_close(two, one, rtol=1e-9, atol=0)
    torch.testing.assert_close(four, one, rtol=1e-9, atol=0)


@pytest.mark.parametrize("how", ["die", "stop"])
def test_other_ranks_end_when_one_is_gone(how, tmp_path):
    """Without a launcher that would end them: by the closed connection, or by the process group's timeout of 5 s."""
    ranks = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(tmp_path), how, str(rank)],
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        output, _ = ranks[0].communicate(timeout=60)
        assert ranks[0].returncode == 7
        assert float(re.match(r"after ([\d.]+) s", output)[1]) < 15
    finally:
        for rank in ranks:
            rank.kill()
            rank.communicate()
