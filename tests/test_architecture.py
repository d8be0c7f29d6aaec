"""Imports run one way: yolact_bench -> yolact_export -> yolact -> yolact_runtime."""

from __future__ import annotations

import ast
import shutil
import subprocess
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


def imported(path: Path) -> set[str]:
    """Top-level names that a file imports anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.partition(".")[0])
    return names


@pytest.mark.parametrize("package", ORDER)
def test_no_import_points_the_wrong_way(package: str) -> None:
    files = list(FOLDERS[package].rglob("*.py"))
    assert files
    later = set(ORDER[ORDER.index(package) + 1 :])
    wrong = {path.name: found for path in files if (found := imported(path) & later)}
    assert not wrong


def test_every_package_is_shipped() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    for package, folder in FOLDERS.items():
        for init in folder.rglob("__init__.py"):
            name = ".".join([package, *init.parent.relative_to(folder).parts])
            assert f'"{name}"' in text


def test_no_large_binary_is_tracked() -> None:
    """Media belong in docs/images, reference values in tests/data; anything else was committed by accident."""
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
