"""What the model expects of a GPU, before anything was measured on one: writes ``predictions.md``.

    python benchmarks/predictions.py            # writes benchmarks/predictions.md
    python benchmarks/predictions.py --print    # prints it

``gpu_report.py`` prints these numbers beside what it measures. The page has no figure of the machine that made it.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from classifier_model import (
    CHUNK_BYTES,
    SETUP_OF_LINEAR,
    UPDATE_CHUNK_BYTES,
    WAYS,
    Classifier,
    classifier_kernels,
    floor,
    linear_kernels,
    setup_operators,
    update_kernels,
)
from hardware import GPUS, Gpu
from quantities import seconds_text
from time_model import ASSUMED, INSTRUCTIONS, Kernel, host_seconds, logits_kernels, num_launches, total

PAGE = Path(__file__).parent / "predictions.md"
NAMES = ("H100", "H200")
# What ``gpu_measurements.py`` measures: rows, labels, and for the classifier the sweep of sizes.
ONE_PASS = ((1024, 18_211), (4096, 18_211))
SMALL_BATCH = (32, 18_211)
CLASSIFIER = ((32, 18_211), (128, 131_072), (128, 670_091))
UPDATE = ((64, 3_000_000), (128, 1_000_000))
_TARGET_BYTES = {"csr": 0, "uint8": 1, "bool": 1, "float": 4}
_ITEM_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}


class Prediction(NamedTuple):
    """One figure of the report. host: seconds of the host for an eager call, where they count."""

    what: str
    seconds: float
    reason: str
    host: float | None = None


def longest(kernel: Kernel, gpu: Gpu) -> str:
    """What a kernel waits for."""
    parts = kernel.parts(gpu)
    parts.pop("launches")
    return max(parts, key=parts.__getitem__)


def reason_of(kernels: list[Kernel], gpu: Gpu) -> str:
    """Launches, bytes, operations, instructions and waves, and what takes longest, in words."""
    memory = sum(kernel.memory_bytes for kernel in kernels)
    flops = sum(kernel.flops for kernel in kernels)
    elements = sum(kernel.elements for kernel in kernels)
    launches = num_launches(kernels)
    words = [
        f"{launches} launches, {seconds_text(launches * ASSUMED.launch)}",
        f"{memory / 1e6:,.{0 if memory > 1e8 else 1}f} MB",
    ]
    if flops:
        words.append(f"{flops / 1e12:.3g} TFLOP")
    if elements:
        loss = next(kernel for kernel in kernels if kernel.elements)
        words.append(f"{loss.instructions:.3g} instructions an element")
        if loss.waves < 1:
            words.append(f"{loss.waves:.2f} of a wave")
    by_name: dict[str, float] = {}
    for kernel in kernels:
        by_name[kernel.name] = by_name.get(kernel.name, 0.0) + kernel.seconds(gpu)
    name = max(by_name, key=by_name.__getitem__)
    bound = longest(next(kernel for kernel in kernels if kernel.name == name), gpu)
    words.append(f"most in: {name} ({seconds_text(by_name[name])}, bound by {bound})")
    return "; ".join(words)


def predict_logits(gpu: Gpu, rows: int, labels: int, dtype: str = "bfloat16", targets: str = "csr") -> Prediction:
    kernels = logits_kernels(rows, labels, _ITEM_BYTES[dtype], _TARGET_BYTES[targets])
    what = f"DB, forward and backward, {rows:,} x {labels:,}, {dtype}, {targets} targets"
    return Prediction(what, total(kernels, gpu), reason_of(kernels, gpu), host_seconds(kernels))


def predict_classifier(gpu: Gpu, rows: int, labels: int, features: int = 768) -> tuple[Prediction, Prediction]:
    """The fused classifier, and F.linear with our loss; bfloat16, label ids."""
    one = Classifier(rows, labels, features)
    ours, linear = classifier_kernels(one, gpu), linear_kernels(one, gpu)
    size = f"{rows:,} x {labels:,} x {features}"
    number = one.chunks()[1]
    reason = f"{number} chunk{'s' * (number > 1)}; {reason_of(ours, gpu)}"
    return (
        Prediction(f"ours, {size}", total(ours, gpu), reason, host_seconds(ours, setup_operators(one))),
        Prediction(
            f"F.linear + our loss, {size}",
            total(linear, gpu),
            reason_of(linear, gpu),
            host_seconds(linear, SETUP_OF_LINEAR),
        ),
    )


def predict_update(gpu: Gpu, rows: int, labels: int, features: int = 768) -> tuple[Prediction, float]:
    """A step of SGD in the backward, bfloat16, and the bytes held at its peak."""
    one = Classifier(rows, labels, features)
    kernels, size = update_kernels(one, gpu), one.chunks(UPDATE_CHUNK_BYTES)[0]
    weights = 2 * labels * (features + 1)
    # Counts (int64 twice) and constants (float32 twice) of the labels; a chunk's logits and its gradient in float32.
    peak = weights + 24 * labels + 2 * rows * size + 4 * size * features
    what = f"SGD in the backward, {rows:,} x {labels:,} x {features}"
    return Prediction(what, total(kernels, gpu), reason_of(kernels, gpu), host_seconds(kernels, 60)), float(peak)


def gpu_of(device_name: str) -> Gpu | None:
    """The GPU of predictions for PyTorch's name of a device."""
    return next((GPUS[name] for name in NAMES if name in device_name), None)


