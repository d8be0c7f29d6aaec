"""Channels scaled between convolutions, and the choice of a calibration method."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from yolact_export.precision import reduce
from yolact_export.precision.calibration import CalibrationOptions, batches
from yolact_export.precision.equalise import equalise, link_tensors
from yolact_export.precision.layers import network_outputs
from yolact_export.precision.measure import open_graph, run_graph, tensor_errors
from yolact_export.precision.reduce import PrecisionOptions, reduce_graph
from yolact_runtime.metadata import Metadata
from yolact_runtime.sources.images import read_image


def test_computes_the_same_with_more_equal_channels(
    graph: onnx.ModelProto, photos: Path, metadata: Metadata
) -> None:
    names, samples = link_tensors(graph), list(batches([read_image(photos / "0.png")], metadata))

    def largest(model: onnx.ModelProto) -> dict[str, np.ndarray]:
        values = next(iter(run_graph(model, names, samples)))
        return {name: np.abs(value).max(axis=(0, 2, 3)) for name, value in values.items()}

    before = largest(graph)
    scaled = equalise(graph, before)
    heads, _ = tensor_errors(graph, scaled, samples)
    assert all(error.relative < 1e-4 for error in heads.values())
    assert not set(names) & set(network_outputs(graph).values()) and len(names) >= 10
    spread = [{n: np.std(np.log(v[v > 0])) for n, v in one.items()} for one in (before, largest(scaled))]
    assert np.mean(list(spread[1].values())) < 0.8 * np.mean(list(spread[0].values()))


@pytest.mark.parametrize(("other", "linked"), [("Relu", True), ("Sigmoid", False), ("output", False)])
def test_only_what_convolutions_alone_read(other: str, linked: bool) -> None:
    rng = np.random.default_rng(0)
    weights = {name: rng.normal(size=(4, 4, 1, 1)).astype(np.float32) for name in ("v", "w")}
    nodes = [
        helper.make_node("Conv", ["images", "v"], ["a"]),
        helper.make_node("Relu" if other == "output" else other, ["a"], ["b"]),
        helper.make_node("Conv", ["b", "w"], ["c"]),
    ]
    shape = [1, 4, 3, 3]
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("images", "c", "b")]
    outputs = infos[1:] if other == "output" else infos[1:2]
    constants = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    net = helper.make_graph(nodes, "g", infos[:1], outputs, constants)
    model = helper.make_model(net, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
    assert link_tensors(model) == (["b"] if linked else [])
    scaled = equalise(model, {"b": np.array([4.0, 1.0, 0.25, 0.0])})
    x = {"images": rng.normal(size=shape).astype(np.float32)}
    np.testing.assert_allclose(open_graph(scaled, ["c"])(x)["c"], open_graph(model, ["c"])(x)["c"], rtol=1e-4,
                               atol=1e-6)  # fmt: skip
    found = numpy_helper.to_array(scaled.graph.initializer[0])[:, 0, 0, 0] / weights["v"][:, 0, 0, 0]
    np.testing.assert_allclose(found, [1, 2, 4, 32] if linked else 1, rtol=1e-5)


@pytest.mark.parametrize("better", ["minmax", "percentile"])
def test_the_method_with_the_smaller_error_is_taken(
    better: str, graph: onnx.ModelProto, photos: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """The other one has ranges a hundred times too wide."""
    calibrate, used = reduce.calibrate, []

    def ranges(model: onnx.ModelProto, options: CalibrationOptions, *rest: object) -> object:
        factor = 1 if options.method == better else 100
        used.append(options.method)
        found = calibrate(model, CalibrationOptions(photos, "minmax", 1), *rest)  # type: ignore[arg-type]
        return {name: (low * factor, high * factor) for name, (low, high) in found.items()}

    monkeypatch.setattr(reduce, "calibrate", ranges)
    options = PrecisionOptions("int8", CalibrationOptions(photos, images=1), ("none",))
    with caplog.at_level("INFO"):
        found = reduce_graph(graph, options, [])
    assert f"calibration method: {better}" in caplog.text and sorted(used) == ["minmax", "percentile"]
    assert found.precision == "int8"
