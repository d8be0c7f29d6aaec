"""`yolact-bench` without its heavy packages: help, errors, and a whole run with `--report`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from fake_onnx import RUNTIME, runtime_arrays, write_onnx

from yolact_bench.cli import COMMANDS

HEAVY = {"torch", "onnxruntime", "cv2", "matplotlib", "onnx", "scipy", "openvino"}
# yolact_runtime's own imports are tested with it.
HELP = f"""
import sys, yolact_runtime.commandline
before = set(sys.modules)
from yolact_bench import cli
codes = [cli.main([*sys.argv[1:], option]) for option in ("--help", "--no-such-option")]
print(codes, {HEAVY!r} & (set(sys.modules) - before))
"""


def run(code: str, *words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd)


WORDS = [(), *((name,) for name in COMMANDS)]


@pytest.mark.parametrize("words", WORDS, ids=str)
def test_help_and_errors_import_nothing_heavy(words: tuple[str, ...]) -> None:
    done = run(HELP, *words)
    assert done.stdout.splitlines()[-1] == "[0, 2] set()", done.stderr
    assert done.stdout.startswith(f"usage: {' '.join(['yolact-bench', *words])}")


def test_help_lists_the_subcommands() -> None:
    text = run("from yolact_bench import cli; cli.main(['--help'])").stdout
    for name, (_, sentence) in COMMANDS.items():
        assert name in text and sentence.split(",")[0] in " ".join(text.split())


def test_a_report_needs_no_torch(tmp_path: Path) -> None:
    """A runtime-only install with the extra `bench`."""
    write_onnx(tmp_path / "heads.onnx", runtime_arrays(), RUNTIME)
    code = """
import sys
class Blocked:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name in ("torch", "torchvision", "onnx", "yaml"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Blocked)
from yolact_bench import cli
words = ["--engine", "heads.onnx", "--seconds", "0.05", "--no-cold", "--pipeline", "--report", "r.html"]
sys.exit(cli.main(words))
"""
    done = run(code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "<svg" in (tmp_path / "r.html").read_text(encoding="utf-8")
