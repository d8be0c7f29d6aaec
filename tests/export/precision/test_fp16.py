"""Half precision: the type of every node, no needless cast, and the emulation of a GPU."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest

from yolact_export import verify
from yolact_export.onnx_graph import element_types
from yolact_export.precision.compute import layer_compute, shares
from yolact_export.precision.fp16 import emulate_half, to_half
from yolact_export.precision.layers import DETECTION, PREPROCESSING, compute_groups, layer_group
from yolact_export.precision.measure import Error, run_graph, tensor_errors
from yolact_export.precision.reduce import PrecisionOptions, reduce_graph
from yolact_runtime.errors import YolactError
from yolact_runtime.preprocess import resize_batch

FLOAT, HALF = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16
NONE = PrecisionOptions("fp16", keep_float=("none",))


@pytest.fixture(scope="module")
def half(graph: onnx.ModelProto) -> onnx.ModelProto:
    return to_half(graph)


@pytest.fixture(scope="module")
def batches() -> list[np.ndarray]:
    return [resize_batch([image], 128, "uint8") for image in verify.verification_images(None)[:2]]


def test_every_node_has_one_float_type(graph: onnx.ModelProto, half: onnx.ModelProto) -> None:
    onnx.checker.check_model(half, full_check=True)
    kinds = element_types(half)
    for node in half.graph.node:
        inputs = node.input[:1] if node.op_type == "Resize" else node.input
        found = {kinds[name] for name in inputs if kinds.get(name) in (FLOAT, HALF)}
        assert len(found) <= 1, node.name
        if node.op_type == "Conv":
            assert found == {HALF} and kinds[node.output[0]] == HALF, node.name
        elif layer_group(node) in (PREPROCESSING, DETECTION) and node.op_type not in ("Cast", "Shape"):
            assert HALF not in found and kinds.get(node.output[0]) != HALF, node.name
    for side in ("input", "output"):
        before, after = getattr(graph.graph, side), getattr(half.graph, side)
        assert [value.SerializeToString() for value in before] == [
            value.SerializeToString() for value in after
        ]
    assert shares(layer_compute(half)) == {"float16": 1.0}


def test_no_needless_casts(half: onnx.ModelProto) -> None:
    casts = [n for n in half.graph.node if n.op_type == "Cast" and n.attribute[0].i in (FLOAT, HALF)]
    made = {name: node for node in casts for name in node.output}
    # From a float to another and back; a cast of an integer is the graph's own.
    assert not [
        n.name for n in casts if n.input[0] in made and n.name.endswith(("float16/Cast", "float32/Cast"))
    ]
    assert max(Counter((n.input[0], n.attribute[0].i) for n in casts).values()) == 1
    # Into the network, and out of it: boxes, classes, coefficients, prototypes.
    mine = [
        n
        for n in casts
        if "float16" in n.output[0] or "float32" in n.output[0] or n.output[0] == "prototypes"
    ]
    assert len(mine) == 5


def test_groups_left_in_float32(graph: onnx.ModelProto) -> None:
    kept = to_half(graph, {"head.classes", "backbone.layers.1"})
    onnx.checker.check_model(kept, full_check=True)
    kinds = {layer.group: layer.kind for layer in layer_compute(kept)}
    assert {group for group, kind in kinds.items() if kind == "float32"} == {
        "head.classes",
        "backbone.layers.1",
    }
    # The logits pass on in float32 up to the softmax, not through half.
    types = element_types(kept)
    softmax = next(node for node in kept.graph.node if node.op_type == "Softmax")
    while softmax.op_type != "Conv":
        assert types[softmax.input[0]] == FLOAT
        softmax = next(node for node in kept.graph.node if softmax.input[0] in node.output)


def test_close_to_float32(graph: onnx.ModelProto, half: onnx.ModelProto, batches: list[np.ndarray]) -> None:
    for reduced in (half, emulate_half(half)):
        heads, groups = tensor_errors(graph, reduced, batches)
        assert all(0 < error.relative < 0.005 for error in (*heads.values(), *groups.values()))


def test_emulation_rounds_between_layers(
    graph: onnx.ModelProto, half: onnx.ModelProto, batches: list[np.ndarray]
) -> None:
    """ONNX Runtime on a CPU does not, which is why there is an emulation."""
    names = [node.output[0] for node in graph.graph.node if node.op_type == "Conv"]
    emulated = emulate_half(half)
    values = next(run_graph(emulated, names, batches))
    for name in names:
        assert values[name].dtype == np.float32
        np.testing.assert_array_equal(values[name], values[name].astype(np.float16).astype(np.float32))
    weights = {tensor.name: tensor for tensor in emulated.graph.initializer}
    assert all(weight.data_type != HALF for weight in weights.values())


def overflowing(graph: onnx.ModelProto) -> onnx.ModelProto:
    """The same function, but with values of a million between the first two groups."""
    result = onnx.ModelProto()
    result.CopyFrom(graph)
    convs = [node for node in result.graph.node if node.op_type == "Conv"]
    tensors = {tensor.name: tensor for tensor in result.graph.initializer}
    inner = [node for node in convs if node.input[0] == "/model/backbone/stem/stem.2/Relu_output_0"]
    scaled = [(name, 1e6) for name in convs[0].input[1:]] + [(node.input[1], 1e-6) for node in inner]
    for name, factor in scaled:
        values = onnx.numpy_helper.to_array(tensors[name]) * np.float32(factor)
        tensors[name].CopyFrom(onnx.numpy_helper.from_array(values, name))
    return result


def test_overflow_is_found_and_kept_in_float32(graph: onnx.ModelProto) -> None:
    images = verify.verification_images(None)
    large = overflowing(graph)
    with pytest.raises(YolactError, match="not finite"):
        reduce_graph(large, NONE, images)
    reduced = reduce_graph(large, PrecisionOptions("fp16", allow_fallback=True), images)
    assert reduced.sensitivity is not None
    assert {"backbone.stem", "backbone.layers.0"} <= reduced.kept < set(compute_groups(graph))
    assert all(error.relative < 0.005 for error in reduced.heads.values())


def test_error_is_the_root_mean_square() -> None:
    error = Error()
    error.add(np.array([3.0, 4.0]), np.array([3.0, 4.5]))
    error.add(np.array([0.0]), np.array([0.0], np.float16))
    assert (error.largest, error.difference, error.relative) == (4.0, 0.5, 0.1)
    error.add(np.array([1.0]), np.array([np.nan]))
    assert np.isnan(error.difference) and np.isnan(error.relative)
