"""The peers: what people use today, as functions from logits to a loss. A peer may be absent, with a reason."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import torch
from problems import Problem, formula
from torch import Tensor

from fused_balanced_loss import LossSpec, SparseTargets, balanced_loss

Loss = Callable[[Tensor], Tensor]
_TIMM_LOSSES = "timm_losses_alone"

OURS, EAGER, COMPILED, PLAIN = "ours", "formula, eager", "formula, torch.compile", "BCEWithLogitsLoss"
TIMM_DB, TIMM_ASL = "timm DistributionBalancedLoss", "timm AsymmetricLossMultiLabel"
FVCORE, TORCHVISION = "fvcore sigmoid_focal_loss", "torchvision sigmoid_focal_loss"

# What timm's DistributionBalancedLoss computes by default (the ECCV 2020 form), as a spec of ours.
TIMM_SPEC = LossSpec.preset("DB").replace(mu=0.2, kappa=0.05 / 2, positive_factor=2.0, negative_factor=2.0)


def spec_of(name: str, loss: str) -> LossSpec:
    """The loss that a contestant for the preset ``loss`` computes."""
    if name == PLAIN:
        return LossSpec.preset("BCE")
    return TIMM_SPEC if name == TIMM_DB else LossSpec.preset(loss, corpus="pubmed")


def names_for(loss: str) -> list[str]:
    """The peers for a preset, whether this machine has them or not."""
    library = {"DB": [TIMM_DB], "FL": [FVCORE, TORCHVISION], "ASL": [TIMM_ASL]}.get(loss, [])
    return [EAGER, COMPILED, *library, PLAIN]


@functools.cache
def absent() -> dict[str, str]:
    """The peers that this machine lacks, and why."""
    reasons = {name: _why_absent(load) for name, load in _LOADERS.items()}
    return {name: reason for name, reason in reasons.items() if reason}


def _why_absent(load: Callable[[], ModuleType]) -> str:
    try:
        load()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def our_targets(problem: Problem, form: str) -> Tensor | SparseTargets:
    """The targets [N, C] in the form "csr" (label ids), "uint8", "bool" or "float"."""
    if form == "csr":
        return problem.sparse
    return problem.dense.to({"uint8": torch.uint8, "bool": torch.bool, "float": torch.float32}[form])


def make_loss(name: str, problem: Problem, loss: str, *, form: str = "csr", impl: str = "auto") -> Loss:
    """The contestant ``name``. Peers get dense float targets, which are made beforehand; ours gets ``form``."""
    dense = problem.dense
    if name == OURS:
        targets, spec = our_targets(problem, form), spec_of(name, loss)
        return lambda z: balanced_loss(z, targets, spec, problem.statistics, impl=impl)
    if name in (EAGER, COMPILED):
        function: Callable[..., Tensor] = formula
        if name == COMPILED:
            # Otherwise a shape that was compiled before would make this one dynamic, which runs slower.
            torch._dynamo.reset()
            function = torch.compile(formula, dynamic=False)
        counts, num_samples, spec = problem.counts, problem.statistics.num_samples, spec_of(name, loss)
        return lambda z: function(z, dense, counts, num_samples, spec)
    if name == PLAIN:
        # Autocast computes it in float32 too.
        return lambda z: torch.nn.functional.binary_cross_entropy_with_logits(z.float(), dense)
    module = _LOADERS[name]()
    if name == TIMM_DB:
        theirs = module.DistributionBalancedLoss(problem.counts, problem.statistics.num_samples)
    elif name == TIMM_ASL:
        theirs = module.AsymmetricLossMultiLabel(reduction="mean")
    else:
        return lambda z: module.sigmoid_focal_loss(z.float(), dense, alpha=-1, gamma=2, reduction="mean")
    return lambda z: theirs(z, dense)


def timm_loss(file: str) -> ModuleType:
    """timm's module ``timm.loss.<file>``, without the package timm, which imports torchvision."""
    package = importlib.util.find_spec("timm")
    if package is None or not package.submodule_search_locations:
        raise ModuleNotFoundError("No module named 'timm'")
    if _TIMM_LOSSES not in sys.modules:
        # A package of that folder without its own __init__, so that the files may import each other.
        folder = ModuleType(_TIMM_LOSSES)
        folder.__path__ = [str(Path(place) / "loss") for place in package.submodule_search_locations]
        sys.modules[_TIMM_LOSSES] = folder
    return importlib.import_module(f"{_TIMM_LOSSES}.{file}")


_LOADERS: dict[str, Callable[[], ModuleType]] = {
    TIMM_DB: lambda: timm_loss("distribution_balanced_loss"),
    TIMM_ASL: lambda: timm_loss("asymmetric_loss"),
    FVCORE: lambda: importlib.import_module("fvcore.nn"),
    TORCHVISION: lambda: importlib.import_module("torchvision.ops"),
}
