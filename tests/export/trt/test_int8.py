"""Int8 graphs for CPUs as TensorRT reads them."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from yolact_export.precision.compute import layer_compute, shares
from yolact_export.precision.int8 import quantise
from yolact_export.precision.layers import network_outputs
from yolact_export.precision.measure import Error, run_graph
from yolact_export.precision.placement import quantisable, roundings
from yolact_export.trt.builder import _parse
from yolact_export.trt.checks import check_graph
from yolact_export.trt.engine import build_engine
from yolact_export.trt.int8 import signed_int8
from yolact_export.trt.options import BuildOptions
from yolact_export.trt.target import Target
from yolact_runtime.errors import YolactError
from yolact_runtime.metadata import Metadata


@pytest.fixture(scope="module")
def unsigned(graph: onnx.ModelProto) -> onnx.ModelProto:
    names = sorted({one.range_of for one in roundings(graph).values()})
    batch = np.random.default_rng(0).integers(0, 256, (1, 128, 128, 3), np.uint8)
    values = next(iter(run_graph(graph, names, [batch])))
    return quantise(graph, {name: (float(one.min()), float(one.max())) for name, one in values.items()})


def test_signed_bytes_only(unsigned: onnx.ModelProto, graph: onnx.ModelProto, metadata: Metadata) -> None:
    signed = signed_int8(unsigned)
    onnx.checker.check_model(signed, full_check=True)
    assert signed_int8(signed) is signed and signed_int8(graph) is graph
    assert shares(layer_compute(signed)) == {"int8": 1.0}
    target = Target("tensorrt", ("8.6",), None)
    batches = metadata.min_batch, metadata.max_batch
    check_graph(signed, target, batches)
    with pytest.raises(YolactError, match=r"int32|zero point"):
        check_graph(unsigned, target, batches)
    values = {one.name: numpy_helper.to_array(one) for one in signed.graph.initializer}
    before = {one.name: numpy_helper.to_array(one) for one in unsigned.graph.initializer}
    producers = {name: node for node in signed.graph.node for name in node.output}
    for node in signed.graph.node:
        if node.op_type == "QuantizeLinear":
            scale, zero = (values[name] for name in node.input[1:])
            assert zero.dtype == np.int8 and zero == 0
            # The largest value stays the largest.
            old_scale, old_zero = (before[name.removesuffix("_signed")] for name in node.input[1:])
            np.testing.assert_allclose(127 * scale, (255 if old_zero == 0 else 127) * old_scale, rtol=1e-6)
    originals = {node.output[0]: node for node in graph.graph.node}
    floats = {one.name: numpy_helper.to_array(one) for one in graph.graph.initializer}
    for node in signed.graph.node:
        if node.op_type == "Conv":
            # Nothing is between a convolution and what TensorRT fuses with it, but on one side of a sum.
            readers = [one for one in signed.graph.node if node.output[0] in one.input]
            assert producers[node.input[0]].op_type == "DequantizeLinear"
            if len(node.input) > 2:
                bias = floats[originals[node.output[0].removesuffix("_unrounded")].input[2]]
                np.testing.assert_allclose(values[node.input[2]], bias, atol=1e-3)
            rounded = [one for one in readers if one.op_type == "QuantizeLinear"]
            assert not rounded or len(readers) == 1
    sums = [node for node in signed.graph.node if node.op_type == "Add" and node.name.startswith("/model/")]
    kinds = [[producers[name].op_type for name in node.input].count("DequantizeLinear") for node in sums]
    assert kinds == [1] * len(sums) and len(sums) >= 6


def test_computes_the_same(unsigned: onnx.ModelProto, graph: onnx.ModelProto) -> None:
    """As close to float32 as the graph that it comes from, but for the wider steps."""
    heads = list(network_outputs(graph).values())
    batch = [np.random.default_rng(1).integers(0, 256, (1, 128, 128, 3), np.uint8)]
    models = graph, unsigned, signed_int8(unsigned)
    exact, first, second = (next(iter(run_graph(model, heads, batch))) for model in models)
    for name in heads:
        errors = [Error(), Error()]
        for error, found in zip(errors, (first, second), strict=True):
            error.add(exact[name], found[name])
        assert errors[1].relative < max(0.03, 1.5 * errors[0].relative), name


def test_weights_in_another_file_reach_the_parser(unsigned: onnx.ModelProto, tmp_path: Path) -> None:
    """The parser gets bytes, which have no folder to look for the file in."""
    path = tmp_path / "m.onnx"
    copied = onnx.ModelProto.FromString(unsigned.SerializeToString())
    onnx.save(copied, path, save_as_external_data=True, location="m.data", size_threshold=0)
    assert (tmp_path / "m.data").stat().st_size > path.stat().st_size
    received: list[bytes] = []
    parser = SimpleNamespace(parse=lambda content: received.append(content) or True)
    parsed, model = _parse(parser, SimpleNamespace(onnx=str(path)))  # type: ignore[arg-type]
    expected = signed_int8(unsigned)
    assert parsed and model is not None
    found = {one.name: one for one in onnx.ModelProto.FromString(received[0]).graph.initializer}
    for one in expected.graph.initializer:
        assert found[one.name].data_location != onnx.TensorProto.EXTERNAL
        np.testing.assert_array_equal(numpy_helper.to_array(found[one.name]), numpy_helper.to_array(one))


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="TensorRT-RTX is not installed")
def test_rtx_builds_it(unsigned: onnx.ModelProto, graph: onnx.ModelProto, tmp_path: Path) -> None:
    for prop in (model := onnx.ModelProto.FromString(unsigned.SerializeToString())).metadata_props:
        if prop.key == "yolact.precision":
            prop.value = '"int8"'
    onnx.save(model, tmp_path / "m.onnx")
    options = BuildOptions("rtx", ("8.6",))
    record = build_engine(tmp_path / "m.onnx", tmp_path / "m.engine", options, precision="int8")
    assert record.compute == {"int8": len(quantisable(graph))}
