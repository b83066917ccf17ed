"""The wheel and the source archive: what stands in them, also from a checkout without links, and that they compute
where nothing else of the repository is."""

import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
INSIDE = "fused_balanced_loss/kernels"
CODE = (".py", ".cpp", ".h")
SECONDS = 600
NOT_COPIED = shutil.ignore_patterns(
    ".*_cache", ".git", ".venv", "__pycache__", "build", "dist", "runs", "results", "*.so"
)


def build(kind, source, folder):
    command = [sys.executable, "-m", "build", f"--{kind}", "--no-isolation", "--outdir", str(folder), str(source)]
    return subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)


def built(kind, source, folder):
    pytest.importorskip("build")
    pytest.importorskip("hatchling")
    done = build(kind, source, folder)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return next(Path(folder).glob("*.whl" if kind == "wheel" else "*.tar.gz"))


def names(wheel):
    return sorted(zipfile.ZipFile(wheel).namelist())


def kernel_names():
    return sorted(f"{INSIDE}/{path.name}" for path in (ROOT / "kernels").iterdir() if path.suffix in CODE)


def computes(site, folder):
    """Whether a loss is computed by the package in ``site``, which has all kernels, and by no other."""
    code = (
        "import torch, fused_balanced_loss as f; "
        f"assert f.__file__.startswith({str(site)!r}), f.__file__; "
        "import fused_balanced_loss.kernels.element; "
        "s = f.LabelStatistics.from_counts([3, 50], 100, mu=0.9); "
        "z = torch.zeros(2, 2, requires_grad=True); y = torch.eye(2); "
        "d = f.DistributionBalancedLoss(s)(z, y); d.backward(); "
        "assert z.grad.abs().sum() > 0; "
        "t = f.balanced_loss(z, y, f.LossSpec.preset('DB'), s, impl='triton') if torch.cuda.is_available() or "
        "__import__('os').environ.get('TRITON_INTERPRET') == '1' else d; "
        "assert abs(t - d) < 1e-6"
    )
    environment = os.environ | {"PYTHONPATH": str(site)}
    command = [sys.executable, "-P" if sys.version_info >= (3, 11) else "-s", "-c", code]
    return subprocess.run(command, cwd=folder, env=environment, timeout=SECONDS).returncode == 0


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return built("wheel", ROOT, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sdist")
    archive = built("sdist", ROOT, folder)
    with tarfile.open(archive) as file:
        assert len(file.getnames()) == len(set(file.getnames())), "a file stands in the archive twice"
        # Where Python can, it refuses what lies outside of the folder.
        file.extractall(folder / "unpacked", **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    return next((folder / "unpacked").iterdir())


@pytest.fixture
def checkout(tmp_path):
    """A copy of the repository, without the link and without records of runs."""
    copy = tmp_path / "checkout"
    shutil.copytree(ROOT, copy, symlinks=True, ignore=NOT_COPIED)
    # In an unpacked source archive it is a folder.
    if (copy / INSIDE).is_symlink():
        (copy / INSIDE).unlink()
    else:
        shutil.rmtree(copy / INSIDE)
    return copy


def test_only_one_top_level_name_and_the_kernels_inside(wheel):
    assert {name.split("/")[0] for name in names(wheel) if ".dist-info/" not in name} == {"fused_balanced_loss"}
    assert [name for name in names(wheel) if name.startswith(INSIDE)] == kernel_names()
    assert {Path(name).suffix for name in kernel_names()} == set(CODE)
    assert "fused_balanced_loss/py.typed" in names(wheel)


def test_imports_and_computes_from_the_wheel_alone(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    assert computes(tmp_path / "site", tmp_path)


def test_source_archive_has_what_the_tests_need(unpacked):
    for name in (
        "Makefile",
        "constraints.txt",
        ".ci/run",
        "README.md",
        "LICENSE",
        "pyproject.toml",
        "hatch_build.py",
        "hub_build.py",
    ):
        assert (unpacked / name).is_file(), name
    for folder in ("tests", "benchmarks", "examples", "kernels", "fused_balanced_loss"):
        ours = {path.relative_to(ROOT) for path in (ROOT / folder).rglob("*.[pch]*") if path.suffix in CODE}
        theirs = {path.relative_to(unpacked) for path in (unpacked / folder).rglob("*.[pch]*")}
        assert ours <= theirs, ours - theirs
    for path in (unpacked / "kernels").iterdir():
        if path.suffix in CODE:
            assert path.read_bytes() == (unpacked / INSIDE / path.name).read_bytes()


def test_wheel_of_the_source_archive_is_the_same(wheel, unpacked, tmp_path):
    again = built("wheel", unpacked, tmp_path)
    assert names(again) == names(wheel)
    zipfile.ZipFile(again).extractall(tmp_path / "site")
    assert computes(tmp_path / "site", tmp_path)


@pytest.mark.parametrize("link", ["text", "missing", "copy"])
def test_checkout_without_links_gives_the_same_wheel(wheel, checkout, tmp_path, link):
    """On Windows git makes a link a text file that holds its target."""
    if link == "text":
        (checkout / INSIDE).write_text("../kernels")
    elif link == "copy":
        shutil.copytree(checkout / "kernels", checkout / INSIDE)
    assert names(built("wheel", checkout, tmp_path)) == names(wheel)


def test_source_archive_of_a_checkout_without_links(checkout, tmp_path):
    (checkout / INSIDE).write_text("../kernels")
    with tarfile.open(built("sdist", checkout, tmp_path)) as file:
        found = [name.partition("/")[2] for name in file.getnames()]
    assert len(found) == len(set(found))
    assert [name for name in sorted(found) if name.startswith(INSIDE)] == kernel_names()
    assert {name.replace(INSIDE, "kernels") for name in kernel_names()} <= set(found)


@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_build_without_kernels_fails(checkout, tmp_path, kind):
    pytest.importorskip("build")
    pytest.importorskip("hatchling")
    for path in (checkout / "kernels").glob("*.cpp"):
        path.unlink()
    done = build(kind, checkout, tmp_path / "out")
    assert done.returncode != 0 and "found no file of kind .cpp" in done.stdout + done.stderr
    assert not list(tmp_path.glob("out/*"))


def test_editable_install_needs_the_link(checkout):
    pytest.importorskip("hatchling")
    specification = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    data = {"force_include": {}}
    hook = module.KernelsHook(str(checkout), {}, None, None, "", "wheel")
    (checkout / INSIDE).write_text("../kernels")
    with pytest.raises(RuntimeError, match=r"to be a link to \.\./kernels, found no .* there"):
        hook.initialize("editable", data)
    (checkout / INSIDE).unlink()
    shutil.copytree(checkout / "kernels", checkout / INSIDE)
    hook.initialize("editable", data)
    assert data == {"force_include": {}}


def test_transformers_imports_bert_with_the_repository_as_working_directory():
    """A top-level package called kernels would shadow the one that transformers imports."""
    pytest.importorskip("transformers")
    pytest.importorskip("kernels", reason="Hugging Face's kernels is not installed")
    subprocess.run(
        [sys.executable, "-c", "from transformers import BertForSequenceClassification"],
        cwd=ROOT,
        check=True,
        timeout=SECONDS,
    )
    assert not (ROOT / "kernels" / "__init__.py").exists()
