"""What the compilers make of the kernels: instructions, special functions, access widths, registers. It needs no GPU.

    python benchmarks/static_figures.py [--output benchmarks/results/static.md]

compiles the forms of the logits kernel at C = 18,211, prints each, and writes the table. Counted are the instructions
of one turn of the main programs' loop over rows, divided by the elements that a turn computes: once on the way of a
tile without labels, and once on the longest way that a tile with labels can take, without the loop over its labels.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

sys.path.insert(0, os.path.dirname(__file__))
from hardware import GPUS, floors

from fused_balanced_loss.backends import triton_grid, triton_plan, triton_terms
from fused_balanced_loss.kernels.logits_loss import logits_loss_kernel
from fused_balanced_loss.spec import LossSpec

WIDTH = 18_211
# Labels of a row, for which the mean over tiles is taken.
NUM_LABELS = 12
TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
# By name: WANT_VALUE, WANT_GRADIENT and UPSTREAM of the kernel.
FORMS = {"one-pass": ("sum", True, ""), "forward": ("sum", False, ""), "backward": ("", True, "scalar")}
_STRIDES = ("logits_stride", "targets_stride", "mask_stride", "gradient_stride")
_DTYPES = {"bf16": 2, "fp16": 2, "fp32": 4, "fp64": 8}


@dataclass(frozen=True)
class Figures:
    """Figures of one compiled kernel, for a tile without labels unless said otherwise.

    instructions, special_functions: per element. with_labels: instructions per element of a tile with labels.
    elements: of a thread. loads, stores: how many of a thread's accesses move so many bytes.
    """

    instructions: float
    with_labels: float
    special_functions: float
    elements: int
    loads: dict[int, int]
    stores: dict[int, int]
    registers: int
    spilled_bytes: int


def compile_kernel(
    target: GPUTarget,
    form: str,
    *,
    loss: str = "DB",
    dtype: str = "bf16",
    csr: bool = True,
    width: int = WIDTH,
    find_labels: bool = False,
    targets: str = "u8",
    pos_weight: bool = False,
    **settings: float,
) -> tuple[triton.compiler.CompiledKernel, int]:
    """The compiled kernel, and the number of elements that a thread has in a tile.

    targets: the dtype of dense targets, unless ``csr``. settings: changes to the spec of ``loss``.
    """
    cut = triton_grid.layout(width, width, _DTYPES[dtype], target.warp_size)
    spec = LossSpec.preset(loss, corpus="pubmed").replace(**settings)
    want_value, want_gradient, upstream = FORMS[form]
    compute = "fp64" if dtype == "fp64" else "fp32"
    rebalanced, class_balanced = spec.weighting == "rebalanced", spec.weighting == "class_balanced"
    pointers = {
        "logits_ptr": dtype,
        "targets_ptr": None if csr else targets,
        "crow_ptr": "i64" if csr else None,
        "col_ptr": "i64" if csr else None,
        "tile_offsets_ptr": "i32",
        "bias_ptr": compute if spec.kappa else None,
        "inverse_frequency_ptr": compute if rebalanced else None,
        "label_weight_ptr": compute if class_balanced else None,
        "positive_weight_ptr": compute if pos_weight else None,
        "weight_slope_ptr": compute,
        "row_sum_ptr": None,
        "row_weight_ptr": None,
        "mask_ptr": None,
        "upstream_ptr": compute if upstream else None,
        "value_ptr": compute,
        "gradient_ptr": dtype if want_gradient else None,
        "partial_ptr": compute if want_value else None,
        "counters_ptr": "i32",
    }
    constants = {name: None for name, dtype_ in pointers.items() if dtype_ is None} | {
        "SPEC": triton_plan.kernel_spec(spec),
        "SLOPE_FACTOR": triton_terms.slope_factor(spec) if rebalanced else 0.0,
        "WANT_VALUE": want_value,
        "WANT_GRADIENT": want_gradient,
        "UPSTREAM": upstream,
        "CSR": csr,
        "SLOPE": "here" if find_labels else "made",
        "FIND_LABELS": find_labels,
        "HAS_BIAS": bool(spec.kappa),
        "REBALANCED": rebalanced,
        "HAS_LABEL_WEIGHT": class_balanced,
        "HAS_POSITIVE_WEIGHT": pos_weight,
        "HAS_ROW_WEIGHT": False,
        "HAS_MASK": False,
        "MIXED": (not csr and targets.startswith(("fp", "bf"))) or spec.label_smoothing > 0,
        "ALIGNED_TARGETS": not csr,
        "COPIES": cut.period > 1 and (rebalanced or class_balanced or bool(spec.kappa) or pos_weight),
        "PTX": target.backend == "cuda" and dtype != "fp64",
        "PERIOD": cut.period,
        "VECTOR": cut.vector,
        "GROUPS": cut.groups,
        "FRINGE": triton_grid.FRINGE,
        "TEAM": triton_plan.TEAM,
    }
    names = logits_loss_kernel.arg_names
    signature = {}
    for name in names:
        if name in constants:
            signature[name] = "constexpr"
        elif name in pointers:
            signature[name] = f"*{pointers[name]}"
        else:
            signature[name] = "fp32" if name.startswith("scale") else "i64" if name in _STRIDES else "i32"
    source = ASTSource(
        fn=logits_loss_kernel,
        signature=signature,
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(k,): [["tt.divisibility", 16]] for k, name in enumerate(names) if signature[name].startswith("*")},
    )
    compiled = triton.compile(source, target=target, options={"num_warps": 1, "enable_fp_fusion": True})
    return compiled, cut.vector * cut.groups // target.warp_size


def nvidia_figures(compiled: triton.compiler.CompiledKernel, elements: int, tmp: str) -> Figures:
    """Figures of a kernel for an NVIDIA target, read from its machine code. tmp: a folder for temporary files."""
    path = os.path.join(tmp, "kernel.cubin")
    with open(path, "wb") as file:
        file.write(compiled.asm["cubin"])
    listing = _cuobjdump("-sass", path)
    usage = _cuobjdump("-res-usage", path)
    code = [(int(at, 16), text) for at, text in re.findall(r"/\*([0-9a-f]{4,})\*/\s+(.*?);", listing)]
    without, with_labels = _ways(*_main_loop(code))
    operations = [re.sub(r"^@!?U?P\w+ ", "", text) for text in without]
    spilled = re.search(r"LOCAL:(\d+)", usage)
    stack = re.search(r"STACK:(\d+)", usage)
    registers = re.search(r"REG:(\d+)", usage)
    assert spilled is not None and stack is not None and registers is not None
    return Figures(
        instructions=len(operations) / elements,
        with_labels=len(with_labels) / elements,
        special_functions=sum(text.startswith("MUFU") for text in operations) / elements,
        elements=elements,
        loads=_widths(operations, "LDG"),
        stores=_widths(operations, "STG"),
        registers=int(registers[1]),
        spilled_bytes=int(spilled[1]) + int(stack[1]),
    )


def _cuobjdump(option: str, path: str) -> str:
    tool = os.path.join(os.path.dirname(triton.__file__), "backends", "nvidia", "bin", "cuobjdump")
    return subprocess.run([tool, option, path], capture_output=True, text=True, check=True).stdout


Code = list[tuple[int, str]]  # (address, instruction)


def _jump(text: str) -> int | None:
    match = re.search(r"\bBRA(?:\.\w+)* (?:\S+, )?0x([0-9a-f]+)", text)
    return int(match[1], 16) if match else None


def _main_loop(code: Code) -> tuple[Code, list[tuple[int, int]]]:
    """The outermost loop that has a 16-byte load, and the first and last address of each loop inside it."""
    jumps = [(_jump(text), at) for at, text in code]
    loops = [(to, at) for to, at in jumps if to is not None and to < at]
    wide = [at for at, text in code if "LDG.E.128" in text]
    main = [loop for loop in loops if any(loop[0] <= at <= loop[1] for at in wide)]
    if not main:
        raise ValueError("code: expected a loop with 16-byte loads, found none")
    start, end = min(main)
    inner = [loop for loop in loops if start <= loop[0] and loop[1] < end]
    return [(at, text) for at, text in code if start <= at <= end], inner


def _ways(loop: Code, inner: list[tuple[int, int]]) -> tuple[list[str], list[str]]:
    """The instructions on the shortest and on the longest way through a loop, without those of its inner loops.

    Only ways that reach the loop's wide store count, if it has one.
    """
    stores = any("STG.E.128" in text for _, text in loop)
    following = dict(zip([at for at, _ in loop], [at for at, _ in loop[1:]], strict=False))
    # For an address, and whether the store lies behind: the shortest and the longest way there from the loop's begin.
    ways: dict[tuple[int, bool], list[list[str]]] = {(loop[0][0], not stores): [[], []]}
    for at, text in loop:
        counts = not text.startswith("NOP") and not any(first <= at <= last for first, last in inner)
        for stored in (False, True):
            if (at, stored) not in ways:
                continue
            here = [way + [text] * counts for way in ways[at, stored]]
            ways[at, stored] = here
            always = re.match(r"BRA(?:\.\w+)* 0x", text)
            for to in (_jump(text), None if always else following.get(at)):
                if to is not None and to > at:
                    reached = ways.setdefault((to, stored or "STG.E.128" in text), here)
                    shortest, longest = zip(reached, here, strict=True)
                    ways[to, stored or "STG.E.128" in text] = [min(shortest, key=len), max(longest, key=len)]
    shortest, longest = ways[loop[-1][0], True]
    return shortest, longest


def _widths(operations: list[str], name: str) -> dict[int, int]:
    """The number of accesses of each width in bytes."""
    widths: dict[int, int] = {}
    for text in operations:
        match = re.match(rf"{name}\.E(?:\.(U8|U16|64|128))?\b", text)
        if match:
            width = {"U8": 1, "U16": 2, None: 4, "64": 8, "128": 16}[match[1]]
            widths[width] = widths.get(width, 0) + 1
    return widths


def amd_figures(compiled: triton.compiler.CompiledKernel) -> dict[str, int]:
    """Registers, spills and 16-byte accesses of a kernel for an AMD target, read from its assembly."""
    text = compiled.asm["amdgcn"]
    figures = {}
    for key in ("vgpr_count", "vgpr_spill_count", "sgpr_spill_count"):
        match = re.search(rf"\.{key}:\s+(\d+)", text)
        figures[key] = int(match[1]) if match else -1
    figures["wide_loads"] = len(re.findall(r"(?:global|buffer)_load_(?:dwordx4|b128)", text))
    figures["wide_stores"] = len(re.findall(r"(?:global|buffer)_store_(?:dwordx4|b128)", text))
    return figures


CASES = [("DB", form, dtype, True) for dtype in ("bf16", "fp32") for form in FORMS]
CASES += [("DB", "one-pass", "bf16", False), ("CB-NTR", "one-pass", "bf16", True), ("BCE", "one-pass", "bf16", True)]
HEAD = ["target", "loss", "form", "logits", "targets", "instructions", "with labels", "mean", "special functions"]
HEAD += ["loads", "stores", "registers", "spilled bytes", "floor at 1,024 x 18,211"]


def row(name: str, loss: str, form: str, dtype: str, csr: bool, tmp: str) -> list[str]:
    """The cells of one kernel's row, in the order of HEAD. tmp: a folder for temporary files."""
    target = TARGETS[name]
    compiled, elements = compile_kernel(target, form, loss=loss, dtype=dtype, csr=csr)
    cells = [name, loss, form, dtype, "label ids" if csr else "uint8"]
    if target.backend != "cuda":
        amd = amd_figures(compiled)
        # Scalar registers are spilled to lanes of vector registers, which takes no memory.
        spilled = amd["vgpr_spill_count"]
        wide = [f"{amd[what]} of 16 B in all" for what in ("wide_loads", "wide_stores")]
        return [*cells, "", "", "", "", *wide, str(amd["vgpr_count"]), str(4 * spilled), ""]
    one = nvidia_figures(compiled, elements, tmp)
    mean = mean_instructions(one, elements * target.warp_size)
    num_bytes = _DTYPES[dtype] * (1 if form == "forward" else 2) + (0 if csr else 1)
    return [
        *cells,
        f"{one.instructions:.1f}",
        f"{one.with_labels:.1f}",
        f"{mean:.1f}",
        f"{one.special_functions:.1f}",
        _an_element(one.loads, elements),
        _an_element(one.stores, elements),
        str(one.registers),
        str(one.spilled_bytes),
        _floor(name, num_bytes, mean, one.special_functions),
    ]


