"""The simplest case that fails as another does."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch

from fused_balanced_loss import LossSpec

from .cases import Case
from .check import check, kind

_PLAIN: dict[str, list[Any]] = {
    "impl": ["auto", "eager"],
    "dtype": [torch.float32, torch.float64],
    "rows": [(1,), (2,), (3,)],
    "labels": [1, 2, 3, 5],
    "features": [1, 3],
    "num_train": [500],
    "logits": ["normal"],
    "targets": ["bool", "float32"],
    "density": [0.1, 0.5, 1.0],
    "soft": ["none", "few"],
    "odd": ["none"],
    "label_weight": [None, "number"],
    "pos_weight": [None, "number"],
    "sample_weight": [None, "float32"],
    "label_mask": [None, "labels"],
    "ignore_index": [None],
    "reduction": ["sum"],
    "gradient": ["auto"],
    "upstream": [1.0],
    "grad": [False],
    "bias": [False],
    "chunk_size": [None],
}


def _simpler(case: Case) -> Iterator[Case]:
    for name, values in _PLAIN.items():
        for value in values:
            if value == getattr(case, name):
                break
            yield dataclasses.replace(case, **{name: value})
    for name, _ in case.forms:
        yield dataclasses.replace(case, forms=tuple(form for form in case.forms if form[0] != name))
    for name in case.inference:
        yield dataclasses.replace(case, inference=tuple(other for other in case.inference if other != name))
    plain = LossSpec()
    for name, value in vars(plain).items():
        if getattr(case.spec, name) == value:
            continue
        try:
            yield dataclasses.replace(case, spec=case.spec.replace(**{name: value}))
        except ValueError:
            continue  # Pooling needs its weighting: that goes first.


def shrink(case: Case, wrong: str) -> tuple[Case, str]:
    """A case of plainer settings that fails likewise, and how; one setting after another, until none can go."""
    searching = True
    while searching:
        searching = False
        for simpler in _simpler(case):
            found = check(simpler)
            if found and kind(found).split(" ")[:2] == kind(wrong).split(" ")[:2]:
                case, wrong, searching = simpler, found, True
                break
    return case, wrong
