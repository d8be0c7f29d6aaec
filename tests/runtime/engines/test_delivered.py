"""The precision that ONNX Runtime computes fp16 and int8 files in."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from fake_onnx import NATIVE, native_arrays, write_onnx
from onnx import TensorProto, helper, numpy_helper

from yolact_runtime import load_engine
from yolact_runtime.engines.onnxruntime import OnnxRuntimeEngine, delivered_precision
from yolact_runtime.errors import UsageError

QUANTISE, DEQUANTISE = "QuantizeLinear", "DequantizeLinear"


def int8_file(path: Path, relu: bool) -> Path:
    """An engine with a quantised convolution, with or without a ReLU before the next rounding."""
    write_onnx(path, native_arrays(), dataclasses.replace(NATIVE, precision="int8"))
    model = onnx.load(path)
    graph = model.graph
    del graph.node[next(i for i, node in enumerate(graph.node) if list(node.output) == ["prototypes"])]
    kind = np.int8 if relu else np.uint8
    values = {
        "scale": np.array(0.5, np.float32),
        "zero": np.array(0, kind),
        "weight_zero": np.array(0, np.int8),
        "weight": np.ones((2, 3, 1, 1), np.int8),
    }
    graph.initializer.extend([numpy_helper.from_array(value, name) for name, value in values.items()])
    convolved = "convolved" if relu else "activated"
    steps = [
        ("Transpose", ["float_images"], "planes"),
        (QUANTISE, ["planes", "scale", "zero"], "rounded"),
        (DEQUANTISE, ["rounded", "scale", "zero"], "input"),
        (DEQUANTISE, ["weight", "scale", "weight_zero"], "filter"),
        ("Conv", ["input", "filter"], convolved),
        *([("Relu", ["convolved"], "activated")] if relu else []),
        (QUANTISE, ["activated", "scale", "zero"], "rounded_again"),
        (DEQUANTISE, ["rounded_again", "scale", "zero"], "output"),
        ("Transpose", ["output"], "prototypes"),
    ]
    perms = {"planes": [0, 3, 1, 2], "prototypes": [0, 2, 3, 1]}
    for kind_, inputs, output in steps:
        more = {"perm": perms[output]} if output in perms else {}
        graph.node.append(helper.make_node(kind_, inputs, [output], **more))
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("relu", [False, True])
def test_integers_are_what_the_optimised_graph_has(tmp_path: Path, relu: bool) -> None:
    path = int8_file(tmp_path / "m.onnx", relu)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    kinds = {node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node}
    with OnnxRuntimeEngine(path) as engine:
        assert engine.precision == ("int8" if "QLinearConv" in kinds else "fp32")
        assert engine.metadata.precision == "int8"


def test_a_warning_if_computed_in_another_precision(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = int8_file(tmp_path / "m.onnx", relu=True)
    with load_engine(path, backend="onnxruntime") as engine:
        computed = engine.precision
    assert ("is in int8, but ONNX Runtime CPU computes in fp32" in caplog.text) == (computed == "fp32")


def test_rounded_values_do_not_count_as_float32(tmp_path: Path) -> None:
    path = int8_file(tmp_path / "m.onnx", relu=True)
    with pytest.raises(UsageError, match=r"m\.onnx: precision fp32 was asked for, .* --precision fp32$"):
        load_engine(path, backend="onnxruntime", precision="fp32")


def test_half_precision_on_a_cpu(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    write_onnx(path, native_arrays(), dataclasses.replace(NATIVE, precision="fp16"))
    model = onnx.load(path)
    graph = model.graph
    del graph.node[next(i for i, node in enumerate(graph.node) if list(node.output) == ["prototypes"])]
    weight = numpy_helper.from_array(np.ones((2, 3, 1, 1), np.float16), "weight")
    graph.initializer.append(weight)
    graph.node.extend(
        [
            helper.make_node("Transpose", ["float_images"], ["planes"], perm=[0, 3, 1, 2]),
            helper.make_node("Cast", ["planes"], ["half"], to=TensorProto.FLOAT16),
            helper.make_node("Conv", ["half", "weight"], ["convolved"]),
            helper.make_node("Cast", ["convolved"], ["single"], to=TensorProto.FLOAT),
            helper.make_node("Transpose", ["single"], ["prototypes"], perm=[0, 2, 3, 1]),
        ]
    )
    onnx.checker.check_model(model)
    onnx.save(model, path)
    with OnnxRuntimeEngine(path) as engine:
        # Processors other than x86 have half-precision kernels in ONNX Runtime.
        assert engine.precision in ("fp32", "fp16")
        found = engine.detect(np.full((1, 16, 16, 3), 2, np.uint8))
    np.testing.assert_array_equal(found.prototypes, np.full((1, 16, 16, 2), 6, np.float32))


@pytest.mark.parametrize(
    ("kinds", "precision"),
    [
        (["QLinearConv", "QLinearConv", "FusedConv"], "int8"),
        (["QLinearConv", "Conv", "FusedConv"], "fp32"),
        (["DequantizeLinear", "FusedConv"], "fp32"),
        (["Conv", "Relu"], None),
        (["Shape"], None),
        ([], None),
    ],
)
def test_counting(kinds: list[str], precision: str | None) -> None:
    assert delivered_precision([("", kind) for kind in kinds]) == precision


def test_casts_that_were_put_in_mean_float32() -> None:
    assert delivered_precision([("InsertedPrecisionFreeCast_x", "Cast"), ("", "Conv")]) == "fp32"


def test_a_full_disk_keeps_the_complete_entries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    path = int8_file(tmp_path / "m.onnx", relu=True)
    monkeypatch.setattr("tempfile.TemporaryDirectory", full)
    with OnnxRuntimeEngine(path) as engine:
        assert engine.precision == "int8"
