"""timm's losses where timm is installed. They are loaded without the package timm, which imports torchvision."""

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

VERSION = "1.0.31"


def timm_module(name):
    """The module ``timm.loss.<name>``, or a skipped test with the reason."""
    package = importlib.util.find_spec("timm")
    if package is None or not package.submodule_search_locations:
        pytest.skip(f"timm is not installed (pip install --no-deps timm=={VERSION})")
    folder = Path(package.submodule_search_locations[0])
    version = (folder / "version.py").read_text().split("'")[1]
    if version != VERSION:
        pytest.skip(f"expected timm {VERSION}, whose losses ours are compared with, found {version}")
    parent = "timm_loss_alone"
    if parent not in sys.modules:
        # A package without the __init__ of timm.loss, so that the relative imports within it work.
        module = ModuleType(parent)
        module.__path__ = [str(folder / "loss")]
        sys.modules[parent] = module
    return importlib.import_module(f"{parent}.{name}")
