"""The command line of `yolact-export`: its subcommand, its errors, and what it imports for them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from fake_onnx import NATIVE, native_arrays, write_onnx

from yolact_export.cli import main

Capture = pytest.CaptureFixture[str]


def test_help_shows_the_subcommand(capsys: Capture) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert "yolact-export inspect FILE" in shown and "--max-batch" in shown
    assert main(["inspect", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "usage: yolact-export inspect" in shown and "--max-batch" not in shown


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--weights is required"),
        (["--to", "trt"], "--weights is required"),
        (["--weights", "a.pth", "--to", "caffe"], "--to: 'caffe'; allowed: onnx, trt, openvino, triton"),
        (["--weight", "a.pth"], "unknown option --weight; did you mean --weights?"),
        (["--weights", "a.pth", "--nonsense"], "unknown option --nonsense; see yolact-export --help"),
        (["--weights", "a.xml", "--to", "triton"], "--weights a.xml is an OpenVINO model"),
        (["--weights", "a.pth", "--output", "m.pb"], "--output m.pb: with --to onnx its name ends in .onnx"),
        (["--weights", "a.pth", "--output", "m"], "--output m: with --to onnx its name ends in .onnx"),
        (["--weights", "a.pth", "--to", "openvino", "--output", "m.bin"], "its name ends in .xml"),
        (["--weights", "a.pth", "--to", "trt", "--output", "m.onnx"], "its name ends in .engine or .plan"),
        (["inspect"], "file is missing"),
        (["inspect", "a.onnx", "--to", "trt"], "yolact-export inspect: error: unknown option --to"),
        (["--to", "trt", "inspect", "a.onnx"], "--to is an option of an export"),
        (["--debug", "inspect"], "file is missing"),
        (["--weights", "w.pth", "--classes", "a,b"], "own are --class-names FILE|NAMES"),
        (["inspect", "w.pth", "--classes", "a,b"], "own are --class-names FILE|NAMES"),
    ],
)
def test_wrong_arguments(arguments: list[str], words: str, capsys: Capture) -> None:
    assert main(arguments) == 2
    assert words in capsys.readouterr().err


def test_options_before_the_subcommand_count(capsys: Capture) -> None:
    assert main(["--config", "yolact_tiny", "--quiet", "inspect", "nowhere.onnx"]) == 2
    assert "nowhere.onnx is not a file" in capsys.readouterr().err


@pytest.mark.parametrize("harm", ["rank", "type", "side", "inputs"])
def test_inspecting_a_graph_that_cannot_be(harm: str, tmp_path: Path, capsys: Capture) -> None:
    path = write_onnx(tmp_path / "m.onnx", native_arrays(), NATIVE)
    model = onnx.load(path)
    tensor = model.graph.input[0].type.tensor_type
    if harm == "rank":
        del tensor.shape.dim[:]
    elif harm == "type":
        tensor.elem_type = 65536
    elif harm == "side":
        tensor.shape.dim[1].dim_value = 1 << 62
    else:
        model.graph.node.add(op_type="Conv", input=["images"], output=["other"])
    onnx.save(model, path)
    assert main(["inspect", str(path)]) == (0 if harm == "rank" else 1)
    assert harm == "rank" or f"{path} is damaged or not an ONNX file" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["--weights", "a.onnx"], ["--to", "trt", "inspect", "a.onnx"]])
def test_refusals_import_no_large_library(arguments: list[str]) -> None:
    heavy = {"torch", "onnx", "onnxruntime", "cv2", "matplotlib", "openvino", "tritonclient"}
    code = f"""
import sys
from yolact_export.cli import main
assert main({arguments}) == 2
assert not {heavy} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
