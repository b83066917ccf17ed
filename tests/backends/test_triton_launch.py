"""Launches that go around Triton's look-up get the same arguments, and give way where somebody watches.

The driver is a stub: kernels are compiled for sm_90, launched by Triton's launcher, and not run.
"""

import re
from pathlib import Path

import pytest
from compiled_figures import compiled_figures

pytest.importorskip("triton")

pytestmark = pytest.mark.slow

BEGIN = """
import json, sys
sys.path.insert(0, "benchmarks")
import torch
import torch._dynamo  # before there seems to be a GPU
from stub_driver import Stub, take_cpu_for_gpu
stub = Stub()
take_cpu_for_gpu()
from triton.runtime.jit import JITFunction
looked_up, run = [0], JITFunction.run
def counted(self, *args, **kwargs):
    looked_up[0] += 1
    return run(self, *args, **kwargs)
JITFunction.run = counted
"""

ARGUMENTS = """
from fused_balanced_loss.backends.triton_launch import launch_of
from fused_balanced_loss.kernels.scale_gradient import scale_kernel
constants = ("ALIGNED", 8), ("BLOCK", 1024)
launch = launch_of(scale_kernel, torch.device("cpu"), (torch.bfloat16, torch.float32), constants)
stub.watch(5)
gradient, upstream = torch.zeros(4, 4096, dtype=torch.bfloat16), torch.ones(())
found = []
for tensor in (gradient, gradient, gradient[:, 1:], gradient[:, 1:], gradient):
    before = looked_up[0]
    launch((7, 1, 1), (tensor, upstream), (4, 4095, 4096))
    expected = [tensor.data_ptr(), upstream.data_ptr(), 4, 4095, 4096]
    found.append([looked_up[0] - before, stub.parameters([8, 8, 4, 4, 8]) == expected, stub.programs])
print(json.dumps({"found": found, "launches": stub.launches}))
"""

WATCHED = """
import triton
from fused_balanced_loss import LossSpec, balanced_loss
logits, targets = torch.zeros(4, 300), torch.zeros(4, 300, dtype=torch.uint8)
def looked_up_by(call=lambda: balanced_loss(logits, targets, LossSpec(), impl="triton")):
    before = looked_up[0]
    call()
    return looked_up[0] - before
seen = []
hook = lambda metadata: seen.append(metadata.get()["name"])
found = [looked_up_by(), looked_up_by()]
triton.knobs.runtime.launch_enter_hook.add(hook)
found.append(looked_up_by())
triton.knobs.runtime.launch_enter_hook.remove(hook)
triton.knobs.runtime.debug = True
found.append(looked_up_by())
triton.knobs.runtime.debug = False
found.append(looked_up_by())
print(json.dumps({"found": found, "seen": seen}))
"""

OTHER_ARGUMENTS = """
import fused_balanced_loss.backends.triton_plan as triton_plan
from fused_balanced_loss import LabelStatistics, LossSpec, SparseTargets, balanced_loss, linear_balanced_loss
triton_plan.WAVES = 0
statistics = LabelStatistics.from_counts(torch.full((1024,), 50), 1000)
targets = SparseTargets.from_lists([[k, 700 + k] for k in range(8)], 1024)
features, weight = torch.zeros(8, 16), torch.zeros(1024, 16)
logits = torch.zeros(8, 512)
def chunks():
    options = {"impl": "triton", "chunk_size": 512}
    spec = LossSpec.preset("DB", corpus="reuters")
    linear_balanced_loss(features, weight, None, targets, spec, statistics, **options)
def whole():
    balanced_loss(logits, SparseTargets.from_lists([[k] for k in range(8)], 512), LossSpec(), impl="triton")
for call in ORDER:
    call()
print(json.dumps({"launches": stub.launches}))
"""

BATCHES = """
from fused_balanced_loss import LabelStatistics, LossSpec, SparseTargets, balanced_loss
statistics = LabelStatistics.from_counts(torch.full((18211,), 50), 1000)
spec = LossSpec.preset("DB", corpus="reuters")
counts = {}
for rows in (32, 96, *range(1, 60, 3), *range(60, 200, 7), 16, 48, 128):
    targets = SparseTargets.from_lists([[k, 700 + k] for k in range(rows)], 18211)
    logits = torch.zeros(rows, 18211, dtype=torch.bfloat16, requires_grad=True)
    before, launches = looked_up[0], stub.launches
    balanced_loss(logits, targets, spec, statistics, impl="triton").backward()
    counts[rows] = [looked_up[0] - before, stub.launches - launches]
print(json.dumps(counts))
"""


def test_arguments_are_those_of_an_ordinary_call():
    result = compiled_figures(script=BEGIN + ARGUMENTS)
    # Other alignment, another kernel: each is looked up once.
    assert result["found"] == [[1, True, 7], [0, True, 7], [1, True, 7], [0, True, 7], [0, True, 7]]
    assert result["launches"] == 5


def test_launch_hooks_and_debugging_take_the_ordinary_call():
    result = compiled_figures(script=BEGIN + WATCHED)
    assert result["found"] == [1, 0, 1, 1, 0]
    assert result["seen"] == ["logits_loss_kernel"]


@pytest.mark.parametrize("order", ["chunks, chunks, whole", "whole, whole, chunks"])
def test_calls_with_another_number_of_tensors_are_not_mixed_up(order):
    """A chunk has 1/n and row sums, a focal loss has neither: what is launched before them takes the same tensors."""
    result = compiled_figures(script=BEGIN + OTHER_ARGUMENTS.replace("ORDER", f"({order})"))
    assert result["launches"] >= 6


def test_a_batch_of_another_size_compiles_nothing():
    counts = compiled_figures(script=BEGIN + BATCHES)
    # One launch for the loss and one for the upstream gradient; large batches make the rows' terms before.
    assert [counts[rows] for rows in ("32", "96")] == [[2, 2], [2, 3]]
    for rows, (looked_up, launches) in counts.items():
        assert rows in ("32", "96") or looked_up == 0, rows
        assert launches == (2 if int(rows) <= 58 else 3), rows


def test_no_integer_of_a_kernel_is_specialised():
    """A Launch looks at the alignment of pointers alone, so the kernel that it keeps must suit all integers."""
    from fused_balanced_loss.kernels import dense_sums, labels, logits_loss, scale_gradient

    names = {
        dense_sums: ("dense_sums_kernel", "narrow_sums_kernel"),
        labels: ("row_terms_kernel",),
        logits_loss: ("logits_loss_kernel",),
        scale_gradient: ("scale_kernel",),
    }
    for module, kernels in names.items():
        for name in kernels:
            source = Path(module.__file__).read_text()
            decorator = source[: source.index(f"def {name}(")].rsplit("@triton.jit", 1)[1]
            signature = source.split(f"def {name}(", 1)[1].split("):", 1)[0]
            found = re.findall(r"^    (\w+)(?:: tl\.int\d+)?,", signature, re.MULTILINE)
            integers = [one for one in found if not one.endswith("_ptr") and not one.startswith("scale")]
            assert integers and all(f'"{one}"' in decorator for one in integers), (name, integers)
