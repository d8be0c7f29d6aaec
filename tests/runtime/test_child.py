"""Child processes run our modules, never those of the current folder, and within limits."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from yolact_runtime.child import module_command


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module `work` to run; the current folder has modules that hide others."""
    hostile, own = tmp_path / "hostile", tmp_path / "own"
    for folder in (hostile, own):
        folder.mkdir()
    for name in ("json", "runpy", "work", "yolact_runtime"):
        (hostile / f"{name}.py").write_text("raise SystemExit(66)")
    monkeypatch.chdir(hostile)
    monkeypatch.setattr(sys, "path", ["", str(own), *sys.path])
    return own / "work.py"


def test_the_current_folder_has_no_modules(program: Path) -> None:
    program.write_text("import sys, yolact_runtime\nprint(sys.argv[1:])\nsys.exit(7)")
    done = subprocess.run(module_command("work", "a b", "-c"), capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (7, "['a b', '-c']\n"), done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="no limits")
@pytest.mark.parametrize(
    ("work", "code"),
    [("bytearray(400 << 20)", 1), ("while True: pass", -24), ("open('f', 'wb').write(bytes(300 << 20))", 1)],
    ids=["memory", "time", "file"],
)
def test_limits(program: Path, work: str, code: int) -> None:
    program.write_text(f"from yolact_runtime.child import limit_process\nlimit_process(200 << 20, 1)\n{work}")
    done = subprocess.run(module_command("work"), capture_output=True, text=True)
    assert done.returncode == code, done.stderr
