"""Commands whose outputs are their inputs, or cannot be written: refused before the work, with one line."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest

from yolact.cli import data, demo, evaluate, train
from yolact_bench import cli as bench
from yolact_export import cli as export

Capture = pytest.CaptureFixture[str]
COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "eval": evaluate.main,
    "data": data.main,
    "train": train.main,
    "demo": demo.main,
    "export": export.main,
    "bench": bench.main,
}
posix = pytest.mark.skipif(sys.platform == "win32", reason="links and pipes of POSIX")


def run(line: str) -> int:
    name, *arguments = shlex.split(line)
    return COMMANDS[name](arguments)


def content() -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Files of every kind; those of models are not valid, as no command should open them."""
    monkeypatch.chdir(tmp_path)
    for name in (
        "e.onnx",
        "e.xml",
        "e.bin",
        "e.engine",
        "e.engine.json",
        "c.pth",
        "names.txt",
    ):
        Path(name).write_text(name)
    image = {"id": 1, "file_name": "1.png", "height": 20, "width": 30}
    box = {"bbox": [2, 2, 9, 9], "segmentation": [[2, 2, 11, 2, 11, 11, 2, 11]], "area": 81, "iscrowd": 0}
    whole = {
        "images": [image],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, **box}],
        "categories": [{"id": 1, "name": "cat"}],
    }
    for split in ("train", "val"):
        Path("d", split).mkdir(parents=True)
        cv2.imwrite(f"d/{split}/1.png", np.zeros((20, 30, 3), np.uint8))
        cv2.imwrite(f"d/{split}/1_1.jpg", np.zeros((20, 30, 3), np.uint8))
        Path(f"d/{split}.json").write_text(json.dumps(whole))
    sections = [f"{split}: {{images: d/{split}, annotations: d/{split}.json}}" for split in ("train", "val")]
    Path("d.yaml").write_text("\n".join(sections))
    two = [image, {**image, "id": 2, "file_name": "1_1.jpg"}]
    Path("two.json").write_text(json.dumps({**whole, "images": two}))
    Path("lm").mkdir()
    Path("reports").mkdir()
    cv2.imwrite("reports/confusion.png", np.zeros((20, 30, 3), np.uint8))
    Path("lm/a.json").write_text(
        json.dumps({"shapes": [], "imagePath": "a.png", "imageHeight": 9, "imageWidth": 9})
    )
    Path("lm/a.txt").write_text("0 0 0 1 0 1 1")
    return tmp_path


DATA = "--images d/val --annotations d/val.json"


@pytest.mark.parametrize(
    "line",
    [
        f"eval --engine e.onnx {DATA} --json e.onnx",
        f"eval --engine e.onnx {DATA} --json d/val.json",
        f"eval --engine e.onnx {DATA} --json d/val/1.png",
        f"eval --engine e.xml {DATA} --json e.bin",
        f"eval --engine e.engine {DATA} --json e.engine.json",
        f"eval --engine e.onnx {DATA} --output-coco-json --mask-det-file d/val.json",
        f"eval --engine e.onnx {DATA} --output-coco-json --mask-det-file x --bbox-det-file x",
        f"eval --engine e.onnx {DATA} --output-coco-json --mask-det-file - --json -",
        "eval --engine e.onnx --dataset d.yaml --json d.yaml",
        "eval --engine e.onnx --dataset d.yaml --json d/val.json",
        "eval --engine e.onnx --dataset d.yaml --json d/train/1.png",
        f"eval --engine e.onnx {DATA} --report -",
        "eval --engine e.onnx --images reports --annotations d/val.json --report reports",
        "data check d/val.json --json d/val.json",
        "data check d/val.json --images d/val --json d/val/1.png",
        "data show two.json --images d/val --output d/val --config yolact_tiny",
        "data show two.json --images d/val --output - --config yolact_tiny",
        "data shapes -",
        "data fix d/val.json --output d/val.json",
        "data fix d/val.json --images d/val --output d/val/1.png",
        "data convert labelme lm lm/a.json",
        "data convert yolo lm --names names.txt lm/a.txt",
        "data convert yolo lm --names names.txt names.txt",
        "data convert masks lm --images d/val d/val/1.png",
        "export --weights c.pth --config yolact_tiny --output c.pth",
        "export --weights c.pth --config yolact_tiny --output -",
        "export --weights c.pth --config yolact_tiny --precision int8 --calibrate d/val --output d/val/1.png",
        "export --weights c.pth --precision fp16 --annotations d/val.json --output d/val.json",
        "export --weights e.onnx --to trt --timing-cache e.onnx",
        "export --weights e.onnx --to trt --output x.engine --timing-cache x.engine",
        "export --weights e.onnx --to trt --output x.engine --timing-cache -",
        "bench --engine e.onnx --json e.onnx",
        "bench --engine e.onnx:threads=2 --engine e.xml --json e.bin",
        f"bench --engine e.onnx {DATA} --json d/val.json",
        f"bench --engine e.onnx {DATA} --report d/val/1.png",
        "bench --engine e.onnx --json x --report x",
        "bench --engine e.onnx --json - --report -",
        "bench roofline --onnx e.onnx --json e.onnx",
        "bench training --dataset d.yaml --json d/train.json",
        "bench data --dataset d.yaml --json d.yaml",
        "bench peers --engine e.onnx --images d/val --original d --weights c.pth --json c.pth",
        "train --config yolact_tiny --dataset d.yaml --save-folder -",
        "demo --output -",
    ],
)
def test_an_input_that_would_be_written_over(place: Path, line: str, capsys: Capture) -> None:
    before = content()
    assert run(line) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1 and errors[0].startswith("ERROR: ")
    assert any(
        words in errors[0] for words in ("write over", "the same file", "standard output", "kept", "ends in")
    )
    assert content() == before


