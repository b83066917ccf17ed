"""Puts the kernels into what is built, also from a checkout without links.

``fused_balanced_loss/kernels`` is a link to ``kernels``. On Windows, or in an archive without links, it may be a text
file or missing. So no build follows the link: the files of ``kernels`` are put in its place. A source archive has them
in both places.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_INSIDE = "fused_balanced_loss/kernels"
_NEEDED = {".py", ".cpp", ".h"}


class KernelsHook(BuildHookInterface[Any]):
    """Adds the files of ``kernels``; stops a build that would lack them."""

    PLUGIN_NAME = "kernels"
    copies: tempfile.TemporaryDirectory[str] | None = None

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Raises:
        RuntimeError: where ``kernels`` has no such files, or an editable install would not find them.
        """
        folder = Path(self.root, "kernels")
        files = [path for path in folder.glob("*") if path.is_file()]
        code = [path for path in files if path.suffix in _NEEDED]
        missing = _NEEDED - {path.suffix for path in code}
        if missing:
            raise RuntimeError(f"expected the kernels in {folder}, found no file of kind {', '.join(sorted(missing))}")
        if version == "editable":
            # It imports from the checkout itself.
            lost = [path.name for path in code if not Path(self.root, _INSIDE, path.name).is_file()]
            if lost:
                raise RuntimeError(
                    f"expected {_INSIDE} to be a link to ../kernels, found no {min(lost)} there. An editable install "
                    "needs the link: with git on Windows, set core.symlinks to true and check the folder out again"
                )
        elif self.target_name == "sdist":
            build_data["force_include"].update({str(path): f"kernels/{path.name}" for path in files})
            # hatchling takes a file to one place only.
            self.copies = tempfile.TemporaryDirectory()
            copied = {shutil.copy(path, self.copies.name): f"{_INSIDE}/{path.name}" for path in code}
            build_data["force_include"].update(copied)
        else:
            build_data["force_include"].update({str(path): f"{_INSIDE}/{path.name}" for path in code})

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Removes the copies."""
        if self.copies is not None:
            self.copies.cleanup()
