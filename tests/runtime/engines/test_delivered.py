"""The precision that ONNX Runtime computes fp16 and int8 files in."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from fake_onnx import NATIVE, int8_file, native_arrays, write_onnx
from onnx import TensorProto, helper, numpy_helper

from yolact_runtime import load_engine
from yolact_runtime.engines.backends import UNKNOWN
from yolact_runtime.engines.onnxruntime import OnnxRuntimeEngine, delivered_precision
from yolact_runtime.errors import UsageError


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
    ("kinds", "stored", "precision"),
    [
        (["QLinearConv", "QLinearConv", "FusedConv"], "int8", "int8"),
        (["QLinearConv", "Conv", "FusedConv"], "int8", "fp32"),
        (["DequantizeLinear", "FusedConv"], "int8", "fp32"),
        (["Conv", "Relu"], "int8", "fp32"),
        (["Conv", "Relu"], "fp16", "fp16"),
        (["Shape"], "fp16", UNKNOWN),
        ([], "int8", UNKNOWN),
    ],
)
def test_counting(kinds: list[str], stored: str, precision: str) -> None:
    assert delivered_precision([("", kind) for kind in kinds], stored) == precision


def test_casts_that_were_put_in_mean_float32() -> None:
    assert delivered_precision([("InsertedPrecisionFreeCast_x", "Cast"), ("", "Conv")], "fp16") == "fp32"


def _raise(error: Exception) -> None:
    raise error


@pytest.mark.parametrize("failure", ["no folder", "cut off", "empty"])
def test_what_cannot_be_inspected_is_not_confirmed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, failure: str
) -> None:
    """A full disk, an optimised graph of which only a part was written, and one with nothing in it."""
    path = int8_file(tmp_path / "m.onnx", relu=True)
    monkeypatch.setenv("YOLACT_CACHE", str(tmp_path / "cache"))  # which may have this graph
    if failure == "no folder":
        full = OSError(28, "No space left on device")
        monkeypatch.setattr("tempfile.TemporaryDirectory", lambda: _raise(full))
    else:
        read = {"cut off": lambda _: _raise(ValueError("cut off")), "empty": lambda _: []}[failure]
        monkeypatch.setattr("yolact_runtime.engines.onnxruntime.read_nodes", read)
    reason = {"no folder": "No space left", "cut off": "cut off", "empty": "no convolutions"}[failure]
    with load_engine(path, backend="onnxruntime") as engine:
        assert engine.precision == UNKNOWN
        assert reason in engine.unknown_because
        assert len(engine.predict([np.full((20, 30, 3), 255, np.uint8)])[0]) == 2
    assert "is in int8, and what ONNX Runtime CPU computes in is not known" in caplog.text
    for asked in ("int8", "fp32", "fp16"):
        with pytest.raises(UsageError, match=rf"precision {asked} was asked for, and what .*{reason}"):
            load_engine(path, backend="onnxruntime", precision=asked)
