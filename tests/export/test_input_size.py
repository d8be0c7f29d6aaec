"""Exports with another input than the network was trained with: the files, their engines and refusals."""

from __future__ import annotations

import importlib.util
import json
import logging
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from yolact.engine import TorchEngine
from yolact.model import Yolact
from yolact.registry import get_config
from yolact.settings import override
from yolact.train.checkpoint import save_checkpoint
from yolact_export import verify
from yolact_export.cli import main
from yolact_export.onnx import OnnxOptions, write_onnx
from yolact_runtime import load_engine
from yolact_runtime.engines.tensorrt.record import read_engine

Capture = pytest.CaptureFixture[str]
SIZE, TEXT = (64, 160), "64x160"


def export(checkpoint: Path, *words: str) -> int:
    return main(["--weights", str(checkpoint), *words])


@pytest.fixture(scope="module")
def own(network: Yolact, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a network trained at 128 x 128, in a folder of its own."""
    path = tmp_path_factory.mktemp("own") / "yolact_tiny_0_1.pth"
    save_checkpoint(path, network, 0, 1, None)
    return path


@pytest.fixture(scope="module")
def exported(own: Path) -> Path:
    assert export(own, "--input-size", TEXT, "--max-batch", "3") == 0
    return own.with_name(f"yolact_tiny_0_1_{TEXT}.onnx")


def test_a_network_trained_on_squares(own: Path, exported: Path) -> None:
    images = verify.verification_images(None)[:3]
    with (
        load_engine(exported, providers=["cpu"]) as engine,
        load_engine(own, input_size=TEXT, input_dtype="uint8") as reference,
    ):
        assert engine.metadata.input_size == reference.metadata.input_size == SIZE
        assert engine.metadata.priors == reference.metadata.priors
        assert engine.metadata.priors is not None
        assert engine.metadata.priors.levels == ((8, 20), (4, 10), (2, 5), (1, 3), (1, 2))
        for one, other in zip(engine.predict(images), reference.predict(images), strict=True):
            assert len(one) == len(other) > 0
            np.testing.assert_allclose(one.scores, other.scores, atol=1e-5)
    with load_engine(own) as square:
        assert square.metadata.input_size == 128
        # In pixels, they are the same.
        assert engine.metadata.priors.scales == square.metadata.priors.scales


def test_the_log_says_what_may_change(own: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        TorchEngine(own, device="cpu", input_size=(64, 160))
    assert "input 64x160 instead of the 128 it was trained with" in caplog.text
    assert "measure it with yolact-eval" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.INFO):
        TorchEngine(own, device="cpu", input_size=(128, 128))
    assert "instead of" not in caplog.text


def test_what_inspect_shows(exported: Path, capsys: Capture) -> None:
    assert main(["inspect", str(exported)]) == 0
    shown = capsys.readouterr().out
    assert "[64, 160]" in shown and "(batch, 64, 160, 3)" in shown


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("384*640", "input size '384*640': height x width in pixels is needed, such as 384x640"),
        ("64x4096", "input size 64x4096: each side must be 1 or more, and at most the 2,048 allowed"),
        ("16x160", "model.input_size = (16, 160); allowed: 32 to 2048"),
    ],
)
def test_sizes_that_are_refused(
    text: str, message: str, own: Path, caplog: pytest.LogCaptureFixture, capsys: Capture
) -> None:
    before = sorted(own.parent.iterdir())
    assert export(own, "--input-size", text) == 2
    # Logging goes to standard error once the options are parsed.
    assert message in (capsys.readouterr().err + caplog.text).splitlines()[-1]
    assert sorted(own.parent.iterdir()) == before


def test_networks_that_re_score_masks_need_larger_ones(tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "yolact_plus_resnet50_0_1.pth"
    save_checkpoint(path, Yolact(get_config("yolact_plus_resnet50")), 0, 1, None)
    assert export(path, "--input-size", "240x640", "--no-verify") == 2
    assert "model.input_size = (240, 640); allowed: at least 249 with mask_iou" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("detect", ["native", "runtime"])
def test_masks_are_re_scored_in_wide_prototypes(detect: str, network: Yolact, tmp_path: Path) -> None:
    torch.manual_seed(0)
    settings = ["model.input_size=[256, 320]", "model.mask_iou=true", "detect.score_threshold=0.3"]
    model = Yolact(override(network.config, settings)).eval()
    model.load_state_dict(network.state_dict(), strict=False)
    reference = TorchEngine.from_model(model, "cpu", "uint8")
    write_onnx(model, tmp_path / "m.onnx", OnnxOptions(detect=detect))
    with load_engine(tmp_path / "m.onnx", providers=["cpu"]) as engine:
        # Masks of a network that was never trained hover about one half.
        tolerances = verify.Tolerances(mask_iou=0.9)
        seen = verify.compare(reference, engine, verify.verification_images(None)[:2], tolerances)
    assert seen.problems == []
    assert seen.matched > 0
    assert seen.scales["mask_scores"] != seen.scales["scores"]


def test_an_exported_file_keeps_its_size(exported: Path, capsys: Capture) -> None:
    assert export(exported, "--to", "openvino", "--input-size", TEXT) == 2
    assert f"--input-size is for checkpoints; {exported} is already exported" in capsys.readouterr().err


def test_images_resized_without_rounding(own: Path, tmp_path: Path) -> None:
    output = tmp_path / "float.onnx"
    assert export(own, "--input-size", TEXT, "--input-type", "float32", "--output", str(output)) == 0
    with load_engine(output, providers=["cpu"]) as engine:
        assert (engine.metadata.input_dtype, engine.metadata.input_size) == ("float32", SIZE)
        assert engine.prepare(verify.verification_images(None)[0]).shape == (*SIZE, 3)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_reduced_precision(precision: str, own: Path, photos: Path, tmp_path: Path) -> None:
    output = tmp_path / "reduced.onnx"
    more = ["--calibrate", str(photos), "--no-verify"] if precision == "int8" else []
    words = ["--input-size", TEXT, "--precision", precision, "--output", str(output)]
    assert export(own, *words, *more) == 0
    with load_engine(output, providers=["cpu"]) as engine:
        assert (engine.metadata.precision, engine.metadata.input_size) == (precision, SIZE)
        assert len(engine.predict(verify.verification_images(None)[:1])) == 1


def test_openvino_models(exported: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    output = tmp_path / "wide.xml"
    # Masks of a network that was never trained hover about one half.
    assert export(exported, "--to", "openvino", "--output", str(output), "--no-verify") == 0
    with load_engine(output) as engine:
        assert engine.metadata.input_size == SIZE


def test_the_configuration_of_a_server(exported: Path, tmp_path: Path) -> None:
    schema = pytest.importorskip("tritonclient.grpc.model_config_pb2")
    from google.protobuf import text_format

    words = ["--to", "triton", "--triton-models", "raw", "--output", str(tmp_path), "--triton-name", "wide"]
    assert export(exported, *words) == 0
    text = (tmp_path / "wide_raw" / "config.pbtxt").read_text()
    config = text_format.Parse(text, schema.ModelConfig())
    assert [list(tensor.dims) for tensor in config.input] == [[*SIZE, 3]]
    prototypes = next(tensor for tensor in config.output if tensor.name == "prototypes")
    assert list(prototypes.dims) == [16, 40, 16]


@pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="TensorRT-RTX is not installed")
def test_an_engine_of_tensorrt_rtx(exported: Path, tmp_path: Path) -> None:
    output = tmp_path / "wide.engine"
    words = ["--to", "trt", "--backend", "rtx", "--device-capability", "8.9", "--output", str(output)]
    assert export(exported, *words) == 0
    metadata, record = read_engine(output)
    assert (metadata.input_size, record.profile, record.capabilities) == (SIZE, (1, 3, 3), ("8.9",))
    assert json.loads(Path(f"{output}.json").read_text())["metadata"]["input_size"] == list(SIZE)


def test_the_graph_of_the_input(exported: Path) -> None:
    dims = onnx.load(exported).graph.input[0].type.tensor_type.shape.dim
    assert [dim.dim_param or dim.dim_value for dim in dims] == ["batch", 64, 160, 3]
