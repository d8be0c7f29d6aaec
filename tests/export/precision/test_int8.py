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
    channel_means,
    choose_images,
    entropy_threshold,
)
from yolact_export.precision.compute import layer_compute, shares
from yolact_export.precision.int8 import quantise
from yolact_export.precision.layers import compute_groups, layer_group, network_outputs
from yolact_export.precision.measure import Error, run_graph, tensor_errors
from yolact_export.precision.placement import quantisable, roundings
from yolact_runtime.engines.onnxruntime import count_products, optimised_operators
from yolact_runtime.errors import UsageError, YolactError
from yolact_runtime.metadata import Metadata
from yolact_runtime.sources.images import read_image

Ranges = dict[str, tuple[float, float]]


@pytest.fixture(scope="module")
def ranges(graph: onnx.ModelProto, photos: Path, metadata: Metadata) -> Ranges:
    options = CalibrationOptions(photos, "minmax")
    return calibrate(graph, options, choose_images(options), metadata)


@pytest.fixture(scope="module")
def quantised(graph: onnx.ModelProto, ranges: Ranges) -> onnx.ModelProto:
    return quantise(graph, ranges)


def constants(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def producers(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    return {name: node for node in model.graph.node for name in node.output}


def test_steps_of_every_convolution(
    graph: onnx.ModelProto, quantised: onnx.ModelProto, ranges: Ranges
) -> None:
    """Activations are unsigned, weights have a step for each channel, biases are at the step of products."""
    onnx.checker.check_model(quantised, full_check=True)
    assert {node.domain for node in quantised.graph.node} <= {"", "ai.onnx"}
    values, originals, made, before = (
        *(constants(model) for model in (quantised, graph)),
        producers(quantised),
        producers(graph),
    )
    expected = roundings(graph)
    convs = [node for node in quantised.graph.node if node.op_type == "Conv"]
    assert len(convs) == len(quantisable(graph)) > 40
    for node in convs:
        original = before[node.output[0].removesuffix("_unrounded")]
        data, weight, *bias = (made[name] for name in node.input)
        # The pair keeps the name of the tensor, and both of its nodes have the same step.
        tensor = original.input[0]
        assert data.output[0] == tensor and made[data.input[0]].input[1:] == data.input[1:]
        step, zero = (values[name] for name in data.input[1:])
        one = expected[tensor]
        low, high = ranges[one.range_of]
        assert zero.dtype == np.uint8 and zero == (0 if one.unsigned else 128)
        largest = high / 255 if one.unsigned else max(-low, high) / 127
        np.testing.assert_allclose(step, largest, rtol=1e-5)
        integers, steps, zeros = (values[name] for name in weight.input)
        exact = originals[original.input[1]].astype(np.float64)
        assert integers.dtype == np.int8 and not zeros.any() and steps.shape == (len(exact),)
        # Two products of any bytes fit 16 bits, where CPUs without VNNI saturate: of neighbouring channels.
        rows = np.abs(integers.astype(int)).transpose(0, 2, 3, 1).reshape(len(integers), -1)
        assert rows.max() <= 127 and (rows[:, 1:] + rows[:, :-1]).max() * 255 < 2**15
        assert (rows.max(axis=1) >= 63).all()
        spread = steps[:, None, None, None]
        assert (np.abs(integers * spread - exact) <= 0.5001 * spread).all()
        for dequantised in bias:
            integers, scale, _ = (values[name] for name in dequantised.input)
            assert integers.dtype == np.int32
            np.testing.assert_allclose(scale, steps * step, rtol=1e-6)
            np.testing.assert_allclose(integers * scale, originals[original.input[2]], atol=scale.max())
    assert shares(layer_compute(quantised)) == {"int8": 1.0}


def test_rounded_values_against_numpy(
    graph: onnx.ModelProto, quantised: onnx.ModelProto, photos: Path, metadata: Metadata
) -> None:
    """The first convolution and its rounding, from the quantised input, in float64."""
    made, values = producers(quantised), constants(quantised)
    first = next(node for node in quantised.graph.node if node.op_type == "Conv")
    relu = next(node for node in quantised.graph.node if first.output[0] in node.input)
    rounded = relu.output[0].removesuffix("_unrounded")
    data = made[first.input[0]]
    batch = list(batches([read_image(photos / "0.png")], metadata))
    source = made[data.input[0]].input[0]
    found = next(iter(run_graph(quantised, [source, data.output[0], rounded], batch)))
    step, zero = (values[name].astype(np.float64) for name in data.input[1:])
    x = (np.clip(np.rint(found[source] / step) + zero, 0, 255) - zero) * step
    np.testing.assert_allclose(found[data.output[0]], x, atol=1e-6)
    weight, bias = (
        (integers.T * steps.astype(np.float64)).T
        for integers, steps, _ in ([values[name] for name in made[i].input] for i in first.input[1:])
    )
    attributes = {one.name: onnx.helper.get_attribute_value(one) for one in first.attribute}
    stride, pads = attributes["strides"][0], attributes["pads"]
    padded = np.pad(x, [(0, 0), (0, 0), (pads[0], pads[2]), (pads[1], pads[3])])
    windows = np.lib.stride_tricks.sliding_window_view(padded, weight.shape[2:], axis=(2, 3))
    exact = np.einsum("nchwij,ocij->nohw", windows[:, :, ::stride, ::stride], weight)
    exact = np.maximum(exact + bias[:, None, None], 0)
    step = values[made[rounded].input[1]].astype(np.float64)
    expected = np.minimum(np.rint(exact / step), 255) * step
    # Where the exact value lies between two steps, float32 may take the other one.
    error = np.abs(found[rounded] - expected)
    assert (error <= 1.01 * step).all() and (error > 0.01 * step).mean() < 1e-3


def test_every_convolution_in_integers_and_as_openvino(
    graph: onnx.ModelProto, quantised: onnx.ModelProto, photos: Path, metadata: Metadata, tmp_path: Path
) -> None:
    """No Relu is left, sums are integers, and OpenVINO, which rounds less, is as close as float32 is."""
    onnx.save(quantised, tmp_path / "m.onnx")
    kinds = optimised_operators(tmp_path / "m.onnx")
    assert count_products(kinds) == (len(quantisable(graph)),) * 2
    assert "Relu" not in kinds and kinds.count("QLinearAdd") >= 4
    openvino = pytest.importorskip("openvino")
    heads = network_outputs(quantised)
    model = openvino.Core().read_model(str(tmp_path / "m.onnx"))
    model.add_outputs(list(heads.values()))
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    batch = list(batches([read_image(photos / "0.png")], metadata))
    other = compiled(batch[0])
    expected = next(iter(run_graph(quantised, list(heads.values()), batch)))
    for name in heads.values():
        error = Error()
        error.add(expected[name], other[name])
        assert error.relative < 0.08, name


def test_pairs_in_kept_groups(graph: onnx.ModelProto, ranges: Ranges) -> None:
    kept = {"head.classes", "protonet", "backbone.layers.2"}
    partly = quantise(graph, ranges, kept)
    onnx.checker.check_model(partly, full_check=True)
    before = producers(graph)
    floats = [n for n in partly.graph.node if n.op_type == "Conv" and layer_group(n) in kept]
    assert len(floats) == 12
    assert all(
        list(node.input) == list(before[node.output[0].removesuffix("_unrounded")].input) for node in floats
    )
    kinds = {layer.group: layer.kind for layer in layer_compute(partly)}
    assert {group for group, kind in kinds.items() if kind == "float32"} == kept
    # No unused initializer is left.
    used = {name for node in partly.graph.node for name in node.input}
    assert {tensor.name for tensor in partly.graph.initializer} <= used


def test_all_groups_kept_is_the_float32_graph(
    graph: onnx.ModelProto, ranges: Ranges, photos: Path, metadata: Metadata
) -> None:
    again = quantise(graph, ranges, compute_groups(graph))
    heads, _ = tensor_errors(graph, again, list(batches([read_image(photos / "0.png")], metadata)))
    assert all(error.difference == 0 for error in heads.values())


def test_biases_make_up_for_rounded_weights(
    graph: onnx.ModelProto, ranges: Ranges, photos: Path, metadata: Metadata
) -> None:
    """A constant input, at the mean of each channel, gives the exact output, also without a bias before."""
    means = channel_means(graph, choose_images(CalibrationOptions(photos)), metadata)
    model = quantise(graph, ranges, (), means)
    values, originals, made, before = constants(model), constants(graph), producers(model), producers(graph)
    convs = [node for node in model.graph.node if node.op_type == "Conv"]
    assert {len(before[node.output[0].removesuffix("_unrounded")].input) for node in convs} == {2, 3}
    for node in convs:
        original = before[node.output[0].removesuffix("_unrounded")]
        mean = means[original.input[0]]
        weight, bias = (
            (integers.T * steps.astype(np.float64)).T
            for integers, steps, _ in ([values[name] for name in made[i].input] for i in node.input[1:])
        )
        step = values[made[node.input[2]].input[1]]
        exact = originals[original.input[1]].astype(np.float64).sum(axis=(2, 3)) @ mean
        exact = exact + (originals[original.input[2]] if len(original.input) > 2 else 0)
        assert (np.abs(weight.sum(axis=(2, 3)) @ mean + bias - exact) <= 0.51 * step + 1e-6).all()
    assert channel_means(graph, choose_images(CalibrationOptions(photos)), metadata).keys() == means.keys()


def test_a_bias_beyond_the_integers_widens_the_step(
    graph: onnx.ModelProto, ranges: Ranges, quantised: onnx.ModelProto
) -> None:
    """A channel whose weights are nearly 0 keeps its bias."""
    changed = onnx.ModelProto.FromString(graph.SerializeToString())
    conv = next(node for node in changed.graph.node if node.op_type == "Conv" and len(node.input) > 2)
    for tensor in changed.graph.initializer:
        if tensor.name in conv.input[1:]:
            value = onnx.numpy_helper.to_array(tensor).copy()
            value[0] = 1e-12 if tensor.name == conv.input[1] else 7
            tensor.CopyFrom(onnx.numpy_helper.from_array(value, tensor.name))
    values = constants(quantise(changed, ranges))
    name = f"{conv.output[0]}_bias"
    assert 2**28 < values[f"{name}_quantised"][0] <= 2**31 - 1
    np.testing.assert_allclose(values[f"{name}_quantised"][0] * values[f"{name}_scale"][0], 7, rtol=1e-5)


def test_ranges_are_those_of_the_values(graph: onnx.ModelProto, photos: Path, metadata: Metadata) -> None:
    found = {}
    for method in METHODS:
        options = CalibrationOptions(photos, method)
        found[method] = calibrate(graph, options, choose_images(options), metadata)
    names = list(found["minmax"])
    assert set(names) == {one.range_of for one in roundings(graph).values()}
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
    # Without negative values there are twice as many steps for the same values, so less is cut off.
    counts, edges = np.histogram(np.abs(values), 4096, range=(-50, 50))
    assert entropy_threshold((counts, edges, 0.0, values.max()), 128)[1] >= high


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