@posix
@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_inputs_under_other_names(place: Path, link: Callable[[str, str], None], capsys: Capture) -> None:
    for source, name in (
        ("e.onnx", "a.json"),
        ("d/val/1.png", "b.json"),
        ("c.pth", "c.onnx"),
    ):
        link(source, name)
    before = content()
    for line in (
        f"eval --engine e.onnx {DATA} --json a.json",
        f"eval --engine e.onnx {DATA} --json b.json",
        f"bench --engine a.json {DATA} --json e.onnx",
        "export --weights c.pth --config yolact_tiny",
    ):
        assert run(line) == 2, line
        assert "would write over" in capsys.readouterr().err
    assert content() == before


@pytest.mark.parametrize(
    "line",
    [
        f"eval --engine e.onnx {DATA} --json e.onnx/x.json",
        f"eval --engine e.onnx {DATA} --report c.pth",
        f"eval --engine e.onnx {DATA} --output-coco-json --mask-det-file c.pth/x.json",
        "data check two.json --json c.pth/x.json",
        "data show two.json --images d/val --output c.pth --config yolact_tiny",
        "data shapes c.pth",
        "data convert labelme lm c.pth/x.json",
        "export --weights c.pth --config yolact_tiny --output e.onnx/x.onnx",
        "export --weights e.onnx --to openvino --output c.pth/x.xml",
        "export --weights e.onnx --to triton --output c.pth",
        "export --weights e.onnx --to trt --timing-cache c.pth/x",
        "bench --engine e.onnx --json c.pth/x.json",
        "bench roofline --report c.pth/x.json --json c.pth/x.json --onnx e.onnx",
        "train --config yolact_tiny --dataset nowhere --save-folder c.pth",
        "demo --output c.pth/x",
    ],
)
def test_outputs_below_a_file(place: Path, line: str, capsys: Capture) -> None:
    if "roofline" in line:
        line = line.replace("--report c.pth/x.json ", "")
    before = content()
    assert run(line) == 1
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1 and "cannot write to folder " in errors[0] and "is a file" in errors[0]
    assert content() == before


@pytest.mark.parametrize(
    "line",
    [
        f"eval --engine e.onnx {DATA} --json d",
        "data check two.json --json d",
        "bench --engine e.onnx --report d",
    ],
)
def test_outputs_that_are_folders(place: Path, line: str, capsys: Capture) -> None:
    assert run(line) == 2
    assert " d: it is a folder; name a file" in capsys.readouterr().err


def test_json_alone_on_standard_output(place: Path, capsys: Capture) -> None:
    assert run("data check two.json --json -") == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["images"] == 2 and "0 errors" in printed.err
    triangle = {"label": "cat", "points": [[1, 1], [8, 1], [8, 8]], "shape_type": "polygon"}
    file = {"shapes": [triangle], "imagePath": "b.png", "imageHeight": 9, "imageWidth": 9}
    Path("lm/a.json").write_text(json.dumps(file))
    cv2.imwrite("lm/b.png", np.zeros((9, 9, 3), np.uint8))
    assert run("data convert labelme lm -") == 0
    assert len(json.loads(capsys.readouterr().out)["annotations"]) == 1
    assert run("data fix two.json --output -") == 0
    printed = capsys.readouterr()
    assert len(json.loads(printed.out)["images"]) == 2 and "nothing had to be changed" in printed.err
    # An earlier result in the folder of the source is no input.
    assert run("data convert labelme lm lm/coco.json") == run("data convert labelme lm lm/coco.json") == 0
