"""Imports run one way, yolact_bench -> yolact_export -> yolact -> yolact_runtime, and never in a circle."""

from __future__ import annotations

import ast
import shutil
import subprocess
from collections.abc import Collection
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = {
    "yolact_runtime": ROOT / "runtime/yolact_runtime",
    "yolact": ROOT / "yolact",
    "yolact_export": ROOT / "export/yolact_export",
    "yolact_bench": ROOT / "benchmarks/yolact_bench",
}
ORDER = list(FOLDERS)
# Methods of `Engine`, `Candidate` and `Client`, documented there.
OVERRIDES = {"detect", "prepare", "end_to_end", "predict_prepared", "infer", "config"}


def imported(path: Path) -> set[str]:
    """Top-level names that a file imports anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.partition(".")[0])
    return names


def module_files() -> dict[str, Path]:
    """Every module of the four packages, by its dotted name."""
    return {
        ".".join([package, *path.relative_to(folder).with_suffix("").parts]).removesuffix(".__init__"): path
        for package, folder in FOLDERS.items()
        for path in folder.rglob("*.py")
    }


def project_imports(name: str, path: Path, modules: Collection[str]) -> set[str]:
    """The modules of this project that a module imports, also inside functions and for type checking only.

    The strings that `importlib.import_module` and the table of backends take count as well. A package's
    `__init__` does not count for the modules inside it, which it runs before anyway.
    """
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")
            base = [".".join(parents[: len(parents) - node.level + 1])] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                inner = f"{source}.{alias.name}"
                found.add(inner if inner in modules else source)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "Backend")):
            first = ast.unparse(node.args[0]) if node.args else ""
            found.add(first.strip("'").partition(":")[0])
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text(encoding="utf-8")))
    return (found & set(modules)) - {name}


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that import each other, directly or through others."""

    def reachable(start: str) -> set[str]:
        seen: set[str] = set()
        todo = [start]
        while todo:
            for name in graph[todo.pop()] - seen:
                seen.add(name)
                todo.append(name)
        return seen

    reach = {name: reachable(name) for name in graph}
    groups = {
        tuple(sorted(n for n in reach[name] if name in reach[n])) for name in graph if name in reach[name]
    }
    return [list(group) for group in sorted(groups)]


def test_no_modules_import_each_other_in_a_circle() -> None:
    files = module_files()
    graph = {name: project_imports(name, path, files.keys()) for name, path in files.items()}
    assert sum(map(len, graph.values())) > len(graph)
    # The table of backends only names its engines, which read it: `load` imports them.
    graph["yolact_runtime.engines.backends"] = {
        name
        for name in graph["yolact_runtime.engines.backends"]
        if not name.startswith("yolact_runtime.engines.")
    }
    assert circles(graph) == []


def test_imports_inside_functions_strings_and_type_checking_count(tmp_path: Path) -> None:
    sources = {
        "p.a": "def f():\n    from p import b\n",
        "p.b": "import importlib\nimportlib.import_module('p.c')\n",
        "p.c": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import p.d\n",
        "p.d": "import os, p.a_b\n",
    }
    graph = {}
    for name, text in sources.items():
        file = tmp_path / f"{name}.py"
        file.write_text(text)
        graph[name] = project_imports(name, file, sources.keys())
    assert graph == {"p.a": {"p.b"}, "p.b": {"p.c"}, "p.c": {"p.d"}, "p.d": set()}
    assert circles(graph) == []
    graph["p.c"].add("p.a")
    assert circles(graph) == [["p.a", "p.b", "p.c"]]


@pytest.mark.parametrize("package", ORDER)
def test_no_import_points_the_wrong_way(package: str) -> None:
    files = list(FOLDERS[package].rglob("*.py"))
    assert files
    later = set(ORDER[ORDER.index(package) + 1 :])
    wrong = {path.name: found for path in files if (found := imported(path) & later)}
    assert not wrong


@pytest.mark.parametrize(
    ("folder", "below"),
    [
        ("measure", set()),
        ("report", {"measure"}),
        ("roofline", {"measure", "report", "options"}),
        ("peers", {"measure", "options"}),
        ("gpu_checks", {"doctor", "kernel_measurements", "kernels", "measure", "peers", "roofline"}),
        ("tables", {"doctor", "measure"}),
    ],
)
def test_folders_of_the_benchmarks_import_only_what_is_below(folder: str, below: set[str]) -> None:
    modules = module_files()
    prefix = f"yolact_bench.{folder}"
    used = {
        other.split(".")[1]
        for name, path in modules.items()
        if name.startswith(prefix)
        for other in project_imports(name, path, modules.keys())
        if other.startswith("yolact_bench.") and not other.startswith(prefix)
    }
    assert used <= below


def test_every_package_is_shipped() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    for package, folder in FOLDERS.items():
        for init in folder.rglob("__init__.py"):
            name = ".".join([package, *init.parent.relative_to(folder).parts])
            assert f'"{name}"' in text


def test_no_large_binary_is_tracked() -> None:
    """Media belong in docs/images and reference values in tests/data."""
    if not shutil.which("git") or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True).stdout
    paths = [Path(name) for name in listed.decode().split("\0") if name]
    assert paths
    large = [
        str(path)
        for path in paths
        if (ROOT / path).is_file()
        and not path.is_relative_to("docs/images")
        and not path.is_relative_to("tests/data")
        and b"\0" in (content := (ROOT / path).read_bytes())
        and len(content) > 100_000
    ]
    assert not large


def test_functions_over_ten_lines_have_a_docstring() -> None:
    """Except `__init__`, which the docstring of its class covers, and what overrides a documented method."""
    missing = []
    for name, path in module_files().items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.name != "__init__" and not ast.get_docstring(node):
                lines = (node.end_lineno or 0) - node.lineno + 1
                if lines > 10 and node.name not in OVERRIDES:
                    missing.append(f"{name}.{node.name} ({lines} lines)")
    assert not missing
