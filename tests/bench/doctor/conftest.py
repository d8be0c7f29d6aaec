"""Packages that are broken in some way, which child processes import in place of the real ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`broken(package, code)` puts a package with this code before the installed one, for child processes."""
    folder = tmp_path / "packages"
    monkeypatch.syspath_prepend(folder)

    def put(package: str, code: str) -> None:
        (folder / package).mkdir(parents=True)
        (folder / package / "__init__.py").write_text(code, encoding="utf-8")

    return put


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`modules(name, code)` writes a module that child processes can import."""
    monkeypatch.syspath_prepend(tmp_path)

    def put(name: str, code: str) -> None:
        (tmp_path / f"{name}.py").write_text(code, encoding="utf-8")

    return put
