"""Inputs of a given size, and the losses as a user would write them in PyTorch."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from environment import DEVICE
from torch import Tensor

from fused_balanced_loss import LabelStatistics, LossSpec, SparseTargets

NUM_TRAIN = 200_000
# How many labels a sample carries, if there are enough labels.
LABELS_A_SAMPLE = 12


class Problem(NamedTuple):
    """One input of the losses.

    logits: [N, C], a leaf. dense: the targets, float32 [N, C]. sparse: the same targets as label ids.
    statistics: the label counts of the training set. counts: the same counts, float32 [C].
    """

    logits: Tensor
    dense: Tensor
    sparse: SparseTargets
    statistics: LabelStatistics
    counts: Tensor


class SparseProblem(NamedTuple):
    """A problem without logits and dense targets, for sizes at which these would not fit into memory."""

    sparse: SparseTargets
    statistics: LabelStatistics


class Classifier(NamedTuple):
    """features [N, D], weight [C, D] and bias [C], all of them leaves."""

    features: Tensor
    weight: Tensor
    bias: Tensor


def make_problem(num_rows: int, num_labels: int, dtype: torch.dtype = torch.float32) -> Problem:
    generator = torch.Generator().manual_seed(0)
    counts = torch.randint(5, 5000, (num_labels,), generator=generator)
    number = max(1, min(LABELS_A_SAMPLE, num_labels // 20))
    ids = torch.randint(num_labels, (num_rows, number), generator=generator)
    dense = torch.zeros(num_rows, num_labels, device=DEVICE).scatter_(1, ids.to(DEVICE), 1.0)
    logits = torch.empty(num_rows, num_labels).normal_(-4.0, 2.0, generator=generator)
    return Problem(
        logits.to(DEVICE, dtype).requires_grad_(),
        dense,
        SparseTargets.from_dense(dense),
        LabelStatistics.from_counts(counts, NUM_TRAIN),
        counts.to(DEVICE, torch.float32),
    )


def make_sparse_problem(num_rows: int, num_labels: int) -> SparseProblem:
    generator = torch.Generator().manual_seed(0)
    number = max(1, min(LABELS_A_SAMPLE, num_labels // 20))
    ids = [torch.randint(num_labels, (number,), generator=generator).unique() for _ in range(num_rows)]
    counts = torch.randint(5, 5000, (num_labels,), generator=generator)
    sparse = SparseTargets.from_lists(ids, num_labels).to(DEVICE)
    return SparseProblem(sparse, LabelStatistics.from_counts(counts, NUM_TRAIN))


def make_classifier(num_rows: int, num_labels: int, num_features: int, dtype: torch.dtype) -> Classifier:
    torch.manual_seed(1)
    features = torch.randn(num_rows, num_features, device=DEVICE) * 0.5
    weight = torch.empty(num_labels, num_features, device=DEVICE, dtype=dtype).normal_(0, 0.03)
    bias = torch.full((num_labels,), -4.0, device=DEVICE, dtype=dtype)
    return Classifier(features.to(dtype).requires_grad_(), weight.requires_grad_(), bias.requires_grad_())


def formula(logits: Tensor, targets: Tensor, counts: Tensor, num_samples: int, spec: LossSpec) -> Tensor:
    """The mean loss of a preset's spec, as a user writes it in PyTorch: the equations one after another, in float32.

    The library's oracle (``fused_balanced_loss.backends.reference``) is the same equations, but no fair contestant: it
    computes weights [N, C] in float64 and every logarithm to the last digit, and takes about twice as long.
    tests/benchmarks checks this formula against the oracle.

    Args:
        logits: [N, C]. targets: float [N, C]. counts: [C], how many of the ``num_samples`` training samples carry each
            label.
    """
    z, w, s = logits.float(), 1.0, 1.0
    if spec.probability_margin:
        return _margin_formula(z, targets, spec)
    if spec.weighting == "rebalanced":
        r = (1 / counts) / (targets * (1 / counts)).sum(1, keepdim=True)
        w = spec.alpha + torch.sigmoid(spec.beta * (r - spec.mu))
    elif spec.weighting == "class_balanced":
        w = (1 - spec.beta_cb) / (1 - spec.beta_cb**counts)
    if spec.kappa:
        v = spec.kappa * torch.log(num_samples / counts - 1)
        t = torch.where(targets == 1, z - v, -spec.lam * (z - v))
        s = torch.where(targets == 1, 1.0, 1 / spec.lam)
    else:
        t = torch.where(targets == 1, z, -z)
    nll = F.softplus(-t)
    if spec.poly_epsilon:
        nll = nll + spec.poly_epsilon * torch.sigmoid(-t)
    if spec.gamma:
        p = torch.sigmoid(t)
        nll = (1 - p) ** spec.gamma * nll
    if spec.positive_factor != 1 or spec.negative_factor != 1:
        s = s * torch.where(targets == 1, spec.positive_factor, spec.negative_factor)
    return (s * w * nll).mean()


def _margin_formula(z: Tensor, targets: Tensor, spec: LossSpec) -> Tensor:
    """The mean of asymmetric loss (Ridnik et al., ICCV 2021, equations 4 to 6)."""
    p = torch.sigmoid(z)
    right = torch.where(targets == 1, p, (1 - p + spec.probability_margin).clamp(max=1))
    gamma = torch.where(targets == 1, *spec.gammas)
    return -((1 - right) ** gamma * torch.log(right.clamp(min=1e-8))).mean()
