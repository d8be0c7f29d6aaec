"""Int8 graphs as TensorRT reads them.

yolact-export quantises to unsigned bytes, between all operators, as CPUs need it. TensorRT reads signed bytes
with zero point 0 only and no integer biases. It fuses a convolution with the sum, the Relu and the next
rounding behind it, so another rounding between them would cost time.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import numpy as np
import onnx
from onnx import numpy_helper
from onnxscript.optimizer import remove_unused_nodes

from yolact_export.precision.placement import OPERATORS

_QUANTISE, _DEQUANTISE = "QuantizeLinear", "DequantizeLinear"


def has_unsigned(model: onnx.ModelProto) -> bool:
    """Whether a graph rounds to unsigned bytes; of any zero point: values may be in other files."""
    kinds = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    rounding = (node for node in model.graph.node if node.op_type == _QUANTISE and len(node.input) > 2)
    return any(kinds.get(node.input[2]) == onnx.TensorProto.UINT8 for node in rounding)


def _unsigned(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    """The nodes that round to unsigned bytes, by their output."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    return {
        node.output[0]: node
        for node in model.graph.node
        if node.op_type == _QUANTISE and _zero_point(node, constants) in (0, 128)
    }


def signed_int8(model: onnx.ModelProto) -> onnx.ModelProto:
    """A graph with unsigned activations as one with signed activations; others are returned as they are.

    Zero point 0 becomes a range of twice the width, of which one half is empty: 127 steps instead of 255.
    Zero point 128 becomes 0 with the same steps. Pairs that no convolution reads are removed, except for one
    of the two inputs of a sum. Biases become float32.
    """
    unsigned = _unsigned(model)
    if not unsigned:
        return model
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    kept = _pairs_to_keep(model)
    result = copy.deepcopy(model)
    del result.graph.node[:]
    added: dict[str, onnx.TensorProto] = {}
    # Names of tensors without their pair: what was rounded, and its integers, are the tensor itself.
    exact: dict[str, str] = {}
    for node in model.graph.node:
        changed = copy.deepcopy(node)
        quantised = node.output[0] if node.op_type == _QUANTISE else node.input[0] if node.input else ""
        if node.op_type in (_QUANTISE, _DEQUANTISE) and quantised in unsigned:
            if quantised not in kept:
                exact[node.output[0]] = exact.get(node.input[0], node.input[0])
                continue
            changed.input[1:] = _signed_parameters(node, constants, added)
        elif node.op_type == _DEQUANTISE and _type_of(quantised, constants) == onnx.TensorProto.INT32:
            added[node.output[0]] = _dequantise(node, constants)
            continue
        changed.input[:] = [exact.get(name, name) for name in changed.input]
        result.graph.node.append(changed)
    result.graph.initializer.extend(added.values())
    _restore_outputs(result, exact)
    remove_unused_nodes(result)
    del result.graph.value_info[:]
    return onnx.shape_inference.infer_shapes(result, data_prop=True)


def _zero_point(node: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto]) -> int | None:
    """The zero point of a node that rounds to unsigned bytes; None of another."""
    zero = constants.get(node.input[2]) if len(node.input) > 2 else None
    if zero is None or zero.data_type != onnx.TensorProto.UINT8:
        return None
    value = numpy_helper.to_array(zero)
    return int(value.reshape(-1)[0]) if value.size == 1 else None


def _type_of(name: str, constants: Mapping[str, onnx.TensorProto]) -> int:
    return constants[name].data_type if name in constants else onnx.TensorProto.UNDEFINED


def _pairs_to_keep(model: onnx.ModelProto) -> set[str]:
    """The integer tensors of the pairs that a convolution reads, and of one input of each sum."""
    producer = {name: node for node in model.graph.node for name in node.output}

    def pair(name: str) -> str:
        """The integer tensor that `name` was dequantised from, or ""."""
        node = producer.get(name)
        return node.input[0] if node is not None and node.op_type == _DEQUANTISE else ""

    products = [node for node in model.graph.node if node.op_type in OPERATORS and pair(node.input[1])]
    kept = {pair(node.input[0]) for node in products}
    for node in model.graph.node:
        pairs = [pair(name) for name in node.input] if node.op_type == "Add" else []
        if len(pairs) == 2 and all(pairs) and not kept.intersection(pairs):
            kept.add(pairs[1])
    return kept


def _signed_parameters(
    node: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto], added: dict[str, onnx.TensorProto]
) -> list[str]:
    """Add the scale and the zero point for signed bytes; returns their names."""
    scale = numpy_helper.to_array(constants[node.input[1]])
    if _zero_point(node, constants) == 0:
        scale = (scale * np.float32(255 / 127)).astype(np.float32)
    names = [f"{name}_signed" for name in node.input[1:]]
    for name, value in zip(names, (scale, np.zeros(scale.shape, np.int8)), strict=True):
        added[name] = numpy_helper.from_array(value, name)
    return names


def _dequantise(node: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto]) -> onnx.TensorProto:
    """The float32 values of a constant bias, under the name of the node's output."""
    integers, scale = (numpy_helper.to_array(constants[name]) for name in node.input[:2])
    return numpy_helper.from_array((integers.astype(np.float64) * scale).astype(np.float32), node.output[0])


def _restore_outputs(model: onnx.ModelProto, exact: Mapping[str, str]) -> None:
    """Let outputs of the graph whose pair is removed come from what the pair rounded."""
    for value in model.graph.output:
        source = exact.get(value.name)
        if source is None:
            continue
        for node in model.graph.node:
            node.output[:] = [value.name if name == source else name for name in node.output]
            node.input[:] = [value.name if name == source else name for name in node.input]
