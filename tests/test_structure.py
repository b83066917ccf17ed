"""The house: imports run one way, in no circle, and at the top of a file; files are short."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "fused_balanced_loss"

# A level a line, the lowest first; a name is a module or a folder of the package. A level imports from lower ones, and
# a folder from itself. Add a new module where it stands in this order.
LEVELS = (
    "kernels input_values first_order broadcast",
    "spec",
    "target_checks score_groups thresholding",
    "targets",
    "label_statistics collate",
    "label_weights class_weights metrics",
    "backends",
    "arguments weight_arguments kept_calls optim",
    "functional statistics_module",
    "modules classifier",
    "label_parallel integrations",
    "__init__",
)
# Packages that need not be installed, so that a function may import them.
OPTIONAL = {"triton", "scipy"}
MOST_LINES = 320


def modules():
    """The files of the package and the kernels, by the name that Python imports them as."""
    found = {}
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        # Python may follow the link to the kernels here or not; they are found below.
        if parts[1] != "kernels":
            found[".".join(parts).removesuffix(".__init__")] = path
    found |= {f"{PACKAGE}.kernels.{path.stem}": path for path in sorted((ROOT / "kernels").glob("*.py"))}
    return found


MODULES = modules()


class Imports(ast.NodeVisitor):
    """What a file imports: modules of the package, and whatever it imports inside a function."""

    def __init__(self, name):
        path = MODULES[name]
        self.package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        self.ours, self.in_functions, self.depth = set(), set(), 0
        self.visit(ast.parse(path.read_text()))

    def add(self, name):
        if self.depth:
            self.in_functions.add(name)
        if name.split(".")[0] == PACKAGE:
            self.ours.add(name)

    def visit_Import(self, node):
        for alias in node.names:
            self.add(alias.name)

    def visit_ImportFrom(self, node):
        base = node.module or ""
        if node.level:
            folder = self.package.split(".")
            above = folder[: len(folder) - node.level + 1]
            base = ".".join([*above, *([node.module] if node.module else [])])
        for alias in node.names:
            name = f"{base}.{alias.name}"
            self.add(name if name in MODULES else base)

    def visit_Constant(self, node):
        # importlib gets the modules that need Triton by their names.
        if isinstance(node.value, str) and node.value in MODULES and node.value != PACKAGE:
            self.ours.add(node.value)

    def visit_function(self, node):
        self.depth += 1
        self.generic_visit(node)
        self.depth -= 1

    visit_FunctionDef = visit_AsyncFunctionDef = visit_Lambda = visit_function  # noqa: N815


IMPORTS = {name: Imports(name) for name in MODULES}


def part(name):
    """The module or folder of LEVELS that a module belongs to."""
    return "__init__" if name == PACKAGE else name.split(".")[1]


def circle(graph):
    """The names along a circle of ``graph``, or None."""
    done, path = set(), []

    def follow(name):
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return None
        path.append(name)
        for other in sorted(graph[name]):
            found = follow(other)
            if found:
                return found
        done.add(path.pop())
        return None

    return next((found for name in graph if (found := follow(name))), None)


def test_all_imports_of_the_package_are_of_its_modules():
    missing = [(name, other) for name, found in IMPORTS.items() for other in found.ours if other not in MODULES]
    assert missing == []


def test_circle_is_found():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) is None


def test_no_circle_among_modules():
    assert circle({name: found.ours for name, found in IMPORTS.items()}) is None


def test_every_module_has_a_level():
    assert sorted({part(name) for name in MODULES}) == sorted(" ".join(LEVELS).split())


def test_imports_run_from_upper_levels_to_lower_ones():
    level = {name: number for number, names in enumerate(LEVELS) for name in names.split()}
    upward = [
        f"{name} imports {other}"
        for name, found in IMPORTS.items()
        for other in sorted(found.ours)
        if part(name) != part(other) and level[part(other)] >= level[part(name)]
    ]
    assert upward == []


@pytest.mark.parametrize("name", sorted(MODULES))
def test_functions_import_optional_packages_alone(name):
    assert {other for other in IMPORTS[name].in_functions if other.split(".")[0] not in OPTIONAL} == set()


def test_kernels_are_no_package():
    # A package called `kernels` on the path would stand before Hugging Face's of the same name.
    assert not (ROOT / "kernels" / "__init__.py").exists()


def test_kernels_import_triton_and_each_other_alone():
    for path in (ROOT / "kernels").glob("*.py"):
        found = set(re.findall(r"^(?:import|from) ([\w.]+)", path.read_text(), re.MULTILINE))
        assert all(name.startswith(".") or name.split(".")[0] == "triton" for name in found), path.name


def test_files_are_short():
    files = [*MODULES.values(), *(ROOT / "kernels").glob("*.cpp"), *(ROOT / "kernels").glob("*.h")]
    lengths = {path.relative_to(ROOT).as_posix(): len(path.read_text().splitlines()) for path in files}
    assert {name: length for name, length in lengths.items() if length > MOST_LINES} == {}