def mean_instructions(one: Figures, tile: int) -> float:
    """The mean of instructions an element over all tiles, if NUM_LABELS labels of a row lie anywhere.

    tile: elements of a tile.
    """
    without = (1 - tile / WIDTH) ** NUM_LABELS
    return without * one.instructions + (1 - without) * one.with_labels


def _an_element(widths: dict[int, int], elements: int) -> str:
    return ", ".join(f"{count / elements:.3g} of {width} B" for width, count in sorted(widths.items()))


def _floor(target: str, num_bytes: int, instructions: float, special_functions: float) -> str:
    shown = []
    for name, gpu in GPUS.items():
        if gpu.target == target:
            least = floors(gpu, num_bytes, instructions, special_functions)
            bound = max(least, key=lambda what: least[what])
            shown.append(f"{name} {1e6 * 1024 * WIDTH * least[bound]:.1f} us ({bound})")
    return ", ".join(shown)


def main() -> None:
    # The tests import this module on their own machines for the figures alone.
    import pandas as pd
    from tables import markdown

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = Path(__file__).parent / "results" / "static.md"
    parser.add_argument("--output", type=Path, default=default, help=f"default {default}")
    output = parser.parse_args().output
    lines = [
        "# What the compilers make of the kernels",
        "",
        f"`make static`, triton {triton.__version__}, torch {torch.__version__}, C = {WIDTH:,}. "
        "All figures are of the main loop. Instructions, special functions, loads and stores are per element, in a "
        "tile without labels; the column `with labels` has the instructions of the longest way through a tile with "
        f"labels, without the loop over its labels; the mean is over all tiles at {NUM_LABELS} labels a row. The floor "
        "is the largest of the times for bytes, instructions (the mean) and special functions by the public figures "
        "in `benchmarks/hardware.py`.",
        "",
    ]
    rows = []
    with tempfile.TemporaryDirectory() as tmp:
        for name in TARGETS:
            for case in CASES:
                rows.append(row(name, *case, tmp))
                print(
                    ", ".join(f"{head} {cell}" for head, cell in zip(HEAD, rows[-1], strict=True) if cell), flush=True
                )
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = output.with_name(f".{output.name}.{os.getpid()}")
    temporary.write_text("\n".join(lines) + "\n" + markdown(pd.DataFrame(rows, columns=HEAD)) + "\n")
    os.replace(temporary, output)


if __name__ == "__main__":
    main()
