"""Int8 as pairs of QuantizeLinear and DequantizeLinear in the graph.

Activations are unsigned bytes: with zero point 0 where no value is negative, else with zero point 128.
Weights are signed, with a scale for each output channel, and biases are int32 at the scale of the products.
ONNX Runtime and OpenVINO compute this graph in integers; `yolact_export.trt.int8` turns it into what TensorRT
reads. The output of a pair keeps the name of the tensor that it rounds.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper

from yolact_export.precision.layers import layer_group
from yolact_export.precision.placement import Rounding, quantisable, roundings

# CPUs without VNNI add the products of two bytes and two weights in 16 bits, where larger sums are cut off.
# So the absolute values of neighbouring weights add up to at most `PAIR_LIMIT`: 255 * 128 < 2**15.
WEIGHT_LIMIT, PAIR_LIMIT = 127, 128
# A bias is at most this multiple of the scale of its products; beyond, the scale of the weights grows.
_LARGEST_BIAS = 2**30
_FLOAT, _INTEGER = "_unrounded", "_quantised"


def quantise(
    model: onnx.ModelProto,
    ranges: Mapping[str, tuple[float, float]],
    keep_float: Collection[str] = (),
    means: Mapping[str, np.ndarray] | None = None,
) -> onnx.ModelProto:
    """Quantise the convolutions of a graph, and what lies between them.

    Args:
        model: The float32 graph; it is not changed.
        ranges: Smallest and largest value of the tensors that `roundings` of the whole graph names.
        keep_float: Layer groups that stay in float32.
        means: Mean of each channel, (C,), of the tensors that enter convolutions. With them, biases make up
            for what the rounding of the weights adds to the mean of each output channel.
    """
    tensors = roundings(model, keep_float)
    chosen = [node for node in quantisable(model) if layer_group(node) not in keep_float]
    scales = {name: scale_of(one, ranges[one.range_of]) for name, one in tensors.items()}
    result = copy.deepcopy(model)
    graph = result.graph
    del graph.node[:]
    constants = _Constants(graph)
    weights = _quantise_weights(model, chosen, scales, constants)
    graph.node.extend(weights.values())
    parameters = {
        name: [
            constants.add(f"{name}_scale", scales[name]),
            constants.add(f"{name}_zero_point", np.uint8(0 if one.unsigned else 128)),
        ]
        for name, one in tensors.items()
    }
    chosen_outputs = {node.output[0] for node in chosen}
    for node in model.graph.node:
        changed = copy.deepcopy(node)
        if node.op_type == "Shape" and node.input[0] in tensors:
            # Otherwise runtimes would dequantise the tensor for its shape.
            changed.input[0] += _INTEGER
        if node.output and node.output[0] in chosen_outputs:
            changed.input[1] = weights[node.input[1]].output[0]
            mean = (means or {}).get(node.input[0])
            bias = _quantise_bias(node, scales[node.input[0]], weights[node.input[1]], mean, constants)
            if bias is not None:
                changed.input[:] = [*changed.input[:2], bias.output[0]]
                graph.node.append(bias)
        changed.output[:] = [name + _FLOAT if name in tensors else name for name in node.output]
        graph.node.append(changed)
        for name in node.output:
            if name in tensors:
                graph.node.extend(_pair(name, name + _FLOAT, name, parameters[name]))
    constants.remove_unused()
    del graph.value_info[:]
    return onnx.shape_inference.infer_shapes(result, strict_mode=True, data_prop=True)


def scale_of(rounding: Rounding, limits: tuple[float, float]) -> np.float32:
    """The step of a tensor with values from `limits[0]` to `limits[1]`."""
    low, high = limits
    step = max(high, 0.0) / 255 if rounding.unsigned else max(abs(low), abs(high)) / 127
    # Of a tensor that is always 0, every step is right.
    return np.float32(step) if np.float32(step) > np.finfo(np.float32).tiny else np.float32(1)


def _pair(name: str, source: str, rounded: str, parameters: Sequence[str]) -> list[onnx.NodeProto]:
    """The two nodes that round the tensor `source` to `rounded`; `name` is that of the float32 graph."""
    return [
        helper.make_node(
            "QuantizeLinear", [source, *parameters], [name + _INTEGER], f"{name}/QuantizeLinear"
        ),
        helper.make_node(
            "DequantizeLinear", [name + _INTEGER, *parameters], [rounded], f"{name}/DequantizeLinear"
        ),
    ]


class _Constants:
    """The initializers of a graph in the making."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._graph = graph
        self._indices = {tensor.name: index for index, tensor in enumerate(graph.initializer)}

    def __getitem__(self, name: str) -> np.ndarray:
        return numpy_helper.to_array(self._graph.initializer[self._indices[name]])

    def get(self, name: str) -> np.ndarray | None:
        """The value of an initializer; None if `name` is another tensor, or empty."""
        return self[name] if name in self._indices else None

    def add(self, name: str, value: np.ndarray | np.generic) -> str:
        """Add an initializer and return its name."""
        self._indices[name] = len(self._graph.initializer)
        self._graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def remove_unused(self) -> None:
        """Remove those that no node reads."""
        read = {name for node in self._graph.node for name in node.input}
        read |= {value.name for value in self._graph.output}
        kept = [tensor for tensor in self._graph.initializer if tensor.name in read]
        del self._graph.initializer[:]
        self._graph.initializer.extend(kept)


