"""The layout of Hugging Face's kernel Hub, loaded by its own package, gives the numbers of ours."""

import ast
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import fused_balanced_loss as package
from fused_balanced_loss.backends import build_lock

ROOT = Path(__file__).parents[1]
PROCESSOR = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(scope="module")
def hub_build():
    specification = importlib.util.spec_from_file_location("hub_build", ROOT / "hub_build.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folder(hub_build, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub") / "hub"
    hub_build.write(folder, "somebody/fused-balanced-loss")
    return folder


@pytest.fixture(scope="module")
def kernel(folder):
    return pytest.importorskip("kernels").get_local_kernel(folder)


@pytest.fixture
def batch():
    torch.manual_seed(0)
    logits = torch.randn(6, 90, requires_grad=True)
    return logits, (torch.rand(6, 90) < 0.1).float()


def statistics_of(module):
    return module.LabelStatistics.from_counts(torch.arange(1, 91), 200)


def value_and_gradient(module, logits, targets, **options):
    spec = module.LossSpec.preset("DB", corpus="reuters")
    loss = module.balanced_loss(logits, targets, spec, statistics_of(module), **options)
    return loss, *torch.autograd.grad(loss, logits)


@pytest.mark.parametrize("options", [{}, {"impl": "eager"}, {"gradient": "backward"}])
def test_same_numbers_as_the_package(kernel, batch, options):
    for ours, theirs in zip(
        value_and_gradient(package, *batch, **options), value_and_gradient(kernel, *batch, **options), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_classifier_and_modules(kernel, batch):
    features, targets = torch.randn(6, 16), batch[1]
    losses = []
    for module in (package, kernel):
        torch.manual_seed(1)
        head = module.LinearBalancedLoss(module.LossSpec.preset("FL"), statistics_of(module), num_features=16)
        losses.append(head(features, targets))
        losses.append(module.FocalLoss()(batch[0], module.SparseTargets.from_dense(targets)))
    torch.testing.assert_close(losses[:2], losses[2:])


def test_builds_do_not_share_modules_or_operators(kernel, batch):
    metadata = json.loads((Path(kernel.__file__).parent / "metadata.json").read_text())
    name = kernel.balanced_loss.__module__.split(".")[0]
    assert name == metadata["id"] == kernel.__name__ and kernel.LossSpec is not package.LossSpec
    operators = getattr(torch.ops, name)
    assert operators.loss.default.namespace == operators.linear_loss.default.namespace == name
    assert kernel.backends.operator.loss_operator._qualname == f"{name}::loss"
    assert package.backends.operator.loss_operator._qualname == "fused_balanced_loss::loss"


def test_module_found_by_name_is_of_the_build(kernel):
    pytest.importorskip("triton")
    assert kernel.backends.select.triton_backend().__name__ == f"{kernel.__name__}.backends.triton"


def test_operator_compiles(kernel, batch):
    logits, targets = batch
    spec = kernel.LossSpec.preset("FL")

    def loss(z):
        return kernel.balanced_loss(z, targets, spec)

    torch.testing.assert_close(torch.compile(loss, fullgraph=True, backend="aot_eager")(logits), loss(logits))


def test_public_names_are_those_of_the_package(kernel):
    assert sorted(kernel.__all__) == sorted([*package.__all__, "layers"])
    assert all(hasattr(kernel, name) for name in (*kernel.__all__, "metrics"))
    # These need other packages, or several processes.
    assert not hasattr(kernel, "integrations") and not hasattr(kernel, "label_parallel")


def test_card_lists_all_functions_and_layers(kernel, folder):
    card = (folder / "CARD.md").read_text()
    assert 'get_kernel("somebody/fused-balanced-loss"' in card and "{" not in card.replace("{1}", "")
    for name in (*package.__all__, "BCEWithLogitsLoss"):
        assert f"- `{name}`" in card


def test_example_of_the_card_runs(folder, monkeypatch):
    kernels = pytest.importorskip("kernels")
    monkeypatch.setattr(kernels, "get_kernel", lambda name, **options: kernels.get_local_kernel(folder))
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "CARD.md").read_text(), re.DOTALL)
    names = {}
    exec(code, names)
    assert names["logits"].grad.abs().sum() > 0


def test_configuration_and_digests_are_what_kernels_reads(hub_build, tmp_path):
    rust = pytest.importorskip("kernels._rust")
    # Nothing has been imported from this one: bytecode would be unknown files.
    folder = tmp_path / "hub"
    hub_build.write(folder, "somebody/fused-balanced-loss")
    assert [str(backend).lower() for backend in rust.Build.open(folder).general.backends] == ["cpu", "cuda", "rocm"]
    for variant in (folder / "build").iterdir():
        metadata = rust.Metadata.read_from_file(variant / "metadata.json")
        assert f"torch-{str(metadata.backend.backend_type).lower()}" == variant.name
        metadata.digest.validate(rust.Digest.hash_variant(rust.DigestAlgorithm.SHA256, variant))


