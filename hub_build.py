"""Writes the package in the layout of Hugging Face's kernel Hub: ``make hub``, into ``build/hub``.

The layout is that of https://huggingface.co/docs/kernels (``kernels`` 0.17): ``build.toml``, ``flake.nix``, ``CARD.md``
and ``torch-ext/<name>`` are what ``kernel-builder`` takes; ``build/torch-<backend>`` is what ``kernels.get_kernel``
loads (``build/torch-universal`` is the name that older releases had for all backends). Nothing is compiled, so that the
variants of all backends have the same files. All of it is made from the package; ``_hub_text`` changes what must
differ.
"""

from __future__ import annotations

import argparse
import ast
import base64
import hashlib
import json
import re
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
PACKAGE = "fused_balanced_loss"
NAME = PACKAGE.replace("_", "-")
BACKENDS = ("cpu", "cuda", "rocm")
LICENSE = "Apache-2.0"
# By the Hub's rule 0 is for kernels whose interface still changes.
VERSION = 0

# These integrate packages that a kernel of the Hub may not import, or start several processes.
LEFT_OUT = ("integrations", "label_parallel")
# Kernels that these alone use.
KERNELS_LEFT_OUT = ("mixed_targets.cpp",)
LAYERS = f"{PACKAGE}/integrations/hub_layers.py"
CODE = (".py", ".cpp", ".h")
# The Hub allows the standard library and PyTorch. PyTorch itself requires filelock, and Triton on Linux; NumPy is the
# one requirement more.
ALLOWED = {"torch", "triton", "filelock", "numpy"}
# Packages that need not be installed, imported inside of functions.
OPTIONAL = {"scipy"}

BUILD_TOML = """\
[general]
name = "{name}"
version = {version}
edition = 5
license = "{license}"
backends = [{backends}]

[general.hub]
repo-id = "{repo_id}"

# Triton compiles the GPU's kernels, and a compiler of the machine those of the CPU, both at first use.
[torch-noarch]
pyext = ["py", "cpp", "h"]
"""

FLAKE_NIX = """\
{{
  description = "{name}";
  inputs.kernel-builder.url = "github:huggingface/kernels";
  outputs = {{ self, kernel-builder }}:
    kernel-builder.lib.genKernelFlakeOutputs {{
      inherit self;
      path = ./.;
    }};
}}
"""

CARD = """\
---
library_name: kernels
license: apache-2.0
tags:
- kernels
- multi-label-classification
- long-tailed
---

# {name}

Multi-label losses for large and long-tailed label sets: the balanced losses of Huang et al., [Balancing Methods for
Multi-label Text Classification with Long-Tailed Class Distribution](https://aclanthology.org/2021.emnlp-main.643/)
(EMNLP 2021), and others of the same form. One pass over the logits computes loss and gradient: Triton kernels on GPUs,
a C++ kernel on CPUs.

## How to use

```python
import torch
from kernels import get_kernel

losses = get_kernel("{repo_id}", version={version}, trust_remote_code=["{repo_id}"])

statistics = losses.LabelStatistics.from_counts([300, 40, 7], num_samples=1000)  # of the training set
logits = torch.randn(8, 3, requires_grad=True)
targets = torch.randint(0, 2, (8, 3))
losses.balanced_loss(logits, targets, losses.LossSpec.preset("DB", corpus="reuters"), statistics).backward()
```

## Available functions

{functions}

## Available classes

{classes}

## Available layers

{layers}

## What it needs

* Python 3.10 and PyTorch 2.11 or newer; on a GPU Triton; NumPy.
* For the C++ kernel a compiler (`g++` or `clang++`) on the machine that runs it. It is built at first use and kept in a
  cache folder; without a compiler the same equations run in PyTorch operators, after one warning.
* The integrations of transformers, scikit-learn and timm, and sharding over processes, are in the Python package alone.

## What has been checked

A test of the package generates this layout, loads it by `kernels.get_local_kernel`, and compares loss and gradient with
the package's own. Not checked: the upload, the loading by `get_kernel`, the build by `kernel-builder` (it needs Nix),
and whether the Hub's review accepts NumPy as a requirement and a C++ kernel that is built at first use.

## Benchmarks

They are in the repository of the package: `make benchmark`.
"""

COMPATIBILITY = '''\
"""For older releases of `kernels`, which look for the kernel in a folder of its name."""

import importlib.util
import sys
from pathlib import Path

_ID = "{identifier}"
if _ID not in sys.modules:
    _spec = importlib.util.spec_from_file_location(_ID, Path(__file__).parents[1] / "__init__.py")
    sys.modules[_ID] = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(sys.modules[_ID])
__all__ = list(sys.modules[_ID].__all__)
globals().update({{name: getattr(sys.modules[_ID], name) for name in __all__}})
'''

OPS = '''\
"""The namespace of the operators, which no other build of this kernel has. `kernel-builder` writes its own."""

import torch

ops = torch.ops.{identifier}


def add_op_namespace_prefix(op_name):
    """The operator's name with its namespace."""
    return "{identifier}::" + op_name
'''


