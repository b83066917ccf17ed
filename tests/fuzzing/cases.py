"""One random call: what is drawn of it."""

from __future__ import annotations

import dataclasses
import inspect
import random
from dataclasses import dataclass, field

import torch

from fused_balanced_loss import LossSpec, balanced_loss
from fused_balanced_loss.arguments import REDUCTIONS
from fused_balanced_loss.backends.select import IMPLS
from fused_balanced_loss.spec import PRESETS

from .memory import forms_of

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
# What a weight of the labels is: a number, a tensor without dimensions, or one of a dtype for all labels.
LABEL_WEIGHTS = ("number", "scalar", "float16", "bfloat16", "float32", "float32", "float64", "int64", "uint8")
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
    soft: str = "none"
    odd: str = "none"
    label_weight: str | None = None
    pos_weight: str | None = None
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
    """A preset as often as random settings, or always; some with smoothing and Poly-1's term."""
    smoothing = rng.choice((0.0, 0.0, 0.0, 0.1, 1e-3, 1.0))
    poly_epsilon = rng.choice((1.0, -1.0, 0.3, 5.0)) if rng.random() < (0.1 if presets else 0.3) else 0.0
    return _draw_settings(rng, presets).replace(label_smoothing=smoothing, poly_epsilon=poly_epsilon)


def _draw_settings(rng: random.Random, presets: bool) -> LossSpec:
    if rng.random() < 0.5 or presets:
        corpus, convention = rng.choice(("reuters", "pubmed")), rng.choice(("paper", "authors"))
        return LossSpec.preset(rng.choice(PRESETS), corpus=corpus, convention=convention)
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
    soft = rng.choice(("none", "few", "many")) if dense and wide.is_floating_point else "none"
    if dense and wide != torch.bool and rng.random() < 0.3:
        odd = rng.choice(("masked", "masked", "masked", "kept"))
    reduction = rng.choice(("sum", "mean", "batchmean") if linear else tuple(REDUCTIONS))
    gradient = rng.choice(("auto", "auto", "forward", "backward", *(() if linear else ("in_place",))))
    dtype = rng.choice(FLOATS)
    sample_weight = rng.choice((None, None, "float16", "bfloat16", "float32", "float32", "float64", "int64"))

    label_weight, pos_weight = (rng.choice(LABEL_WEIGHTS) if rng.random() < 0.4 else None for _ in range(2))

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
    for name, kind in (("label_weight", label_weight), ("pos_weight", pos_weight)):
        if kind not in (None, "number", "scalar"):
            draw_form(name, 1, kind != "uint8")
    if sample_weight:
        draw_form("sample_weight", len(rows), True)
    if label_mask:
        draw_form("label_mask", 1 if label_mask == "labels" else len(rows) + 1, False)
    if reduction == "none":
        draw_form("upstream", len(rows) + 1, True)
    grad = rng.random() < 0.85
    # Autograd cannot keep a tensor that inference mode made: those of a differentiated argument are not.
    free = ("targets", "label_weight", "pos_weight", "sample_weight", "label_mask")
    free += () if grad else ("logits", "features", "weight", "bias")
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
        soft=soft,
        odd=odd,
        label_weight=label_weight,
        pos_weight=pos_weight,
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