def test_variants_are_of_the_sources(folder):
    source = folder / "torch-ext" / "fused_balanced_loss"
    names = sorted(path.relative_to(source).as_posix() for path in source.rglob("*.*") if path.suffix != ".pyc")
    assert {"kernels/logits_loss.cpp", "kernels/element.py", "kernels/vector_math.h", "layers.py"} <= set(names)
    for variant in (folder / "build").iterdir():
        assert all((variant / name).read_bytes() == (source / name).read_bytes() for name in names)


def test_imports_are_relative_or_allowed(folder, hub_build):
    for path in (folder / "torch-ext").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            named = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert not any(name.startswith("fused_balanced_loss") for name in named), path
    with pytest.raises(ValueError, match=r"arguments\.py: imports pandas\.core"):
        hub_build._check_imports("arguments.py", "import os\nfrom pandas.core import frame\n")


def test_older_releases_find_the_folder_of_its_name(folder):
    """In a process of its own: they import the folder, under another name."""
    variant = folder / "build" / "torch-cpu"
    code = (
        f"import sys; sys.path.insert(0, {str(variant)!r}); import fused_balanced_loss as f; "
        "assert f.balanced_loss.__module__.startswith('_fused_balanced_loss_cpu_'), f.balanced_loss.__module__; "
        "assert 'LossSpec' in f.__all__ and f.layers.BalancedLoss"
    )
    subprocess.run([sys.executable, "-s", "-c", code], cwd=folder, check=True, timeout=300)


def test_builds_run_beside_each_other_without_filelock(monkeypatch, tmp_path):
    """The Hub allows no requirement but PyTorch, and PyTorch may do without filelock one day."""
    monkeypatch.setattr(build_lock, "HAS_LOCKS", False)
    (tmp_path / "kernel.1.build").mkdir()
    with build_lock.build_lock(tmp_path, "kernel", 0.0) as one, build_lock.build_lock(tmp_path, "kernel", 0.0) as two:
        assert one != two and one.is_dir() and two.is_dir()
    # Without a lock nobody knows whether its process lives.
    assert [path.name for path in tmp_path.iterdir()] == ["kernel.1.build"]


def test_folder_of_others_is_kept(hub_build, tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(ValueError, match="expected a new or empty folder"):
        hub_build.write(tmp_path, "a/b")
    assert (tmp_path / "thesis.tex").exists()


class Ours(nn.Module):
    """A module of a user's, whose forward the Hub's layer replaces."""

    def __init__(self):
        super().__init__()
        self.spec = package.LossSpec.preset("FL")
        self.statistics, self.reduction = None, "mean"

    def forward(self, logits, targets):
        raise AssertionError("the layer was not taken")


def kernelized(folder, module, name):
    kernels = pytest.importorskip("kernels")
    kernels.replace_kernel_forward_from_hub(type(module), name)
    repository = kernels.LocalLayerRepository(folder, layer_name=name)
    # A mapping holds for the processor's kind, on GPUs and CPUs alike.
    with kernels.use_kernel_mapping({name: {PROCESSOR: repository}}, inherit_mapping=False):
        return kernels.kernelize(module, mode=kernels.Mode.TRAINING | kernels.Mode.TORCH_COMPILE, device=PROCESSOR)


def test_layer_replaces_a_forward(folder, kernel, batch):
    module = Ours()
    module.spec = kernel.LossSpec.preset("FL")
    logits, targets = batch
    loss = kernelized(folder, module, "BalancedLoss")(logits, targets)
    torch.testing.assert_close(loss, package.FocalLoss()(logits, targets))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("weights", [{}, {"weight": 90, "pos_weight": 90}, {"pos_weight": 1}])
def test_layer_for_bce_with_logits_loss(folder, batch, reduction, weights):
    class Plain(nn.BCEWithLogitsLoss):
        """So that PyTorch's own class stays as it is."""

    torch.manual_seed(2)
    given = {name: torch.rand(size) + 0.5 for name, size in weights.items()}
    logits, targets = batch
    expected = nn.BCEWithLogitsLoss(reduction=reduction, **given)(logits, targets)
    found = kernelized(folder, Plain(reduction=reduction, **given), "BCEWithLogitsLoss")(logits, targets)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found.sum(), logits), torch.autograd.grad(expected.sum(), logits))
