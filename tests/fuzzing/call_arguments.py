"""The arguments of a random call, made from what is drawn of it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fused_balanced_loss import LabelStatistics, SparseTargets

from .cases import DENSE, Case
from .memory import View, place


@dataclass
class Arguments:
    """The tensors of a case. ``bases``: what owns the memory of each; ``views``: from there to the argument.

    label_weights: the weights of the labels that the case has, tensors or numbers.
    """

    tensors: dict[str, Tensor]
    bases: dict[str, Tensor]
    views: dict[str, View]
    targets: Tensor | SparseTargets
    statistics: LabelStatistics
    counts: Tensor
    label_weights: dict[str, Tensor | float] = field(default_factory=dict)


def _uniform(generator: torch.Generator, *shape: int) -> Tensor:
    """Float64 in [0, 1); the same on every processor, as the library's normal numbers are not."""
    return torch.rand(shape, generator=generator, dtype=torch.float64)


def _normal(generator: torch.Generator, *shape: int) -> Tensor:
    return (_uniform(generator, *shape) + _uniform(generator, *shape) + _uniform(generator, *shape) - 1.5) * 2


def _logits(case: Case, generator: torch.Generator) -> Tensor:
    z = _normal(generator, *case.rows, case.labels) * 3 - 1
    if case.logits == "wide":
        z = z * 20
    elif case.logits == "large":
        z = z * (1e3 if case.dtype == torch.float16 else 1e28)
    elif case.logits == "denormal":
        z = z * (1e-7 if case.dtype == torch.float16 else 1e-40)
    elif case.logits in ("infinite", "nan"):
        chance = _uniform(generator, *z.shape)
        if case.logits == "nan":
            z = torch.where(chance < 0.05, math.nan, z)
        else:
            z = torch.where(chance < 0.1, math.inf, torch.where(chance < 0.2, -math.inf, z))
    return z.to(case.dtype)


def _counts(case: Case, generator: torch.Generator) -> Tensor:
    """Long-tailed, with labels that nobody has, all have, and all but one have."""
    share = _uniform(generator, case.labels) ** 4
    counts = (share * (case.num_train + 1)).long()
    special = _uniform(generator, case.labels)
    counts[special < 0.15] = 0
    counts[special > 0.9] = case.num_train
    counts[(special > 0.8) & (special < 0.9)] = case.num_train - 1
    return counts.clamp(0, case.num_train)


def make(case: Case) -> Arguments:
    """The arguments of a case, the same at every call."""
    generator = torch.Generator().manual_seed(case.values)
    made = Arguments({}, {}, {}, torch.empty(0), None, torch.empty(0))

    def add(name: str, values: Tensor) -> Tensor:
        base, view = place(values, case.form(name))
        if name in case.inference and case.gradient != "in_place":
            with torch.inference_mode():
                base = base.clone()
                made.tensors[name] = view(base)
        else:
            made.tensors[name] = view(base)
        made.bases[name], made.views[name] = base, view
        return made.tensors[name]

    if case.linear:
        add("features", _normal(generator, *case.rows, case.features).to(case.dtype))
        add("weight", (_normal(generator, case.labels, case.features) * 0.7).to(case.dtype))
        offsets = _normal(generator, case.labels).to(case.dtype)
        if case.bias:
            add("bias", offsets)
    else:
        add("logits", _logits(case, generator))
    shape = (*case.rows, case.labels)
    masks = {"labels": (case.labels,), "elements": shape}
    kept = torch.ones(shape, dtype=torch.bool)
    chosen, chance = _uniform(generator, case.labels), _uniform(generator, *shape)
    if case.label_mask:
        kept = add("label_mask", chosen < 0.7 if case.label_mask == "labels" else chance < 0.7).expand(shape)
        assert made.tensors["label_mask"].shape == masks[case.label_mask]
    weights = _uniform(generator, *case.rows) * 3
    if case.sample_weight:
        weights = torch.where(weights < 0.3, 0.0, torch.where(weights > 2.8, -weights, weights))
        add("sample_weight", weights.to(getattr(torch, case.sample_weight)))
    for name in ("label_weight", "pos_weight"):
        drawn = _uniform(generator, case.labels) * 4
        drawn = torch.where(drawn < 0.3, 0.0, drawn)
        kind = getattr(case, name)
        if kind == "number":
            made.label_weights[name] = float(drawn[0])
        elif kind:
            values = drawn[0] if kind == "scalar" else drawn.to(getattr(torch, kind))
            made.label_weights[name] = add(name, values)
    label = _uniform(generator, *shape) < case.density
    if len(shape) > 1 and math.prod(case.rows) > 2:
        label[0] = False
    made.targets = _targets(case, label, kept, generator, add)
    made.counts = _counts(case, generator)
    made.statistics = LabelStatistics.from_counts(made.counts, case.num_train, degenerate="ignore")
    if case.reduction == "none":
        dtype = torch.float64 if case.dtype == torch.float64 else torch.float32
        add("upstream", (_normal(generator, *shape) * case.upstream).to(dtype))
    return made


def _targets(case: Case, label: Tensor, kept: Tensor, generator: torch.Generator, add: Any) -> Tensor | SparseTargets:
    if case.targets in DENSE:
        dtype = DENSE[case.targets]
        share = _uniform(generator, *label.shape)
        if case.soft == "few":
            y = torch.where(share < 0.8, label * share, label).to(dtype)
        elif case.soft == "many":
            y = torch.where(share < 0.8, share / 0.8, label).to(dtype)
        else:
            y = label.to(dtype)
        values: list[float] = [7] if dtype == torch.uint8 else [-1, -100, 2]
        if dtype.is_floating_point:
            values += [math.nan, 1.5]
        # Numbers that are 0 or 1 in fewer bits.
        values += [256, 257] if dtype in (torch.int16, torch.int32, torch.int64) else []
        values += [2**32, 2**32 + 1] if dtype == torch.int64 else []
        odd = torch.tensor(values, dtype=torch.float64)[(_uniform(generator, *y.shape) * len(values)).long()].to(dtype)
        chance = _uniform(generator, *y.shape)
        if case.odd == "masked":
            y = torch.where(~kept & (chance < 0.5), odd, y)
        elif case.odd == "kept" and y.numel():
            y.view(-1)[int(chance.view(-1)[0] * y.numel())] = odd.view(-1)[0]
        if case.ignore_index is not None:
            y = torch.where(_uniform(generator, *y.shape) < 0.2, torch.tensor(case.ignore_index, dtype=dtype), y)
        result: Tensor = add("targets", y)
        return result
    flat = label.reshape(math.prod(case.rows), case.labels)
    if case.targets == "torch-csr":
        return flat.to(torch.float32).to_sparse_csr()
    if case.targets == "torch-coo":
        return flat.to(torch.uint8).to_sparse_coo()
    row, col = flat.nonzero(as_tuple=True)
    crow = torch.zeros(len(flat) + 1, dtype=torch.int64)
    torch.cumsum(torch.bincount(row, minlength=len(flat)), 0, out=crow[1:])
    parts = []
    for name, part in (("crow", crow), ("col", col.contiguous())):
        # An expansion would make them other offsets and ids.
        form = case.form(name) if not case.form(name).startswith("expanded") else "contiguous"
        base, view = place(part, form)
        parts.append(view(base))
    return SparseTargets(parts[0], parts[1], case.labels, check=bool(case.values % 2))
