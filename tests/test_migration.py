"""Each row of docs/migration.rst: what stands on its left and on its right gives the same numbers."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from timm_losses import timm_module

import fused_balanced_loss
from fused_balanced_loss import LabelStatistics
from fused_balanced_loss.integrations.timm import create_classification_loss

ROOT = Path(__file__).parents[1]
ROW = re.compile(r"^   \* - ``(.+)``\n     - ``(.+)``$", re.MULTILINE)
ROWS = ROW.findall((ROOT / "docs" / "migration.rst").read_text())
N, C = 9, 23
TOLERANCE = 1e-5


def torchvision_or_skip():
    try:
        import torchvision
    except Exception as error:
        pytest.skip(f"torchvision does not import: {type(error).__name__}: {error}")
    return torchvision


def focal_loss(inputs, targets, alpha=0.25, gamma=2, reduction="none"):
    """The equations of RetinaNet (Lin et al., ICCV 2017, section 3), for positives and negatives by themselves."""
    result = torch.zeros_like(inputs)
    for label, factor in ((1, alpha), (0, 1 - alpha)):
        right = 1 / (1 + torch.exp(-inputs if label else inputs))
        part = -((1 - right) ** gamma) * right.log() * (factor if alpha >= 0 else 1)
        result = result + torch.where(targets == label, part, 0.0)
    return result if reduction == "none" else getattr(result, reduction)()


TIMM_MODULES = {
    "BinaryCrossEntropy": "binary_cross_entropy",
    "AsymmetricLossMultiLabel": "asymmetric_loss",
    "PolyBinaryCrossEntropy": "poly_loss",
    "DistributionBalancedLoss": "distribution_balanced_loss",
    "create_classification_loss": "_loss_factory",
    "compute_class_weights": "class_weights",
}


class TimmLosses:
    """timm.loss, whose modules are loaded when a row asks for a loss of theirs."""

    def __getattr__(self, name):
        return getattr(timm_module(TIMM_MODULES[name]), name)


def names():
    """What the rows' expressions refer to."""
    generator = torch.Generator().manual_seed(0)
    counts = torch.randint(1, 400, (C,), generator=generator)
    public = {name: getattr(fused_balanced_loss, name) for name in fused_balanced_loss.__all__}
    return public | {
        "create_classification_loss": create_classification_loss,
        "torch": torch,
        "F": torch.nn.functional,
        "timm": SimpleNamespace(loss=TimmLosses()),
        "C": C,
        "z": (torch.randn(N, C, generator=generator) * 2).requires_grad_(),
        "y": (torch.rand(N, C, generator=generator) < 0.2).float(),
        "weight": torch.rand(C, generator=generator) + 0.2,
        "pos_weight": torch.rand(C, generator=generator) * 4,
        "counts": counts,
        "num_samples": 1000,
        "statistics": LabelStatistics.from_counts(counts, 1000),
    }


def results(expression, known):
    """Value, and gradient where there is one, of a loss or of a module that computes it."""
    found = eval(expression, known)
    value = found(known["z"], known["y"]) if callable(found) else found
    if not value.requires_grad:
        return [value]
    return [value, *torch.autograd.grad(value.sum(), known["z"])]


def assert_same(before, after, known):
    for mine, other in zip(results(after, known), results(before, known), strict=True):
        assert mine.shape == other.shape
        assert (mine.double() - other.double()).abs().max() <= TOLERANCE * other.double().abs().max()


def test_rows_are_found():
    assert len(ROWS) == (ROOT / "docs" / "migration.rst").read_text().count("   * - ") - 3 == 19


@pytest.mark.parametrize(("before", "after"), ROWS, ids=[before for before, _ in ROWS])
def test_row(before, after):
    known = names()
    if "torchvision" in before:
        known["torchvision"] = torchvision_or_skip()
    assert_same(before, after, known)


@pytest.mark.parametrize(("before", "after"), [row for row in ROWS if "torchvision" in row[0]])
def test_focal_loss_against_its_paper(before, after):
    """Also where torchvision does not import."""
    assert_same(
        before, after, names() | {"torchvision": SimpleNamespace(ops=SimpleNamespace(sigmoid_focal_loss=focal_loss))}
    )
