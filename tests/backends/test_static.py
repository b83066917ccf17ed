"""What the compilers make of the kernels for GPUs that need not be here: widths, spills, instructions an element."""

import functools
import json

import pytest
from compiled_figures import ROOT, compiled_figures

pytest.importorskip("triton")

pytestmark = pytest.mark.slow

SCRIPT = """
import json, sys, tempfile
sys.path.insert(0, "benchmarks")
import static_figures as static
name, form, dtype, loss, csr, *more = sys.argv[1:]
target = static.TARGETS[name]
compiled, elements = static.compile_kernel(
    target, form, dtype=dtype, loss=loss, csr=csr == "csr", **json.loads(more[0] if more else "{}")
)
with tempfile.TemporaryDirectory() as tmp:
    figures = (vars(static.nvidia_figures(compiled, elements, tmp)) if target.backend == "cuda"
               else static.amd_figures(compiled))
print(json.dumps(figures))
"""


figures = functools.partial(compiled_figures, script=SCRIPT)


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize("form", ["forward", "backward", "one-pass"])
@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100"])
def test_nvidia(target, form, dtype):
    """C = 18,211: the main loop moves all logits 16 bytes at once, keeps to its registers, and stays short."""
    one = figures(target, form, dtype, "DB", "csr")
    wide = {"bf16": 1, "fp32": 2}[dtype]
    # Where the tile's labels begin and end and the row's term are 4 bytes; no logit is loaded alone.
    assert one["loads"] == {"4": 3, "16": wide}
    assert one["stores"] == ({} if form == "forward" else {"16": wide})
    assert one["spilled_bytes"] == 0
    # The compiler makes one of the exponentials of sm_90's float32 forward anew to save a register.
    assert one["special_functions"] <= {"bf16": 4, "fp32": 4.125}[dtype]
    assert one["instructions"] <= 29
    assert one["with_labels"] <= 42
    assert one["registers"] <= 80
    if dtype == "bf16" and target != "sm_100":
        # 32 programs of a warp fill a processor.
        assert one["registers"] <= 64


def test_kernel_that_finds_its_labels():
    """For few rows the kernel makes the rows' terms itself: no spills, and as many programs at once."""
    one = figures("sm_90", "one-pass", "bf16", "DB", "csr", '{"find_labels": true}')
    assert one["loads"]["16"] == one["stores"]["16"] == 1
    assert one["spilled_bytes"] == 0
    assert one["registers"] <= 64


@pytest.mark.parametrize(
    ("form", "options", "without", "with_labels", "registers"),
    [
        ("csr", {"pos_weight": True}, 28.2, 42, 64),
        ("csr", {"poly_epsilon": 1.0}, 31.3, 43, 64),
        ("csr", {"label_smoothing": 0.1}, 52, 61, 72),
        ("dense", {"label_smoothing": 0.1, "pos_weight": True}, 55, 62, 72),
        ("dense", {"targets": "fp32"}, 32.5, 79, 80),
        ("dense", {"targets": "bf16"}, 30.5, 68, 72),
        ("dense", {"targets": "fp32", "pos_weight": True}, 32, 70, 72),
    ],
)
def test_weights_soft_targets_and_smoothing(form, options, without, with_labels, registers):
    """No spills; and where only labels have both parts of the loss, or a weight, tiles without labels stay short."""
    one = figures("sm_90", "one-pass", "bf16", "DB", form, json.dumps(options))
    assert one["spilled_bytes"] == 0
    assert one["stores"]["16"] == 1
    assert one["instructions"] <= without
    assert one["with_labels"] <= with_labels
    assert one["registers"] <= registers


@pytest.mark.parametrize("loss", ["BCE", "CB-NTR", "DB-0FL"])
def test_other_losses_compile_well(loss):
    one = figures("sm_90", "one-pass", "bf16", loss, "dense")
    assert one["loads"]["16"] == one["stores"]["16"] == 1
    assert one["spilled_bytes"] == 0
    assert one["instructions"] <= 37
    assert one["with_labels"] <= 46


@pytest.mark.parametrize("form", ["forward", "backward", "one-pass"])
def test_amd(form):
    one = figures("gfx942", form, "bf16", "DB", "csr")
    assert one["wide_loads"] >= 1
    assert form == "forward" or one["wide_stores"] >= 1
    assert one["vgpr_spill_count"] == one["sgpr_spill_count"] == 0


def test_float64_compiles():
    assert figures("gfx942", "one-pass", "fp64", "DB", "csr")["vgpr_spill_count"] == 0


def test_committed_table_is_within_the_bounds():
    """benchmarks/results/static.md, which `make static` writes anew: every target, the bounds of the tests above."""
    lines = (ROOT / "benchmarks" / "results" / "static.md").read_text().splitlines()
    head, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| "))
    table = [dict(zip(head, row, strict=True)) for row in rows]
    assert {row["target"] for row in table} == {"sm_80", "sm_90", "sm_100", "gfx942"}
    for row in table:
        assert row["spilled bytes"] == "0"
        assert "16 B" in row["loads"] and (row["form"] == "forward" or "16 B" in row["stores"])
        if row["target"] != "gfx942":
            main = row["form"] == "one-pass" and row["targets"] == "label ids"
            assert float(row["mean"]) <= (31 if main else 32 if row["targets"] == "uint8" else 33)
            assert float(row["special functions"]) <= {"bf16": 4, "fp32": 4.1}[row["logits"]]


def test_floors(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    from hardware import GPUS, floors

    least = floors(GPUS["H100"], num_bytes=4, instructions=31.5, special_functions=4)
    # 3.35 TB/s; 128 lanes and 16 special functions a clock on 132 processors at 1.98 GHz.
    assert least["memory"] == pytest.approx(1.194e-12, rel=1e-3)
    assert least["instructions"] == pytest.approx(0.94e-12, rel=1e-2)
    assert least["special functions"] == pytest.approx(0.955e-12, rel=1e-2)
