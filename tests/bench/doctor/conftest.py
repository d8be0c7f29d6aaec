"""Packages that are broken in some way, which child processes import in place of the real ones."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from yolact_bench.doctor import child


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


@pytest.fixture
def hanging(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder: the time of a child process is up when it makes `HANGING/<its id>` in it, not before."""
    folder = tmp_path / "hanging"
    folder.mkdir()
    monkeypatch.setenv("HANGING", str(folder))

    class Process(subprocess.Popen):
        def wait(self, timeout: float | None = None) -> int:
            end = time.monotonic() + 120
            while timeout is not None and self.poll() is None and time.monotonic() < end:
                if (folder / str(self.pid)).exists():
                    raise subprocess.TimeoutExpired(self.args, timeout)
                time.sleep(0.01)
            return super().wait(None if timeout is None else 0.1)

    known = SimpleNamespace(**{**vars(subprocess), "Popen": Process})
    monkeypatch.setattr(child, "subprocess", known)
    return folder
