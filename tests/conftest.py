import os
import sys
from pathlib import Path

import pytest
import torch

# Before triton is imported anywhere: without a GPU the kernels are run by the interpreter.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
sys.path.insert(0, str(Path(__file__).parent))

from fused_balanced_loss import kept_calls

SHARED = Path(__file__).resolve().parents[2] / "shared"


def pytest_collection_modifyitems(items):
    """Marks as slow what Triton's interpreter runs, and what torch.compile compiles."""
    slow = {"compile"} | ({"triton"} if os.environ.get("TRITON_INTERPRET") == "1" else set())
    for item in items:
        values = item.callspec.params.values() if hasattr(item, "callspec") else ()
        if any(isinstance(value, str) and value in slow for value in values):
            item.add_marker(pytest.mark.slow)


@pytest.fixture
def device():
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture
def impl(request, device):
    """What to pass as ``impl``."""
    if request.param == "cpp" and device.type != "cpu":
        pytest.skip("the C++ kernel is for the CPU")
    return request.param


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch):
    """Fresh buffers hold NaN, so that an element nobody wrote shows."""
    new_empty, empty_like = torch.Tensor.new_empty, torch.empty_like

    def poison(tensor):
        if tensor.is_floating_point() and tensor.numel() and tensor.device.type != "meta":
            tensor.fill_(float("nan"))
        return tensor

    monkeypatch.setattr(torch.Tensor, "new_empty", lambda *a, **k: poison(new_empty(*a, **k)))
    monkeypatch.setattr(torch, "empty_like", lambda *a, **k: poison(empty_like(*a, **k)))


@pytest.fixture(autouse=True)
def nothing_kept():
    """Each test decides anew what is kept of a call, because some change what the decision depends on."""
    kept_calls.forget()


@pytest.fixture
def golden():
    path = SHARED / "golden" / "authors_golden.npz"
    if not path.exists():
        pytest.skip("the golden values of the published experiments are not beside the checkout")
    import numpy as np

    return np.load(path)
