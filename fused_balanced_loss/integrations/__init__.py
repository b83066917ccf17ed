"""The losses inside other libraries; none of these modules is imported by the package itself.

``fused_balanced_loss.integrations.NAME`` imports a module when it is first asked for.
"""

import importlib
from types import ModuleType

_MODULES = ("fused_head", "sklearn", "timm", "transformers", "update_callback")


def __getattr__(name: str) -> ModuleType:
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *_MODULES]
