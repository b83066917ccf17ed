"""The short examples, run as a reader would run them, without a network."""

import os
import re
import subprocess
import sys

import pytest
from places import ROOT
from tiny_bert import save_tiny_encoder

pytest.importorskip("accelerate")

pytestmark = pytest.mark.slow


def run(name, *arguments):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(ROOT / "examples" / name), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_quickstart():
    lines = run("quickstart.py").splitlines()
    assert [line.split("  ")[0] for line in lines[1:]] == [
        "before training",
        "BCEWithLogitsLoss",
        "DistributionBalancedLoss",
    ]
    before, plain, balanced = ([float(f1) for f1 in re.findall(r"\d+\.\d", line)] for line in lines[1:])
    assert before[0] < 10 < plain[0]
    assert balanced[1] > plain[1] and balanced[3] > plain[3], "rare labels gain, and macro-F1 counts each as much"


@pytest.mark.parametrize("model", ["made here", "of a folder"])
def test_trainer(tmp_path, model):
    arguments = [] if model == "made here" else [str(save_tiny_encoder(tmp_path))]
    before, after = (float(f1) for f1 in re.findall(r"micro-F1 (\d+\.\d)", run("trainer.py", *arguments)))
    assert after > before
    if not arguments:
        assert after > before + 20


def test_scikit_learn():
    header, *lines, topics = run("scikit_learn.py").splitlines()
    assert "rare topics" in header and topics == "('topic03', 'topic31')"
    plain, balanced = ([float(f1) for f1 in re.findall(r"\d+\.\d", line)] for line in lines)
    assert balanced[1] > plain[1] + 20 and balanced[3] > plain[3] + 50, "rare labels are found"