def predicted(settings: dict[str, Any], device_name: str) -> dict[str, Prediction]:
    """The predictions for a record of ``gpu_report.py``, by contestant or figure; empty where there are none."""
    gpu = gpu_of(device_name)
    if gpu is None or settings.get("dtype") not in _ITEM_BYTES:
        return {}
    size = settings.get("rows", 0), settings.get("labels", 0)
    if settings["operation"] == "logits" and settings.get("loss") == "DB":
        return {"ours": predict_logits(gpu, *size, settings["dtype"], settings["targets"])}
    if settings.get("variant") == "host, launches":
        one = predict_logits(gpu, *size, settings["dtype"])
        host = one._replace(what="host", seconds=one.host or 0.0, reason="operators and launches that the host starts")
        eager = one._replace(seconds=max(host.seconds, one.seconds), reason="the longer of device and host")
        return {"host time, both, seconds": host, "eager call, both, seconds": eager}
    if settings["operation"] == "classifier" and settings["dtype"] == "bfloat16":
        ours, linear = predict_classifier(gpu, *size, settings["features"])
        return {"ours": ours, "F.linear + our loss": linear}
    if settings["operation"] == "in-place update" and settings.get("variant") == "SGD":
        return {"ours": predict_update(gpu, *size, settings["features"])[0]}
    return {}


def _table(head: str, rows: list[list[str]]) -> Iterator[str]:
    columns = head.split(" | ")
    yield f"| {head} |"
    yield "|" + "|".join("---" if k == 0 or columns[k] in ("why", "how") else "---:" for k in range(len(columns))) + "|"
    for row in rows:
        yield f"| {' | '.join(row)} |"
    yield ""


def page() -> str:
    a = ASSUMED
    lines = [
        "# What the model expects of a GPU",
        "",
        "**Nothing on this page was measured**: it was computed before the code ran on any GPU, by "
        "`python benchmarks/predictions.py` from `time_model.py` and `classifier_model.py`. `make gpu-report` prints "
        "these numbers beside what it measures.",
        "",
        f"Published figures: `hardware.py`. Assumed: {seconds_text(a.launch)} a launch and {seconds_text(a.latency)} "
        f"for the last wave of a small kernel; copies at {a.copy:.0%} of the data sheet's bandwidth; products at "
        f"{a.tensor:.0%} of its operations; {a.cache:.0%} of the level-2 cache usable, at "
        f"{a.cache_bytes_a_second / 1e12:.3g} TB/s; the host takes {seconds_text(a.operator)} for an operator of "
        f"PyTorch, {seconds_text(a.triton_launch)} for a Triton launch and {seconds_text(a.call)} for autograd and "
        "checks. Instructions an element, counted in an emulation of the compiled kernel: "
        + ", ".join(f"{count:.0f} at {rows:,} rows" for rows, count in INSTRUCTIONS)
        + '. "Graph": time on the device, as in a replayed CUDA graph. "Eager": the longer of this and the host\'s '
        "time.",
        "",
    ]
    for name in NAMES:
        lines += _page_of(name, GPUS[name])
    return "\n".join(lines).rstrip() + "\n"


