"""What the compilers make of the in-place step's kernel for GPUs that need not be here."""

import functools

import pytest

pytest.importorskip("triton")

from compiled_figures import compiled_figures

pytestmark = pytest.mark.slow

SCRIPT = """
import json, sys, tempfile
sys.path.insert(0, "benchmarks")
import static_figures as static
import triton
from triton.compiler import ASTSource
from fused_balanced_loss.optim import triton as backend
from fused_balanced_loss.optim.rule import CONSTANTS
from fused_balanced_loss.kernels.classifier_update import classifier_update_kernel as kernel

name, kind, weight, state, clip, num_features = sys.argv[1:]
target, num_features, adamw = static.TARGETS[name], int(num_features), kind == "adamw"
rows, columns = backend.layout(num_features)
moment = "fp32" if state == "float32" else "bf16"
pointers = {"weight_gradient_ptr": "fp32", "bias_gradient_ptr": "fp32", "weight_ptr": weight,
            "first_moment_ptr": moment, "second_moment_ptr": "fp32" if state == "row" else moment, "bias_ptr": weight,
            "bias_first_moment_ptr": "fp32", "bias_second_moment_ptr": "fp32", "numbers_ptr": "fp64",
            "finite_ptr": "i1", "seed_ptr": "i64", "step_number_ptr": "i64"}
values = 0.9, 1 - 0.9, 0.999, 1 - 0.999, 1e-8, 0.1
constants = {name.upper(): value for name, value in zip(CONSTANTS, values, strict=True)}
constants |= {"ADAMW": adamw, "HAS_FIRST_MOMENT": True, "SECOND_MOMENT_A_ROW": state == "row", "HAS_BIAS": True,
              "CLIP": clip == "clip", "STOCHASTIC": True, "ROWS": rows, "COLUMNS": columns}
if not adamw:
    constants |= {"second_moment_ptr": None, "bias_second_moment_ptr": None}
names = kernel.arg_names
signature = {n: "constexpr" if n in constants else f"*{pointers[n]}" if n in pointers
             else "fp32" if n == "max_row_norm" else "i32" for n in names}
even = {"num_features", "weight_stride"} if num_features % 16 == 0 else set()
attributes = {(k,): [["tt.divisibility", 16]] for k, n in enumerate(names) if signature[n].startswith("*") or n in even}
source = ASTSource(fn=kernel, signature=signature, attrs=attributes,
                   constexprs={(names.index(n),): value for n, value in constants.items()})
compiled = triton.compile(source, target=target, options={"num_warps": backend.NUM_WARPS, "enable_fp_fusion": True})
with tempfile.TemporaryDirectory() as tmp:
    try:
        figures = (static.amd_figures(compiled) if target.backend == "hip" else
                   vars(static.nvidia_figures(compiled, 1024 // (32 * backend.NUM_WARPS), tmp)))
    except ValueError:
        figures = "no wide loads"
print(json.dumps(figures))
"""


figures = functools.partial(compiled_figures, script=SCRIPT)


@pytest.mark.parametrize(("weight", "state"), [("fp32", "float32"), ("bf16", "bfloat16")])
def test_adamw(weight, state):
    """All memory is moved 16 bytes at once, or bfloat16's share of that; registers suffice."""
    one = figures("sm_90", "adamw", weight, state, "", "768")
    assert set(one["loads"]) == set(one["stores"]) == {"16"}
    assert one["spilled_bytes"] == 0
    # A step moves 28 bytes an element in float32 and 16 in bfloat16: as many instructions cost no more than that.
    assert one["instructions"] <= {"fp32": 60, "bf16": 95}[weight]


@pytest.mark.parametrize(
    "arguments",
    [
        ("sm_90", "adamw", "bf16", "row", "clip", "256"),
        ("sm_90", "sgd", "bf16", "float32", "clip", "64"),
        ("sm_80", "sgd", "fp32", "bfloat16", "", "1024"),
        ("gfx942", "adamw", "bf16", "row", "", "768"),
    ],
)
def test_other_forms_compile_well(arguments):
    one = figures(*arguments)
    assert one.get("spilled_bytes", one.get("vgpr_spill_count")) == 0


def test_odd_number_of_features_compiles():
    assert figures("sm_90", "adamw", "fp32", "row", "clip", "251")
