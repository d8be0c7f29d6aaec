"""Quantised graphs against NumPy, and the calibration of their ranges."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest

from yolact_export.precision import calibration
from yolact_export.precision.calibration import (
    METHODS,
    CalibrationOptions,
    batches,
    calibrate,
    choose_images,
    entropy_threshold,
)
from yolact_export.precision.compute import layer_compute, shares
from yolact_export.precision.int8 import quantisable, restore_float, to_int8
from yolact_export.precision.layers import compute_groups, layer_group
from yolact_export.precision.measure import run_graph, tensor_errors
from yolact_runtime.errors import UsageError, YolactError
from yolact_runtime.metadata import Metadata
from yolact_runtime.sources.images import read_image

Ranges = dict[str, tuple[float, float]]


@pytest.fixture(scope="module")
def ranges(graph: onnx.ModelProto) -> Ranges:
    rng = np.random.default_rng(0)
    names = sorted({node.input[0] for node in quantisable(graph)})
    return {name: (-float(rng.uniform(1, 4)), float(rng.uniform(1, 4))) for name in names}


@pytest.fixture(scope="module")
def quantised(graph: onnx.ModelProto, ranges: Ranges) -> onnx.ModelProto:
    return restore_float(to_int8(graph, ranges), graph)


def constants(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def test_symmetric_and_per_channel(
    graph: onnx.ModelProto, quantised: onnx.ModelProto, ranges: Ranges
) -> None:
    onnx.checker.check_model(quantised, full_check=True)
    assert {node.domain for node in quantised.graph.node} <= {"", "ai.onnx"}
    values, originals = constants(quantised), constants(graph)
    made = {name: node for node in quantised.graph.node for name in node.output}
    before = {node.output[0]: node for node in graph.graph.node}
    convs = [node for node in quantised.graph.node if node.op_type == "Conv"]
    assert len(convs) == len(quantisable(graph)) > 40
    for node in convs:
        data, weight = (made[name] for name in node.input[:2])
        assert data.op_type == weight.op_type == "DequantizeLinear"
        quantise = made[data.input[0]]
        tensor = before[node.output[0]].input[0]
        assert quantise.input[0] == tensor
        scale, zero = values[quantise.input[1]], values[quantise.input[2]]
        assert zero.dtype == np.int8 and zero == 0
        np.testing.assert_allclose(scale, np.abs(ranges[tensor]).max() / 127, rtol=1e-5)
        integers, scales, zeros = (values[name] for name in weight.input)
        exact = originals[before[node.output[0]].input[1]]
        assert integers.dtype == np.int8 and not zeros.any() and scales.shape == (len(exact),)
        assert np.abs(integers.astype(int)).max() <= 127
        np.testing.assert_allclose(scales, np.abs(exact).max(axis=(1, 2, 3)) / 127, rtol=1e-5)
        step = scales[:, None, None, None]
        assert (np.abs(integers * step - exact) <= 0.5001 * step).all()
        # Biases are added in float.
        assert all(values[name].dtype == np.float32 for name in node.input[2:])
    assert shares(layer_compute(quantised)) == {"int8": 1.0}
    # Only convolutions read rounded tensors; shortcuts are added in float.
    readers = [node for node in quantised.graph.node if node.op_type not in ("Conv", "DequantizeLinear")]
    assert any(node.op_type == "Add" for node in readers)
    for node in readers:
        assert all(made[name].op_type != "DequantizeLinear" for name in node.input if name in made)


def test_float_groups_read_unrounded_tensors(
    graph: onnx.ModelProto, ranges: Ranges, quantised: onnx.ModelProto
) -> None:
    kept = {"head.classes", "protonet", "backbone.layers.2"}
    partly = restore_float(to_int8(graph, ranges), graph, kept)
    onnx.checker.check_model(partly, full_check=True)
    before = {node.output[0]: node for node in graph.graph.node}
    floats = [n for n in partly.graph.node if n.op_type == "Conv" and layer_group(n) in kept]
    assert len(floats) == 12
    assert all(list(node.input) == list(before[node.output[0]].input) for node in floats)
    kinds = {layer.group: layer.kind for layer in layer_compute(partly)}
    assert {group for group, kind in kinds.items() if kind == "float32"} == kept
    # No unused initializer is left.
    used = {name for node in partly.graph.node for name in node.input}
    assert {tensor.name for tensor in partly.graph.initializer} <= used


def test_all_groups_restored_is_the_float32_graph(
    graph: onnx.ModelProto, quantised: onnx.ModelProto, photos: Path, metadata: Metadata
) -> None:
    again = restore_float(quantised, graph, compute_groups(graph))
    heads, _ = tensor_errors(graph, again, list(batches([read_image(photos / "0.png")], metadata)))
    assert all(error.difference == 0 for error in heads.values())


def test_ranges_are_those_of_the_values(graph: onnx.ModelProto, photos: Path, metadata: Metadata) -> None:
    found = {}
    for method in METHODS:
        options = CalibrationOptions(photos, method)
        found[method] = calibrate(graph, options, choose_images(options), metadata)
    names = list(found["minmax"])
    assert set(names) == {node.input[0] for node in quantisable(graph)}
    values = list(run_graph(graph, names, list(batches(map(read_image, sorted(photos.iterdir())), metadata))))
    for name in names:
        largest = max(np.abs(value[name]).max() for value in values)
        for method, ranges in found.items():
            reach = np.abs(ranges[name]).max()
            assert reach <= largest * 1.01, (method, name)
            assert reach >= largest * (0.999 if method == "minmax" else 0.1), (method, name)


def test_entropy_cuts_off_outliers() -> None:
    rng = np.random.default_rng(0)
    values = np.append(rng.normal(size=100_000), 50.0)
    counts, edges = np.histogram(values, 4096, range=(-50, 50))
    low, high = entropy_threshold((counts, edges, values.min(), values.max()), 128)
    assert 3 < high < 10
    assert low >= values.min()
    # Without outliers, hardly anything may be cut off.
    counts, edges = np.histogram(rng.uniform(-1, 1, 100_000), 4096, range=(-1, 1))
    assert entropy_threshold((counts, edges, -1.0, 1.0), 128)[1] > 0.95


def test_second_calibration_comes_from_the_cache(
    graph: onnx.ModelProto, photos: Path, metadata: Metadata, cache: Path, monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:  # fmt: skip
    calls = []
    collect = calibration._collect_ranges
    monkeypatch.setattr(calibration, "_collect_ranges", lambda *a: calls.append(1) or collect(*a))
    options = CalibrationOptions(photos, "minmax", 2)
    first = calibrate(graph, options, choose_images(options), metadata)
    renamed = tmp_path / "elsewhere"
    shutil.copytree(photos, renamed)
    moved = CalibrationOptions(renamed, "minmax", 2)
    assert calibrate(graph, moved, choose_images(moved), metadata) == first
    assert len(calls) == 1
    (kept,) = (cache / "calibration").iterdir()
    content = kept.read_text()
    for damage in (
        "",
        "{",
        '{"x": [0, 1]}',
        content.replace("]", ", NaN]", 1),
        content.replace("1.", "2.", 1),
    ):
        kept.write_text(damage)
        assert calibrate(graph, options, choose_images(options), metadata) == first
    assert len(calls) == 6
    other = CalibrationOptions(photos, "minmax", 1)
    calibrate(graph, other, choose_images(other), metadata)
    assert len(calls) == 7


@pytest.mark.parametrize(
    "changes",
    [{"a": [5.0, -3.0]}, {"a": [0.0, math.inf]}, {"a": [math.nan, 1.0]}, {"a": [1.0]}, {"b": [0, 1]}],
)
def test_ranges_that_cannot_be_right(changes: dict[str, list[float]]) -> None:
    right = {"a": [0.0, 1.0], "x": [-2.0, -2.0]}
    assert calibration._check_ranges(right, ["a", "x"]) == {"a": (0, 1), "x": (-2, -2)}
    with pytest.raises(ValueError, match=r"range of a|other tensors|unpack"):
        calibration._check_ranges(right | changes, ["a", "x"])


def test_images_that_cannot_be_used(tmp_path: Path, photos: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        choose_images(CalibrationOptions(tmp_path / "nowhere"))
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UsageError, match="holds no image"):
        choose_images(CalibrationOptions(empty))
    (empty / "a.png").write_bytes(b"no image")
    with pytest.raises(YolactError, match="none of its images can be read"):
        choose_images(CalibrationOptions(empty))
    shutil.copy(photos / "0.png", empty / "b.png")
    chosen = choose_images(CalibrationOptions(empty))
    assert chosen.paths == (empty / "b.png",)
    assert "a.png" in caplog.text


@pytest.mark.parametrize(("method", "images", "word"), [("median", 3, "median"), ("minmax", 0, "images 0")])
def test_wrong_options(method: str, images: int, word: str, photos: Path) -> None:
    with pytest.raises(UsageError, match=word):
        CalibrationOptions(photos, method, images)
