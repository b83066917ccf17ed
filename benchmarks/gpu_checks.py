"""Correctness of the eight losses on the device, and every kernel that the measurements need, compiled ahead.

    python benchmarks/gpu_checks.py K N FOLDER        # every N-th task, from the K-th: N processes compile side by side

A check computes loss and gradient at the number of labels that is measured, so that its kernel is in Triton's cache
afterwards. It allows twice the error of the formula in float32 on the same logits, and some units of the last digit.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from environment import DEVICE
from gpu_timing import IMPL
from peers import spec_of
from problems import formula, make_classifier, make_problem, make_sparse_problem
from records import new_record, write_record
from torch import Tensor

from fused_balanced_loss import (
    AdamWUpdate,
    LinearBalancedLoss,
    LossSpec,
    SGDUpdate,
    balanced_loss,
    linear_balanced_loss,
)
from fused_balanced_loss.spec import PAPER_LOSSES

GPU = DEVICE.type == "cuda"
ROWS, LABELS = (37, 18_211) if GPU else (2, 300)
FEATURES = 768 if GPU else 16
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
# Units of the last digit of the logits' dtype.
_DIGITS = 4


def check(loss: str, dtype: torch.dtype, form: str) -> tuple[bool, str]:
    """Whether value and gradient are as exact as they must be, and their errors in words."""
    problem = make_problem(ROWS, LABELS, dtype)
    spec = LossSpec.preset(loss, corpus="pubmed")
    z = problem.logits
    exact = z.detach().double().requires_grad_()
    dense = problem.dense
    targets = problem.sparse if form == "csr" else dense.to(torch.uint8)
    ours = balanced_loss(z, targets, spec, problem.statistics, impl=IMPL, reduction="sum")
    plain = formula(z, dense, problem.counts, problem.statistics.num_samples, spec) * z.numel()
    expected = balanced_loss(exact, dense, spec, problem.statistics, impl="reference", reduction="sum")
    (true_gradient,) = torch.autograd.grad(expected, exact)
    good, words = True, []
    pairs = {"loss": (ours, plain, expected)}
    pairs["gradient"] = (*(torch.autograd.grad(one, z)[0] for one in (ours, plain)), true_gradient)
    for name, (mine, others, truth) in pairs.items():
        error, allowed, size = _norm(mine, truth), 2 * _norm(others, truth), float(truth.norm())
        # The loss is float32 whatever the logits are.
        digits = _DIGITS * torch.finfo(mine.dtype).eps * size
        # Not <=: a NaN must fail.
        good &= error <= allowed + digits
        words.append(f"{name} off by {error / size:.1e} of it, the formula in float32 by {allowed / 2 / size:.1e}")
    return good, "; ".join(words)


def _norm(one: Tensor, other: Tensor) -> float:
    return float((one.detach().double() - other.detach().double()).norm())


def _loss(labels: int, loss: str = "DB", form: str = "csr") -> None:
    problem = make_problem(2, labels, torch.bfloat16)
    targets = problem.sparse if form == "csr" else problem.dense.to(torch.uint8)
    balanced_loss(problem.logits, targets, spec_of("ours", loss), problem.statistics, impl=IMPL).backward()


def _classifier(chunk_size: int | None) -> None:
    problem = make_problem(4, LABELS, torch.bfloat16)
    leaves = make_classifier(4, LABELS, FEATURES, torch.bfloat16)
    spec, y = spec_of("ours", "DB"), problem.sparse
    linear_balanced_loss(*leaves, y, spec, problem.statistics, chunk_size=chunk_size, impl=IMPL).backward()


def _update(make: Callable[[], SGDUpdate | AdamWUpdate]) -> None:
    problem = make_sparse_problem(2, 600)
    options = {"device": DEVICE, "dtype": torch.bfloat16, "impl": IMPL, "chunk_size": 256}
    module = LinearBalancedLoss(spec_of("ours", "DB"), problem.statistics, FEATURES, update=make(), **options)
    features = torch.randn(2, FEATURES, device=DEVICE, dtype=torch.bfloat16).requires_grad_()
    module.to(DEVICE)(features, problem.sparse).backward()


def tasks() -> dict[str, Callable[[], tuple[bool, str] | None]]:
    """What there is to do, by name: checks, and calls that only compile."""
    found: dict[str, Callable[[], tuple[bool, str] | None]] = {}
    # Triton's interpreter computes bfloat16 wrongly.
    dtypes = DTYPES if GPU else {"fp32": torch.float32}
    for loss in PAPER_LOSSES:
        for name, dtype in dtypes.items():
            for form in ("csr", "uint8"):
                found[f"{loss} {name} {form}"] = partial(check, loss, dtype, form)
    if GPU:
        for labels in (90, 1000, 131_072, 670_091):
            found[f"compiled ahead, {labels} labels"] = partial(_loss, labels)
        for loss in ("ASL",):
            found[f"compiled ahead, {loss}"] = partial(_loss, LABELS, loss)
        found["compiled ahead, classifier, one chunk"] = partial(_classifier, None)
        found["compiled ahead, classifier, chunks"] = partial(_classifier, LABELS // 4)
        found["compiled ahead, SGD"] = partial(_update, lambda: SGDUpdate(0.01))
        found["compiled ahead, AdamW"] = partial(_update, lambda: AdamWUpdate(0.01, state="row"))
    return found


def main() -> int:
    number, processes, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    figures, failed = {}, 0
    for name, task in list(tasks().items())[number::processes]:
        try:
            good, words = task() or (True, "done")
        except Exception as error:
            good, words = False, f"{type(error).__name__}: {str(error)[:500]}"
        failed += not good
        figures[name] = words if good else f"FAILED: {words}"
        print(f"{name}: {figures[name]}", flush=True)
    settings = {"operation": "device", "variant": f"correctness, part {number + 1} of {processes}"}
    write_record(folder, new_record(settings, figures=figures))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
