"""`--help`, wrong options and shell completion come at once: the large libraries load when work begins."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from commands import COMMAND_LINES, COMMANDS

ROOT = Path(__file__).parents[1]
SLOW = ["av", "cv2", "matplotlib", "onnx", "onnxruntime", "openvino", "torch", "torchvision"]
CODE = """
import contextlib, importlib, io, sys
module, _, function = sys.argv[1].partition(":")
main = getattr(importlib.import_module(module), function)
codes = []
for option in ("--help", "--no-such-option"):
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            codes.append(main([*sys.argv[2:], option]))
        except SystemExit as stop:
            codes.append(stop.code)
print(codes, *sorted(sys.modules), sep="\\n")
"""


def start(name: str, *words: str) -> tuple[str, set[str]]:
    """Exit codes of `--help` and of a wrong option, and every module that they imported."""
    command = [sys.executable, "-c", CODE, COMMANDS[name], *words]
    codes, *modules = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    return codes, set(modules)


def test_every_command_is_looked_at() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    section = text.partition("[project.scripts]\n")[2].partition("\n[")[0]
    assert dict(re.findall(r'^(\S+) = "(\S+)"', section, re.MULTILINE)) == COMMANDS | {
        "yolact-infer": "yolact_runtime.cli:program"  # which ends the process with what `main` returns
    }


@pytest.mark.parametrize("line", COMMAND_LINES, ids=" ".join)
def test_help_and_wrong_options_import_no_large_library(line: tuple[str, ...]) -> None:
    codes, modules = start(*line)
    assert codes == "[0, 2]"
    assert sorted(modules & set(SLOW)) == []


def test_the_runtime_needs_nothing_but_the_standard_library_for_its_options() -> None:
    _, modules = start("yolact-infer")
    assert not modules & {"numpy", "pycocotools", "rich"}


def test_wrong_values_of_options_come_at_once() -> None:
    code = f"""
import sys
from yolact_runtime.cli import main
code = main(["--engine", "none.onnx", "none.jpg", "--top-k", "0"])
print(code, sorted(set(sys.modules) & {{"numpy", *{SLOW}}}))
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "2 []\n" and "--top-k is 0; it must be 1 or more" in done.stderr


def completion(name: str, shell: str, *words: str) -> str:
    code = f"from {COMMANDS[name].replace(':', ' import ')}; raise SystemExit(main())"
    command = [sys.executable, "-c", code, *words, "--print-completion", shell]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.mark.skipif(not shutil.which("bash"), reason="no bash")
@pytest.mark.parametrize("name", COMMANDS)
def test_bash_completion(name: str) -> None:
    script = completion(name, "bash")
    subprocess.run(["bash", "-n"], input=script, check=True, text=True)
    assert f"_shtab_{name.replace('-', '_')} {name}\n" in script and "--quiet" in script


@pytest.mark.skipif(not shutil.which("bash"), reason="no bash")
def test_bash_completes_options_choices_files_and_folders(tmp_path: Path) -> None:
    script = completion("yolact-infer", "bash")
    assert {"--engine", "--jsonl", "--drop-late"} <= set(re.findall(r"--[\w-]+", script))
    (tmp_path / "model.onnx").touch()
    (tmp_path / "models").mkdir()
    asked = {"--scor": "--score-threshold", "--backend op": "openvino", "--engine mod": "model.onnx models"}
    asked["--output mod"] = "models"
    for line, expected in asked.items():
        words = ["yolact-infer", *line.split()]
        quoted = " ".join(map(repr, words))
        call = (
            f"COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; "
            f'_shtab_yolact_infer yolact-infer {words[-1]!r} {words[-2]!r}; echo "${{COMPREPLY[@]}}"'
        )
        done = subprocess.run(
            ["bash", "-c", f"{script}\n{call}"], cwd=tmp_path, check=True, capture_output=True, text=True
        )
        assert sorted(done.stdout.split()) == expected.split()


def test_zsh_completion_has_no_colon_in_a_metavar() -> None:
    (line,) = (text for text in completion("yolact-infer", "zsh").splitlines() if '"--image[' in text)
    assert line.strip() == '"--image[one image, and the file for its overlay]:IN[ OUT]:_files"'
