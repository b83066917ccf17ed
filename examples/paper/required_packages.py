"""Packages of the extra ``examples``: what is not installed is said before anything long begins."""

import sys
from importlib import import_module

INSTALLED_AS = {"sklearn": "scikit-learn"}


def require(*modules: str) -> None:
    """Ends the command with a message where one of the modules cannot be imported."""
    module = ""
    try:
        for module in modules:
            import_module(module)
    except ImportError as error:
        sys.exit(
            f"error: {INSTALLED_AS.get(module, module)} cannot be imported ({error}); "
            "pip install 'fused_balanced_loss[examples]' installs all that the examples need"
        )


# What every command needs.
require(
    "fused_balanced_loss",
    "filelock",
    "joblib",
    "matplotlib",
    "pandas",
    "psutil",
    "pydantic",
    "rich",
    "safetensors",
    "scipy",
    "sklearn",
    "tabulate",
)
