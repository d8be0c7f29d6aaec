"""`yolact-export --to openvino` and `--to triton`, from a checkpoint and from exports."""

from __future__ import annotations

import importlib
import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from yolact_export import verify
from yolact_export.cli import main
from yolact_runtime import load_engine

Capture = pytest.CaptureFixture[str]


def export(weights: Path, target: str, output: Path, *more: str) -> int:
    return main(["--weights", str(weights), "--to", target, "--output", str(output), *more])


@pytest.mark.parametrize("detect", ["native", "runtime"])
def test_openvino_from_a_checkpoint(detect: str, checkpoint: Path, tmp_path: Path, capsys: Capture) -> None:
    pytest.importorskip("openvino")
    output = tmp_path / "m.xml"
    assert export(checkpoint, "openvino", output, "--max-batch", "2", "--detect", detect) == 0
    shown = capsys.readouterr()
    assert "ONNX Runtime against PyTorch" in shown.out
    assert "OpenVINO against ONNX Runtime" in shown.out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "m.bin", "m.xml"]
    images = verify.verification_images(None)[:3]
    with load_engine(output, threads=1) as engine, load_engine(checkpoint, input_dtype="uint8") as reference:
        assert (engine.metadata.precision, engine.metadata.detect) == ("fp32", detect)
        for found, expected in zip(
            engine.predict(images, 0.2, 50), reference.predict(images, 0.2, 50), strict=True
        ):
            assert len(found) == len(expected) > 0
            np.testing.assert_allclose(found.scores, expected.scores, atol=1e-4)
            np.testing.assert_array_equal(found.classes, expected.classes)


def test_openvino_from_an_onnx_file(graph: onnx.ModelProto, tmp_path: Path, capsys: Capture) -> None:
    pytest.importorskip("openvino")
    onnx.save(graph, tmp_path / "m.onnx")
    assert export(tmp_path / "m.onnx", "openvino", tmp_path / "m.xml") == 0
    assert main(["inspect", str(tmp_path / "m.xml")]) == 0
    printed = capsys.readouterr().out
    assert "yolact_tiny" in printed
    assert "(?,128,128,3)" in printed


def test_links_to_bundles_stay(graph: onnx.ModelProto, tmp_path: Path, capsys: Capture) -> None:
    pytest.importorskip("openvino")
    onnx.save(graph, tmp_path / "m.onnx")
    (tmp_path / "store").mkdir()
    for name, real in (("l.xml", "a"), ("l.bin", "b")):
        (tmp_path / "store" / real).write_text("old")
        (tmp_path / name).symlink_to(tmp_path / "store" / real)
    assert export(tmp_path / "m.onnx", "openvino", tmp_path / "l.xml", "--no-verify") == 0
    assert (tmp_path / "l.xml").is_symlink() and (tmp_path / "l.bin").is_symlink()
    assert sorted(path.name for path in (tmp_path / "store").iterdir()) == ["a", "b"]
    assert (tmp_path / "store/b").stat().st_size > 100_000
    load_engine(tmp_path / "l.xml").close()


def test_openvino_reports_to_nobody(graph: onnx.ModelProto, tmp_path: Path) -> None:
    """It has a stub for those who do not install what reports; that is all it gets."""
    onnx.save(graph, tmp_path / "m.onnx")
    assert export(tmp_path / "m.onnx", "openvino", tmp_path / "m.xml") == 0
    assert "openvino_telemetry.main" not in sys.modules
    reporter = importlib.import_module("openvino.tools.ovc.telemetry_utils").tm
    assert reporter.__name__ == "openvino.tools.ovc.telemetry_stub"


def test_openvino_refuses_half_and_other_names(checkpoint: Path, tmp_path: Path, capsys: Capture) -> None:
    assert export(checkpoint, "openvino", tmp_path / "m.xml", "--precision", "fp16") == 2
    assert "--precision fp16" in capsys.readouterr().err
    assert export(checkpoint, "openvino", tmp_path / "m.onnx") == 2
    assert "ends in .xml" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_triton_from_a_checkpoint_and_from_an_onnx_file(
    checkpoint: Path, graph: onnx.ModelProto, tmp_path: Path, capsys: Capture
) -> None:
    pytest.importorskip("tritonclient.grpc")
    repository = tmp_path / "models"
    assert export(checkpoint, "triton", repository, "--max-batch", "4", "--no-verify") == 0
    onnx.save(graph, tmp_path / "m.onnx")
    assert export(tmp_path / "m.onnx", "triton", repository, "--triton-name", "other") == 0
    assert sorted(path.name for path in repository.iterdir()) == ["other", "yolact_tiny_0_1"]
    config, other = (
        (repository / name / "config.pbtxt").read_text() for name in ("yolact_tiny_0_1", "other")
    )
    assert "max_batch_size: 4" in config
    without = [line for line in config.splitlines() if "string_value" not in line]
    assert without[1:] == [line for line in other.splitlines() if "string_value" not in line][1:]
    # The file that the server loads opens as an engine.
    served = tmp_path / "served.onnx"
    shutil.copyfile(repository / "other" / "1" / "model.onnx", served)
    with load_engine(served) as engine:
        assert len(engine.predict(verify.verification_images(None)[:1])) == 1
    assert export(tmp_path / "m.onnx", "triton", repository, "--triton-name", "other") == 1
    assert "--triton-name" in capsys.readouterr().err


def test_onnx_needs_a_checkpoint(graph: onnx.ModelProto, tmp_path: Path, capsys: Capture) -> None:
    onnx.save(graph, tmp_path / "m.onnx")
    assert export(tmp_path / "m.onnx", "onnx", tmp_path / "n.onnx") == 2
    assert "--to onnx needs a checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--to", "openvino", "--detect", "plugin"), "--detect plugin is for --to trt"),
        (("--to", "triton", "--max-batch", "8"), "--max-batch is for checkpoints"),
        (("--to", "openvino", "--precision", "int8"), "--precision is for checkpoints"),
        (("--to", "trt", "--detect", "runtime"), "--detect is for checkpoints"),
        (("--to", "trt", "--output", "m.onnx"), "its name ends in .engine or .plan"),
        (("--to", "openvino", "--annotations", "a.json"), "--annotations compares AP with float32"),
    ],
)
def test_options_without_effect_are_refused(
    options: tuple[str, ...], words: str, graph: onnx.ModelProto, tmp_path: Path, capsys: Capture
) -> None:
    onnx.save(graph, tmp_path / "m.onnx")
    before = (tmp_path / "m.onnx").read_bytes()
    assert main(["--weights", str(tmp_path / "m.onnx"), *options]) == 2
    assert words in capsys.readouterr().err
    assert (tmp_path / "m.onnx").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


def test_names_tell_precision_and_kind(checkpoint: Path, tmp_path: Path) -> None:
    weights = tmp_path / checkpoint.name
    shutil.copyfile(checkpoint, weights)
    assert main(["--weights", str(weights), "--detect", "runtime", "--no-verify"]) == 0
    assert (tmp_path / "yolact_tiny_0_1_runtime.onnx").exists()
