"""The contestants of benchmarks/test_factory.py do the same work."""

import importlib.util
import sys
from pathlib import Path

import pytest
from timm_losses import timm_module

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def own_records():
    """Another test of this process may have imported the examples' module ``records``, or may do so later."""
    before = sys.modules.pop("records", None)
    yield
    sys.modules.pop("records", None)
    if before is not None:
        sys.modules["records"] = before


@pytest.mark.usefixtures("own_records")
@pytest.mark.parametrize("variant", ["0 and 1", "smoothed", "soft"])
@pytest.mark.parametrize("loss", ["bce", "asl", "poly", "db"])
def test_contestants_agree(loss, variant, monkeypatch, pytestconfig):
    timm_module("_loss_factory")
    # That of benchmarks/conftest.py.
    pytestconfig.addinivalue_line("markers", "full: measured with --full only")
    monkeypatch.syspath_prepend(BENCHMARKS)
    import problems

    # Not by its name, which a file of tests may have.
    specification = importlib.util.spec_from_file_location("factory_benchmark", BENCHMARKS / "test_factory.py")
    factory = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(factory)
    # It compares each with ours.
    names = [one.name for one in factory.contestants(problems.make_problem(4, 60), loss, variant)]
    assert names == ["ours", *(["ours, label ids"] if variant != "soft" else []), "timm"]
