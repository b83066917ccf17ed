"""The wheel: what stands in it, and that it computes where nothing else of the repository is."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    pytest.importorskip("build")
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return next(folder.glob("*.whl"))


def test_only_one_top_level_name_and_the_kernels_inside(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"fused_balanced_loss"}
    for kernel in ("element", "labels", "logits_loss"):
        assert f"fused_balanced_loss/kernels/{kernel}.py" in names
    assert "fused_balanced_loss/py.typed" in names


def test_imports_and_computes_from_the_wheel_alone(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = (
        "import torch, fused_balanced_loss as f; "
        f"assert f.__file__.startswith({str(tmp_path)!r}), f.__file__; "
        "s = f.LabelStatistics.from_counts([3, 50], 100); "
        "z = torch.zeros(2, 2, requires_grad=True); y = torch.eye(2); "
        "d = f.DistributionBalancedLoss(s)(z, y); d.backward(); "
        "assert z.grad.abs().sum() > 0; "
        "t = f.balanced_loss(z, y, s, f.LossSpec.preset('DB'), impl='triton') if torch.cuda.is_available() or "
        "__import__('os').environ.get('TRITON_INTERPRET') == '1' else d; "
        "assert abs(t - d) < 1e-6"
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
    subprocess.run([sys.executable, "-P" if sys.version_info >= (3, 11) else "-s", "-c", code], cwd=tmp_path,
                   env=environment, check=True)  # fmt: skip


def test_transformers_imports_bert_with_the_repository_as_working_directory():
    """A top-level package called kernels would shadow the one that transformers imports."""
    pytest.importorskip("transformers")
    pytest.importorskip("kernels", reason="Hugging Face's kernels is not installed")
    subprocess.run(
        [sys.executable, "-c", "from transformers import BertForSequenceClassification"], cwd=ROOT, check=True
    )
    assert not (ROOT / "kernels" / "__init__.py").exists()