def _row(one: Prediction) -> list[str]:
    eager = "" if one.host is None else seconds_text(max(one.host, one.seconds))
    return [one.what, seconds_text(one.seconds), eager, one.reason]


def _page_of(name: str, gpu: Gpu) -> Iterator[str]:
    yield f"## {name}"
    yield ""
    yield "### Loss over logits"
    yield ""
    logits = [predict_logits(gpu, *size, dtype) for size in ONE_PASS for dtype in ("bfloat16", "float32")]
    logits += [predict_logits(gpu, *SMALL_BATCH, targets=form) for form in ("csr", "uint8")]
    yield from _table("what | graph | eager | why", [_row(one) for one in logits])
    yield "### Classifier and loss in one, forward and backward, bfloat16, label ids"
    yield ""
    pairs = [predict_classifier(gpu, *size) for size in CLASSIFIER]
    yield from _table("what | graph | eager | why", [_row(one) for pair in pairs for one in pair])
    rows = []
    for size, (ours, linear) in zip(CLASSIFIER, pairs, strict=True):
        least = floor(Classifier(*size), gpu)
        bound = max(least, key=least.__getitem__)
        rows.append(
            [
                f"{size[0]:,} x {size[1]:,} x 768",
                f"{seconds_text(least[bound])} ({bound})",
                f"{ours.seconds / least[bound]:.2f}",
                f"{linear.seconds / ours.seconds:.2f}",
            ]
        )
    yield from _table("size | floor | ours over the floor | F.linear + our loss over ours", rows)
    yield "Below 1 in the last column, F.linear and our loss take less time, and memory for two [N, C] more."
    yield ""
    yield f"### Why chunks of {CHUNK_BYTES >> 20} MiB of weights"
    yield ""
    yield "Bytes of a chunk's weights: time in a graph, and of the host in an eager call."
    yield ""
    sizes = [mib << 20 for mib in (20, 32, 64, 128, 256)]
    assert CHUNK_BYTES in sizes
    rows = []
    for size in CLASSIFIER:
        one = Classifier(*size)
        cells = [f"{size[0]:,} x {size[1]:,} x 768"]
        for chunk in sizes:
            kernels = classifier_kernels(one, gpu, chunk)
            host = host_seconds(kernels, setup_operators(one, chunk))
            cells.append(f"{seconds_text(total(kernels, gpu))}, {seconds_text(host)}")
        rows.append(cells)
    yield from _table("size | " + " | ".join(f"{chunk >> 20} MiB" for chunk in sizes), rows)
    yield "### Why the loss is no epilogue of the logits' product"
    yield ""
    yield (
        "A kernel of `tl.dot` that computes the loss before it writes, so that logits are never written, as if it "
        "multiplied as fast as the vendor's library and the loss cost the tensor cores nothing; and one that also "
        "makes the weight's gradient, whose sums of 128 labels x 768 features in float32 (393 kB) no multiprocessor "
        "can hold (256 kB of registers). The first was to be written for a gain of 15 %."
    )
    yield ""
    rows = []
    for size in CLASSIFIER:
        one = Classifier(*size)
        times = [total(classifier_kernels(one, gpu, how=how), gpu) for how in WAYS]
        cells = [f"{seconds_text(seconds)} ({1 - seconds / times[0]:.0%})" for seconds in times[1:]]
        rows.append([f"{size[0]:,} x {size[1]:,} x 768", seconds_text(times[0]), *cells])
    yield from _table("size | separate kernels | epilogue (gain) | two products and loss in one (gain)", rows)
    yield "### A training step with the update in the backward, bfloat16"
    yield ""
    rows = []
    for size in UPDATE:
        one, peak = predict_update(gpu, *size)
        kept = total(update_kernels(Classifier(*size), gpu, keep_gradient=True), gpu)
        more = 2 * size[0] * size[1]
        instead = f"{seconds_text(kept)}, {more / 1e6:.0f} MB more"
        rows.append([one.what, seconds_text(one.seconds), f"{peak / 2**30:.2f} GiB", instead, one.reason])
    head = "what | a step | held at the peak | if the forward kept the logits' gradient | why"
    yield from _table(head, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--print", action="store_true", help="print the page instead of writing it")
    if parser.parse_args().print:
        print(page(), end="")
    else:
        PAGE.write_text(page())


if __name__ == "__main__":
    main()
