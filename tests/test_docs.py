"""What the documentation refers to exists: names in docstrings, files behind links, versions, the reference's pages."""

import ast
import functools
import importlib
import pydoc
import re
import subprocess
import sys

import pytest
from test_structure import MODULES, PACKAGE, ROOT

import fused_balanced_loss

ROLE = re.compile(r":(?:class|func|meth|mod|attr|data|exc):`~?([\w.]+)`")
DIRECTIVE = re.compile(r"^\.\. (?:autoclass|autofunction):: ([\w.]+)$", re.MULTILINE)
LINK = re.compile(r"\]\(([^)\s]+)\)")
PAGES = [path for folder in ("", "benchmarks", "docs", "examples", "kernels") for path in (ROOT / folder).glob("*.md")]
PAGES += (ROOT / "examples" / "paper").rglob("*.md")
# A build imports torch and reads all docstrings.
SECONDS = 300


def docstrings(tree, enclosing=None):
    """Each docstring below ``tree``, with the name of the class that it stands in."""
    if isinstance(tree, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
        yield ast.get_docstring(tree) or "", tree.name if isinstance(tree, ast.ClassDef) else enclosing
    for node in ast.iter_child_nodes(tree):
        yield from docstrings(node, tree.name if isinstance(tree, ast.ClassDef) else enclosing)


def exists(name, module, enclosing):
    """Whether a reader who stands in ``module`` and a class of it finds ``name``."""
    if name.startswith("."):
        return pydoc.locate(module.__package__ + name) is not None
    places = [getattr(module, enclosing, None) if enclosing else None, module, fused_balanced_loss]
    for place in places:
        try:
            functools.reduce(getattr, name.split("."), place)
        except AttributeError:
            continue
        return True
    return pydoc.locate(name) is not None


@pytest.mark.parametrize("name", sorted(name for name in MODULES if ".kernels." not in name))
def test_names_in_docstrings_exist(name):
    tree = ast.parse(MODULES[name].read_text())
    referred = [(role, enclosing) for text, enclosing in docstrings(tree) for role in ROLE.findall(text)]
    if not referred:
        return
    module = importlib.import_module(name)
    assert [role for role, enclosing in referred if not exists(role, module, enclosing)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_to_files(page):
    links = [link.partition("#")[0] for link in LINK.findall(page.read_text())]
    local = [link for link in links if link and not re.match(r"[a-z]+:", link)]
    assert [link for link in local if not (page.parent / link).exists()] == []


def test_reference_has_all_public_names():
    text = "\n".join(path.read_text() for path in (ROOT / "docs").glob("*.rst"))
    assert (
        set(fused_balanced_loss.__all__) - {name.removeprefix(f"{PACKAGE}.") for name in DIRECTIVE.findall(text)}
        == set()
    )


def test_versions_are_one():
    version = fused_balanced_loss.__version__.partition(".dev")[0]
    assert re.search(r"^## \[([\d.]+)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[1] == version
    assert re.search(r"^version: (.*)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)[1] == version


@pytest.mark.slow
def test_reference_builds_without_a_broken_reference(tmp_path):
    pytest.importorskip("sphinx", reason="needs the extra docs")
    command = [sys.executable, "-m", "sphinx", "-q", "-n", "-W", "--keep-going", "docs", str(tmp_path / "html")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stderr[-3000:]
    page = (tmp_path / "html" / "losses.html").read_text()
    assert "balanced_loss" in page and "label_mask" in page


@pytest.mark.slow
def test_broken_reference_is_an_error(tmp_path):
    pytest.importorskip("sphinx", reason="needs the extra docs")
    source = tmp_path / "source"
    source.mkdir()
    (source / "conf.py").write_text((ROOT / "docs" / "conf.py").read_text())
    (source / "index.rst").write_text("Title\n=====\n\n:func:`fused_balanced_loss.no_such_function`\n")
    command = [sys.executable, "-m", "sphinx", "-q", "-n", "-W", str(source), str(tmp_path / "html")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode != 0
    assert "no_such_function" in done.stderr
