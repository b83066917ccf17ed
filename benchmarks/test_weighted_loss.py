"""Distribution-balanced loss with weights of the labels, soft targets, smoothing and Poly-1: forward and backward.

    pytest benchmarks/test_weighted_loss.py [--full]

Each variant beside the formula as a user writes it in PyTorch for the same settings, and beside ours without them.
"""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from contest import assert_equal_results, hold, of_loss
from floors import logits_floor
from problems import NUM_TRAIN, Problem, make_problem
from records import title
from torch import Tensor

from fused_balanced_loss import LossSpec, SparseTargets, balanced_loss

BOTH = "forward and backward"
OURS, PLAIN, EAGER = "ours", "ours, plain DB", "formula, eager"
DB = LossSpec.preset("DB", corpus="pubmed")


class Variant(NamedTuple):
    """form: of the targets: "csr" or "float". soft: how many targets lie between 0 and 1: "none", "few" or "all"."""

    spec: LossSpec
    form: str = "csr"
    weight: bool = False
    pos_weight: bool = False
    soft: str = "none"


VARIANTS = {
    "weight": Variant(DB, weight=True),
    "pos_weight": Variant(DB, pos_weight=True),
    "weight and pos_weight": Variant(DB, weight=True, pos_weight=True),
    "soft targets of mixup": Variant(DB, "float", soft="few"),
    "soft targets everywhere": Variant(DB, "float", soft="all"),
    "label smoothing": Variant(DB.replace(label_smoothing=0.1)),
    "label smoothing, dense": Variant(DB.replace(label_smoothing=0.1), "float"),
    "Poly-1": Variant(DB.replace(poly_epsilon=1.0)),
    "all of it": Variant(DB.replace(label_smoothing=0.1, poly_epsilon=1.0), "float", True, True, "all"),
}


def formula(
    logits: Tensor, targets: Tensor, counts: Tensor, spec: LossSpec, weight: Tensor | None, pos_weight: Tensor | None
) -> Tensor:
    """The mean loss, both parts of every element, as a user writes it; arguments as for ``problems.formula``."""
    z = logits.float()
    v = spec.kappa * torch.log(NUM_TRAIN / counts - 1)
    r = (1 / counts) / (targets * (1 / counts)).sum(1, keepdim=True)
    w = spec.alpha + torch.sigmoid(spec.beta * (r - spec.mu))
    if weight is not None:
        w = w * weight

    def part(t: Tensor) -> Tensor:
        q = torch.sigmoid(-t)
        nll = F.softplus(-t)
        return q**spec.gamma * (nll + spec.poly_epsilon * q if spec.poly_epsilon else nll)

    y = targets * (1 - spec.label_smoothing) + spec.label_smoothing / 2
    positive, negative = y * part(z - v), (1 - y) * part(-spec.lam * (z - v)) / spec.lam
    if pos_weight is not None:
        positive = positive * pos_weight
    return (w * (positive + negative)).mean()


def targets_of(problem: Problem, variant: Variant) -> tuple[Tensor | SparseTargets, Tensor]:
    """The targets as ours gets them, and as the formula does."""
    dense = problem.dense
    if variant.soft == "few":
        dense = 0.3 * dense + 0.7 * dense.flip(0)
    elif variant.soft == "all":
        dense = 0.9 * dense + 0.05
    return problem.sparse if variant.form == "csr" else dense, dense


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize(
    "shape",
    [(32, 18_211), pytest.param((256, 18_211), marks=pytest.mark.full), pytest.param((32, 90), marks=pytest.mark.full)],
    ids=lambda shape: f"{shape[0]}x{shape[1]}",
)
def test_variants(benchmark, keep, shape, name):
    variant, problem = VARIANTS[name], make_problem(*shape)
    generator = torch.Generator().manual_seed(1)
    weight, pos_weight = (
        (torch.rand(shape[1], generator=generator) + 0.5).to(problem.dense.device) if given else None
        for given in (variant.weight, variant.pos_weight)
    )
    ours, dense = targets_of(problem, variant)
    losses = {
        OURS: lambda: balanced_loss(
            problem.logits, ours, variant.spec, problem.statistics, weight=weight, pos_weight=pos_weight
        ),
        EAGER: lambda: formula(problem.logits, dense, problem.counts, variant.spec, weight, pos_weight),
        PLAIN: lambda: balanced_loss(
            problem.logits, problem.sparse if variant.form == "csr" else problem.dense, DB, problem.statistics
        ),
    }
    found = [of_loss(who, loss, [problem.logits], BOTH, same_work=who != PLAIN) for who, loss in losses.items()]
    assert_equal_results(found[0], found[1], torch.float32)
    settings = {"operation": "weighted", "loss": "DB", "pass": BOTH, "rows": shape[0], "labels": shape[1]}
    settings |= {"dtype": "float32", "targets": variant.form, "variant": name}
    benchmark.group = title(settings)
    keep(hold(settings, found, {}, logits_floor(*shape, torch.float32, variant.form, 0, BOTH), benchmark=benchmark))