def sources() -> dict[str, str]:
    """The text of each file of the kernel, by its path in ``torch-ext/<name>``.

    Raises:
        ValueError: for a file that imports what a kernel of the Hub may not.
    """
    found: dict[str, str] = {}
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        name = path.relative_to(ROOT / PACKAGE).as_posix()
        # Python may follow the link to the kernels here or not; they are added below.
        if name.split("/")[0] not in (*LEFT_OUT, "kernels"):
            found[name] = _hub_text(name, path.read_text(encoding="utf-8"))
    for path in sorted((ROOT / "kernels").iterdir()):
        if path.suffix in CODE and path.name not in KERNELS_LEFT_OUT:
            found[f"kernels/{path.name}"] = path.read_text(encoding="utf-8")
    # It stands one folder higher in the layout of the Hub.
    found["layers.py"] = (ROOT / LAYERS).read_text(encoding="utf-8").replace("from ..", "from .")
    found["__init__.py"] += '\nfrom . import layers\n\n__all__ += ["layers"]\n'
    for name, text in found.items():
        if name.endswith(".py"):
            _check_imports(name, text)
    return found


def _hub_text(name: str, text: str) -> str:
    """A file of the package as it must stand in a kernel of the Hub.

    Several builds may be loaded in one process, each under a name of its own. So operators get the build's namespace,
    modules that are imported by name its name. Everything else is imported relatively already.
    """
    if name == "__init__.py":
        # It names submodules that are left out.
        text = re.sub(rf'"?\b(?:{"|".join(LEFT_OUT)})\b"?, ', "", text)
    text, operators = re.subn(rf'"{PACKAGE}::(\w+)"', r'add_op_namespace_prefix("\1")', text)
    if operators:
        dots = "." * (name.count("/") + 1)
        head, future, rest = text.partition("from __future__ import annotations\n")
        text = f"{head}{future}\nfrom {dots}_ops import add_op_namespace_prefix\n{rest}"
    return re.sub(rf'"{PACKAGE}(\.[\w.]+)"', r'__name__.split(".")[0] + "\1"', text)


def _check_imports(name: str, text: str) -> None:
    allowed = ALLOWED | set(sys.stdlib_module_names)
    tree = ast.parse(text)
    within = {node for found in ast.walk(tree) if isinstance(found, ast.FunctionDef) for node in ast.walk(found)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            modules = [node.module or ""]
        else:
            continue
        for module in modules:
            top = module.split(".")[0]
            if top not in (allowed | OPTIONAL if node in within else allowed):
                raise ValueError(f"{name}: imports {module}, which a kernel of the Hub may not")


def write(folder: Path, repo_id: str) -> None:
    """Writes the layout to ``folder``; what a former call wrote there goes.

    Raises:
        ValueError: for a ``folder`` that holds other things, and as :func:`sources`.
    """
    found = sources()
    if folder.exists() and any(folder.iterdir()) and not (folder / "build.toml").is_file():
        raise ValueError(f"folder: expected a new or empty folder, or one that this script wrote, got {folder}")
    shutil.rmtree(folder, ignore_errors=True)
    values = {"name": NAME, "repo_id": repo_id, "version": VERSION, "license": LICENSE}
    values["backends"] = ", ".join(f'"{backend}"' for backend in BACKENDS)
    _write(folder / "build.toml", BUILD_TOML.format(**values))
    _write(folder / "flake.nix", FLAKE_NIX.format(**values))
    _write(folder / "CARD.md", CARD.format(**values, **_interface(found)))
    for name, text in found.items():
        _write(folder / "torch-ext" / PACKAGE / name, text)
    content = hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:7]
    for backend in BACKENDS:
        _write_variant(folder / "build" / f"torch-{backend}", found, backend, f"_{PACKAGE}_{backend}_{content}")


def _write_variant(folder: Path, found: dict[str, str], backend: str, identifier: str) -> None:
    files = dict(found)
    files["_ops.py"] = OPS.format(identifier=identifier)
    files[f"{PACKAGE}/__init__.py"] = COMPATIBILITY.format(identifier=identifier)
    for name, text in files.items():
        _write(folder / name, text)
    metadata = {
        "name": NAME,
        "id": identifier,
        "version": VERSION,
        "license": LICENSE,
        "python-depends": [],
        "backend": {"type": backend},
        "digest": {"algorithm": "sha256", "files": {name: _digest(text) for name, text in sorted(files.items())}},
    }
    _write(folder / "metadata.json", json.dumps(metadata, indent=2) + "\n")


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _interface(found: dict[str, str]) -> dict[str, str]:
    """What the card lists: the public functions, classes and layers."""
    public = next(
        ast.literal_eval(node.value)
        for node in ast.parse(found["__init__.py"]).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    )
    layers = [node.name for node in ast.parse(found["layers.py"]).body if isinstance(node, ast.ClassDef)]

    def listed(names: list[str]) -> str:
        return "\n".join(f"- `{name}`" for name in names)

    return {
        "functions": listed([name for name in public if name.islower()]),
        "classes": listed([name for name in public if not name.islower()]),
        "layers": listed(layers),
    }


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the package in the layout of Hugging Face's kernel Hub.")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "hub", help="where to (default: build/hub)")
    parser.add_argument("--repo-id", default=f"your-name/{NAME}", help="the Hub's repository that it is meant for")
    arguments = parser.parse_args()
    write(arguments.folder, arguments.repo_id)
    print(f"{arguments.folder}: build.toml, flake.nix, CARD.md, torch-ext, and build for {', '.join(BACKENDS)}")


if __name__ == "__main__":
    main()
