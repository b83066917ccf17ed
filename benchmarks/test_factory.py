"""timm's factory of losses and ours, which gives the same numbers: forward and backward of each loss.

    pytest benchmarks/test_factory.py [--full]

Both get the same dense float32 targets; "ours, label ids" gets :class:`SparseTargets`, which timm does not take.
"""

from __future__ import annotations

from typing import Any

import peers
import pytest
import torch
from contest import Contestant, assert_equal_results, hold, of_loss
from floors import logits_floor
from problems import NUM_TRAIN, Problem, make_problem
from records import title

from fused_balanced_loss.integrations.timm import FUSED_LOSSES, create_classification_loss

BOTH = "forward and backward"
OURS, IDS, TIMM = "ours", "ours, label ids", "timm"
# By the name of the variant: the factory's arguments.
VARIANTS: dict[str, dict[str, Any]] = {
    "0 and 1": {},
    "smoothed": {"smoothing": 0.1},
    "soft": {"soft_targets": True},
}


def contestants(problem: Problem, loss: str, variant: str) -> list[Contestant]:
    """Ours first; each gives the same value and gradient."""
    arguments: dict[str, Any] = {"loss_type": loss, "multi_label": True, **VARIANTS[variant]}
    if loss == "db":
        arguments |= {"class_counts": problem.counts, "num_samples": NUM_TRAIN}
    dense = problem.dense
    if variant == "soft":
        # As mixup makes them: most are 0, few lie between 0 and 1.
        dense = 0.3 * dense + 0.7 * dense.flip(0)
    ours = create_classification_loss(**arguments).to(dense.device)
    theirs = peers.timm_loss("_loss_factory").create_classification_loss(**arguments).to(dense.device)
    given = [(OURS, ours, dense), (TIMM, theirs, dense)]
    if variant != "soft":
        given.insert(1, (IDS, ours, problem.sparse))
    found = [
        of_loss(name, lambda one=one, targets=targets: one(problem.logits, targets), [problem.logits], BOTH)
        for name, one, targets in given
    ]
    for other in found[1:]:
        assert_equal_results(found[0], other, torch.float32)
    return found


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("loss", FUSED_LOSSES)
@pytest.mark.parametrize(
    "shape",
    [(32, 18_211), (256, 18_211), pytest.param((32, 90), marks=pytest.mark.full)],
    ids=lambda shape: f"{shape[0]}x{shape[1]}",
)
def test_factory(benchmark, keep, shape, loss, variant):
    reason = peers.absent().get(peers.TIMM_DB)
    if reason:
        pytest.skip(f"timm: {reason}")
    problem = make_problem(*shape)
    settings = {"operation": "factory", "loss": loss, "pass": BOTH, "rows": shape[0], "labels": shape[1]}
    settings |= {"dtype": "float32", "targets": "float", "variant": variant}
    benchmark.group = title(settings)
    floor = logits_floor(*shape, torch.float32, "float", len(problem.sparse.col), BOTH)
    keep(hold(settings, contestants(problem, loss, variant), {}, floor, benchmark=benchmark))
