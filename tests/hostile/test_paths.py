"""Every option that takes a path, given paths that are none: one line, no traceback, no hang."""

from __future__ import annotations

import importlib
import json
import os
import shlex
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from commands import COMMANDS
from fake_onnx import NATIVE, native_arrays, write_onnx

from yolact_runtime import files

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="links, pipes and devices of POSIX"),
]

SECONDS = 60  # of a busy machine, libraries loaded
# {} is the path; everything else exists.
READS = """
infer --engine {} --output out images
infer --engine m.onnx --output out {}
infer --engine m.onnx --output out --images {}
infer --engine m.onnx --output out --image {}
infer --engine m.onnx --output out --annotations {} images
infer --engine m.onnx --output out --class-names {} images
data check {}
data fix {} --output fixed.json
data convert yolo {} out.json
data convert labelme {} out.json
data convert voc {} out.json
data convert masks {} out.json
data convert yolo labels out.json --images {}
data convert yolo labels out.json --names {}
data convert voc labels out.json --only {}
export --weights {} --output out.onnx
export inspect {}
bench compare {} b.json
bench compare b.json {}
bench roofline --onnx {} --threads 1
"""
WRITES = """
infer --engine m.onnx --output out --json {} images
infer --engine m.onnx --output out --coco-dataset {} images
infer --engine m.onnx --output out --jsonl {} images
infer --engine m.onnx --output out --arrays {} images
infer --engine m.onnx --output out --video-output {} images
data check a.json --json {}
data fix a.json --output {}
data convert yolo labels {}
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with one of everything that commands read."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("YOLACT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("YOLACT_TRUST_ENGINES", "1")
    monkeypatch.setattr(files, "READER_WAIT", 0.1)  # nobody reads the pipe
    for name in ("images", "labels", "set"):
        Path(name).mkdir()
    cv2.imwrite("images/a.png", np.zeros((16, 16, 3), np.uint8))
    Path("labels/a.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    annotations = {"images": [{"id": 1, "file_name": "a.png", "height": 16, "width": 16}], "annotations": [],
                   "categories": [{"id": 7, "name": "dog"}]}  # fmt: skip
    Path("a.json").write_text(json.dumps(annotations))
    Path("b.json").write_text("{}")
    write_onnx("m.onnx", native_arrays(), NATIVE)
    return tmp_path


def nasty_paths() -> Iterator[str]:
    """Paths that exist and are something else, and those that cannot exist."""
    Path("loop").symlink_to("loop")
    os.mkfifo("pipe")
    Path("closed").mkdir()
    Path("closed/file").write_text("{}")
    Path("closed").chmod(0)
    yield from ("a\0b", "a" * 300, "d/" * 2500, "loop", "loop/x", "closed", "closed/file", "pipe")
    yield from ("", ".", "/", "-", "images", "a.json", "a.json/x", "/dev/zero", "/proc/self/mem")
    yield from ("~nobody-here/x", "\udcff")


def problem(line: str, path: str, capsys: pytest.CaptureFixture[str]) -> str:
    """What is wrong with how a command ends; "" if nothing is."""
    name, *words = [word.format(path) if "{" in word else word for word in shlex.split(line)]
    module, _, main = COMMANDS[f"yolact-{name}"].partition(":")

    def too_long(*_: object) -> None:
        raise TimeoutError("out of patience")

    signal.signal(signal.SIGALRM, too_long)
    signal.alarm(SECONDS)
    try:
        code = getattr(importlib.import_module(module), main)(words)
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    finally:
        signal.alarm(0)
        shown = capsys.readouterr()
    if code not in (0, 1, 2) or "out of patience" in shown.err:
        return f"exit code {code}: {shown.err[-300:]}"
    if "Traceback" in shown.err or (code and "error" not in shown.err.lower()):
        return f"exit code {code}: {shown.err[-300:]}"
    return ""


@pytest.mark.parametrize("line", [*READS.split("\n")[1:-1], *WRITES.split("\n")[1:-1]])
def test_paths_that_are_none(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = {path[:20]: why for path in nasty_paths() if (why := problem(line, path, capsys))}
    Path("closed").chmod(0o700)
    assert not found, "\n".join(f"{path!r}: {why}" for path, why in found.items())
