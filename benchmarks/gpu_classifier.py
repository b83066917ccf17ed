"""What ``gpu_report.py`` measures of the classifier: against F.linear, and with the update in the backward."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator

import peers
import torch
import torch.nn.functional as F
from contest import launches, of_loss, quantiles
from environment import DEVICE
from floors import Floor, classifier_floor
from gpu_timing import BOTH, IMPL, graph_seconds, reason, repeated
from memory import held_bytes, peak_bytes
from peers import EAGER, OURS
from problems import make_classifier, make_problem, make_sparse_problem
from records import Record, new_record
from torch import Tensor

from fused_balanced_loss import LinearBalancedLoss, balanced_loss, linear_balanced_loss
from fused_balanced_loss.classifier.prediction import predict_topk
from fused_balanced_loss.optim.update import AdamWUpdate, SGDUpdate


def against_linear(shape: tuple[int, int, int], dtype: torch.dtype) -> Record:
    """The fused classifier and loss, against F.linear followed by a loss over its logits."""
    problem = make_problem(*shape[:2], dtype)
    x, w, b = leaves = make_classifier(*shape, dtype)
    spec, y, statistics = peers.spec_of(OURS, "DB"), problem.sparse, problem.statistics
    formula = peers.make_loss(EAGER, problem, "DB")
    forwards: dict[str, Callable[[], Tensor]] = {
        "ours": lambda: linear_balanced_loss(x, w, b, y, spec, statistics, impl=IMPL),
        "F.linear + our loss": lambda: balanced_loss(F.linear(x, w, b), y, spec, statistics, impl=IMPL),
        "F.linear + formula, eager": lambda: formula(F.linear(x, w, b)),
    }
    floor = classifier_floor(*shape, dtype, BOTH)
    found, absent = {}, {}
    for name, forward in forwards.items():
        one = of_loss(name, forward, leaves, BOTH)
        grad = [lambda forward=forward: torch.autograd.grad(forward(), leaves)]
        try:
            seconds = quantiles(graph_seconds(grad, replays=10))
        except Exception as error:
            if name == "ours":
                raise
            absent[name] = reason(error)
            continue
        found[name] = {
            "seconds": seconds,
            "eager_seconds": repeated(grad[0]),
            "same_work": True,
            "share_of_floor": floor.seconds / seconds["p50"],
            "peak_bytes": peak_bytes(lambda one=one: one.run(None), one.clear),
            "held_bytes": held_bytes(forward, one.clear),
            "launches": launches(one),
        }
        for leaf in leaves:
            leaf.grad = None
    settings = {"operation": "classifier", "loss": "DB", "pass": BOTH, "rows": shape[0], "labels": shape[1]}
    settings |= {"features": shape[2], "dtype": str(dtype).removeprefix("torch."), "targets": "csr"}
    least = {"bytes": floor.num_bytes, "flops": floor.num_flops, "seconds": floor.seconds}
    return new_record(settings | {"variant": "CUDA graph"}, contestants=found, absent=absent, floor=least)


def in_place_update(shape: tuple[int, int, int], names: list[str]) -> Iterator[Record]:
    """Training steps and predictions of a classifier of millions of labels, whose gradient never exists as a whole."""
    dtype = torch.bfloat16
    updates = {"SGD": lambda: SGDUpdate(0.01), "AdamW, state by row": lambda: AdamWUpdate(0.01, state="row")}
    num_rows, num_labels, num_features = shape
    for name in names:
        problem = make_sparse_problem(num_rows, num_labels)
        module = LinearBalancedLoss(
            peers.spec_of(OURS, "DB"), problem.statistics, num_features, update=updates[name](),
            device=DEVICE, dtype=dtype, impl=IMPL,
        ).to(DEVICE)  # fmt: skip
        features = torch.randn(num_rows, num_features, device=DEVICE, dtype=dtype).requires_grad_()

        def step(module=module, features=features, problem=problem) -> None:
            features.grad = None
            module(features, problem.sparse).backward()

        peak = peak_bytes(step)
        own = [*module.parameters(), *module.buffers()]
        floor = classifier_floor(num_rows, num_labels, num_features, dtype, "update")
        state = sum(one.nbytes for one in own) - 2 * num_labels * (num_features + 1)
        floor = Floor(floor.num_bytes + 2 * state, floor.num_flops, dtype)
        seconds = repeated(step)
        entry = {"seconds": seconds, "same_work": True, "peak_bytes": peak}
        entry |= {"share_of_floor": floor.seconds / seconds["p50"], "launches": None}
        whole = torch.cuda.max_memory_allocated() if DEVICE.type == "cuda" else None
        settings = {"operation": "in-place update", "loss": "DB", "pass": "step", "rows": num_rows}
        settings |= {"labels": num_labels, "features": num_features, "dtype": "bfloat16", "variant": name}
        top = repeated(lambda m=module, f=features: predict_topk(f.detach(), m.weight.detach(), m.bias.detach(), 5))
        yield new_record(
            settings,
            contestants={"ours": entry, "ours, top 5 alone": {"seconds": top, "same_work": False}},
            absent={},
            floor={"bytes": floor.num_bytes, "flops": floor.num_flops, "seconds": floor.seconds},
            figures={"all memory at the peak, bytes": whole},
        )
        del module, own, step, features
        gc.collect()
        if DEVICE.type == "cuda":
            torch.cuda.empty_cache()
