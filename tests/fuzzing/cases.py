"""One random call: what is drawn of it, and the arguments that are made from that."""

from __future__ import annotations

import dataclasses
import inspect
import math
import random
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fused_balanced_loss import LabelStatistics, LossSpec, SparseTargets, balanced_loss
from fused_balanced_loss.arguments import REDUCTIONS
from fused_balanced_loss.backends.select import IMPLS
from fused_balanced_loss.spec import PRESETS

from .memory import View, forms_of, place

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
DENSE = {
    "bool": torch.bool,
    "uint8": torch.uint8,
    "int8": torch.int8,
    "int16": torch.int16,
    "int32": torch.int32,
    "int64": torch.int64,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "float64": torch.float64,
}
SPARSE = ("SparseTargets", "torch-csr", "torch-coo")
LABELS = (1, 2, 3, 5, 16, 17, 31, 64, 90, 127, 128, 129, 255, 257, 1000)
GAMMAS = (0.0, 0.3, 0.5, 1.0, 1.5, 2.0, 3.0, 3.7, 4.0)
# How often each implementation is drawn; where it is missing here, never unless it is asked for.
SHARES = {"auto": 3.0, "cpp": 3.0, "eager": 3.0, "reference": 1.0, "triton": 0.005, "compile": 0.0005}
SLOW = ("triton", "compile")
IGNORES = "ignore_index" in inspect.signature(balanced_loss).parameters


@dataclass(frozen=True)
class Case:
    """The settings of a call; all that is random besides them follows from ``values``, a seed."""

    number: int
    values: int
    impl: str = "auto"
    linear: bool = False
    dtype: torch.dtype = torch.float32
    rows: tuple[int, ...] = (3,)
    labels: int = 5
    features: int = 4
    spec: LossSpec = field(default_factory=LossSpec)
    num_train: int = 500
    logits: str = "normal"
    targets: str = "bool"
    density: float = 0.1
    odd: str = "none"
    sample_weight: str | None = None
    label_mask: str | None = None
    ignore_index: int | None = None
    reduction: str = "sum"
    gradient: str = "auto"
    upstream: float = 1.0
    grad: bool = True
    bias: bool = True
    chunk_size: int | None = None
    forms: tuple[tuple[str, str], ...] = ()
    inference: tuple[str, ...] = ()

    def form(self, name: str) -> str:
        return dict(self.forms).get(name, "contiguous")

    def __str__(self) -> str:
        """The settings that are not the plain ones."""
        plain = Case(self.number, self.values)
        parts = [f"number={self.number}"]
        for one in dataclasses.fields(self):
            value = getattr(self, one.name)
            if one.name == "spec":
                default = LossSpec()
                settings = [f"{k}={v!r}" for k, v in vars(value).items() if v != getattr(default, k)]
                parts.append(f"spec=LossSpec({', '.join(settings)})")
            elif one.name == "values" or value != getattr(plain, one.name):
                parts.append(f"{one.name}={value!r}")
        return f"Case({', '.join(parts)})"


def draw_spec(rng: random.Random, presets: bool = False) -> LossSpec:
    """A preset as often as random settings, or always."""
    if rng.random() < 0.5 or presets:
        corpus, convention = rng.choice(("reuters", "pubmed")), rng.choice(("paper", "authors"))
        # The exact formula here has no Poly-1.
        name = rng.choice([name for name in PRESETS if name != "Poly-1"])
        return LossSpec.preset(name, corpus=corpus, convention=convention)
    weighting = rng.choice(("none", "class_balanced", "rebalanced", "inverse_frequency", "sqrt_inverse_frequency"))
    pooled = weighting not in ("none", "rebalanced") and rng.random() < 0.5
    return LossSpec(
        gamma=rng.choice(GAMMAS),
        gamma_negative=rng.choice((None, *GAMMAS)),
        probability_margin=rng.choice((0.0, 0.0, 0.0, 0.05, 0.2, 0.5)),
        weighting=weighting,
        pooling=rng.choice(("mean_count", "mean_weight", "rarest")) if pooled else "label",
        beta_cb=rng.choice((0.0, 0.5, 0.9, 0.9999, 1 - 1e-12)),
        alpha=rng.choice((0.0, 0.1, 1.0)),
        beta=rng.choice((1e-3, 1.0, 10.0, 30.0, 100.0, 300.0)),
        mu=rng.choice((-0.5, 0.0, 0.05, 0.3, 0.9, 2.0)),
        kappa=rng.choice((0.0, 0.0, 0.05, 1.0, -0.1)),
        lam=rng.choice((0.5, 1.0, 2.0, 5.0)),
        positive_factor=rng.choice((1.0, 0.25, 5.0)),
        negative_factor=rng.choice((1.0, 0.5, 3.0)),
    )