def _channel_axis(node: onnx.NodeProto) -> int:
    """The axis of the output channels in the weight of a convolution or matrix product."""
    attributes = {one.name: one for one in node.attribute}
    if node.op_type == "Gemm":
        return 0 if "transB" in attributes and attributes["transB"].i else 1
    return 0 if node.op_type == "Conv" else 1


def _per_channel(values: np.ndarray, ndim: int, axis: int) -> np.ndarray:
    """(C,) as the shape that broadcasts to a weight."""
    return values.reshape([-1 if index == axis else 1 for index in range(ndim)])


def _quantise_weights(
    model: onnx.ModelProto,
    chosen: Sequence[onnx.NodeProto],
    scales: Mapping[str, np.float32],
    constants: _Constants,
) -> dict[str, onnx.NodeProto]:
    """Add the integers of each weight that `chosen` read; the DequantizeLinear of each weight by its name."""
    made: dict[str, onnx.NodeProto] = {}
    for name in dict.fromkeys(node.input[1] for node in chosen):
        users = [node for node in chosen if node.input[1] == name]
        weight, axis = constants[name], _channel_axis(users[0])
        step = _weight_steps(weight, axis)
        for node in users:
            bias = constants.get(node.input[2]) if len(node.input) > 2 else None
            if bias is not None and bias.shape == step.shape:
                step = np.maximum(step, np.abs(bias) / (float(scales[node.input[0]]) * _LARGEST_BIAS))
        step = np.where(step > np.finfo(np.float32).tiny, step, 1).astype(np.float32)
        integers = np.rint(weight / _per_channel(step, weight.ndim, axis))
        parameters = [
            constants.add(f"{name}{_INTEGER}", integers.astype(np.int8)),
            constants.add(f"{name}_scale", step),
            constants.add(f"{name}_zero_point", np.zeros(len(step), np.int8)),
        ]
        made[name] = helper.make_node(
            "DequantizeLinear", parameters, [f"{name}_rounded"], f"{name}/DequantizeLinear", axis=axis
        )
    return made


def _weight_steps(weight: np.ndarray, axis: int) -> np.ndarray:
    """The step of each output channel, (C,) float64: the smallest with which integers keep both limits.

    Neighbours are those that CPUs multiply together: input channels at the same position of the kernel, and
    where their number is odd, the last one and the first one of the next position.
    """
    rows = np.moveaxis(np.abs(weight.astype(np.float64)), axis, 0)  # (C, I, ...)
    rows = np.moveaxis(rows, 1, -1).reshape(len(rows), -1)  # (C, ... * I), input channels side by side
    pairs = (rows[:, :-1] + rows[:, 1:]).max(axis=1, initial=0)
    # Rounding adds up to a half to each of the two.
    return np.maximum(rows.max(axis=1) / WEIGHT_LIMIT, pairs / (PAIR_LIMIT - 1))


def _quantise_bias(
    node: onnx.NodeProto,
    data_scale: np.float32,
    weight: onnx.NodeProto,
    mean: np.ndarray | None,
    constants: _Constants,
) -> onnx.NodeProto | None:
    """Add the bias of a convolution as int32, at the scale of its products, and return its DequantizeLinear.

    None if there is no bias, or it has not one value for each scale of the weight.
    """
    scale = constants[weight.input[1]] * data_scale  # (C,)
    bias = constants.get(node.input[2]) if len(node.input) > 2 else np.zeros(scale.shape)
    if bias is None or bias.shape != scale.shape:
        return None
    name, exact = f"{node.output[0]}_bias", constants[node.input[1]]
    if mean is not None and node.op_type == "Conv" and mean.shape == exact.shape[1:2]:
        steps = _per_channel(constants[weight.input[1]], exact.ndim, 0).astype(np.float64)
        added = (
            (constants[weight.input[0]] * steps - exact).reshape(*exact.shape[:2], -1).sum(axis=2)
        )  # (O, I)
        bias = bias - added @ mean
    elif len(node.input) < 3:
        return None
    integers = np.rint(bias.astype(np.float64) / scale)
    largest = np.iinfo(np.int32)
    parameters = [
        constants.add(f"{name}{_INTEGER}", integers.clip(largest.min, largest.max).astype(np.int32)),
        constants.add(f"{name}_scale", scale.astype(np.float32)),
        constants.add(f"{name}_zero_point", np.zeros(len(scale), np.int32)),
    ]
    return helper.make_node(
        "DequantizeLinear", parameters, [f"{name}_rounded"], f"{name}/DequantizeLinear", axis=0
    )