def draw_impl(rng: random.Random, only: tuple[str, ...]) -> str:
    names = [name for name in (only or IMPLS) if only or name in SHARES]
    weights = [1.0 if only else SHARES[name] for name in names]
    return rng.choices(names, weights)[0]


def draw(seed: int, number: int, only: tuple[str, ...] = (), presets: bool = False) -> Case:
    """Case ``number`` of a seed.

    ``only`` restricts it to some of the implementations, ``presets`` to losses whose C++ kernels are few.
    """
    rng = random.Random(f"{seed}/{number}")
    impl = draw_impl(rng, only)
    linear = rng.random() < 0.15
    num_labels = rng.choice(LABELS[:8] if impl in SLOW else LABELS)
    most = 4 if impl in SLOW else 33 if num_labels < 500 else 5
    rows: tuple[int, ...] = (rng.choice((0, 1, 2, 3, rng.randint(0, most), rng.randint(0, most))),)
    if rng.random() < 0.1:
        rows = (rng.randint(1, 3), rng.randint(1, 4))
    forms = {}
    targets = rng.choice((*DENSE, *SPARSE, "bool", "uint8", "SparseTargets"))
    dense = targets in DENSE
    odd = "none"
    label_mask = rng.choice((None, None, None, "labels", "elements"))
    wide = DENSE.get(targets, torch.bool)
    may_ignore = IGNORES and dense and wide not in (torch.bool, torch.uint8) and rng.random() < 0.2
    ignore_index = rng.choice((-100, -1)) if may_ignore else None
    if dense and wide != torch.bool and rng.random() < 0.3:
        odd = rng.choice(("masked", "masked", "masked", "kept"))
    reduction = rng.choice(("sum", "mean", "batchmean") if linear else tuple(REDUCTIONS))
    gradient = rng.choice(("auto", "auto", "forward", "backward", *(() if linear else ("in_place",))))
    dtype = rng.choice(FLOATS)
    sample_weight = rng.choice((None, None, "float16", "bfloat16", "float32", "float32", "float64", "int64"))

    def draw_form(name: str, dim: int, negative: bool, shuffled: float = 0.4) -> None:
        if rng.random() < shuffled:
            forms[name] = rng.choice(forms_of(dim, negative))

    draw_form("features" if linear else "logits", len(rows) + 1, True)
    if linear:
        draw_form("weight", 2, True)
        draw_form("bias", 1, True)
    if dense:
        draw_form("targets", len(rows) + 1, wide not in (torch.bool, torch.uint8))
    elif targets == "SparseTargets":
        draw_form("crow", 1, True)
        draw_form("col", 1, True)
    if sample_weight:
        draw_form("sample_weight", len(rows), True)
    if label_mask:
        draw_form("label_mask", 1 if label_mask == "labels" else len(rows) + 1, False)
    if reduction == "none":
        draw_form("upstream", len(rows) + 1, True)
    grad = rng.random() < 0.85
    # Autograd cannot keep a tensor that inference mode made: those of a differentiated argument are not.
    free = ("targets", "sample_weight", "label_mask", *(() if grad else ("logits", "features", "weight", "bias")))
    inference = tuple(name for name in free if rng.random() < 0.05)
    kinds = ("normal", "normal", "normal", "wide", "large", "infinite", "nan", "denormal")
    return Case(
        number=number,
        values=rng.getrandbits(48),
        impl=impl,
        linear=linear,
        dtype=dtype,
        rows=rows,
        labels=num_labels,
        features=rng.choice((1, 3, 8, 33)),
        spec=draw_spec(rng, presets),
        num_train=rng.choice((2, 3, 500, 500, 10**7)),
        logits="normal" if linear else rng.choice(kinds),
        targets=targets,
        density=rng.choice((0.0, 0.02, 0.1, 0.1, 0.5, 1.0)),
        odd=odd,
        sample_weight=sample_weight,
        label_mask=label_mask,
        ignore_index=ignore_index,
        reduction=reduction,
        gradient=gradient,
        upstream=rng.choice((1.0, 1.0, 0.5, -3.0, 1024.0, 0.0)),
        grad=grad,
        bias=rng.random() < 0.8,
        chunk_size=rng.choice((None, 1, 7, 128)) if linear else None,
        forms=tuple(sorted(forms.items())),
        inference=inference,
    )


@dataclass
class Arguments:
    """The tensors of a case. ``bases``: what owns the memory of each; ``views``: from there to the argument."""

    tensors: dict[str, Tensor]
    bases: dict[str, Tensor]
    views: dict[str, View]
    targets: Tensor | SparseTargets
    statistics: LabelStatistics
    counts: Tensor


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
        y = label.to(dtype)
        values: list[float] = [7] if dtype == torch.uint8 else [-1, -100, 2]
        if dtype.is_floating_point:
            values += [math.nan, 0.5]
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
